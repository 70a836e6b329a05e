"""How well words find photos: `python bench/bench_words.py INDEX`, for an index with labels.

Every label whose name is also a tag is asked as a search of one word; a photo with that label is relevant. Printed:
the MAP over the whole index beside that of a random order, and the best and worst words.
"""
import argparse
from pathlib import Path

import numpy as np

import metrics
from retrieval import index
from util import UserError, run_program, stream

SHOWN = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("index", metavar="INDEX", type=Path, help="a folder that search.py build wrote")
    photos = index.load(parser.parse_args().index)
    content = photos.content
    if content.labels is None:
        raise UserError(f"{photos.folder}: expected an index of photos with labels, found none")
    tags = {word for names in content.tag_names for word in names}
    columns = [column for column, name in enumerate(content.label_names) if name in tags]
    if not columns:
        raise UserError(f"{photos.folder}: none of the {len(content.label_names)} labels is a tag too")
    words = [content.label_names[column] for column in columns]
    queries = np.stack([photos.words(word) for word in words])  # (words, D)
    labels = content.labels[:, columns]
    precision = [average_precision(query[None], labels[:, i:i + 1], photos) for i, query in enumerate(queries)]
    chance = stream(0, "random words").random(len(photos))
    random = [metrics.evaluate(lambda _: chance[None], np.ones((1, 1)), labels[:, i:i + 1], len(photos)).map
              for i in range(len(words))]
    order = np.argsort(precision)[::-1]
    print(f"{len(words)} words, {len(photos):,} photos: MAP {np.mean(precision):.4f}, random {np.mean(random):.4f}")
    for what, some in (("best", order[:SHOWN]), ("worst", order[-SHOWN:])):
        print(f"{what}: " + ", ".join(f"{words[i]} {precision[i]:.2f} (random {random[i]:.2f})" for i in some))


def average_precision(query, labels, photos):
    """AP of one query (1, D) over all photos, of which those with label 1, 0/1 (N, 1), are relevant."""
    scores, rows = photos.search(query, len(photos), probes=index.MOST_INVERTED_LISTS)
    ranked = np.empty((1, len(photos)), np.float32)
    ranked[0, rows[0]] = scores[0]
    return metrics.evaluate(lambda _: ranked, np.ones((1, 1)), labels, len(photos)).map


if __name__ == "__main__":
    run_program(main)
