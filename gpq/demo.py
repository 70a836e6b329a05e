"""Evaluate a GPQ checkpoint on CIFAR-10, and search with it: `python -m gpq.demo CHECKPOINT [GPU] [options]`."""
import argparse
import os
import time
from pathlib import Path

import numpy as np

from gpq import data
from gpq.config import add_options, config_of
from gpq.retrieval import by_segment, distances, hard_codes, intra_normalize, mean_average_precision, one_hot
from retrieval import metrics
from storage.files import fingerprint, write_json
from util import UserError, counting, gpu_number, number, run_program, stream

SHOWN_RESULTS = 20


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="python -m gpq.demo",
        description="Encode the database with a checkpoint, print mAP over the whole database next to that of a random "
                    "ranking, and draw a query's results and a t-SNE map. Writes metrics.json, index/, ranking.png and "
                    "tsne.png next to the checkpoint.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path,
                        help="a released .ckpt, or a folder that gpq.train wrote, whose newest checkpoint is used")
    parser.add_argument("gpu", metavar="GPU", type=gpu_number, nargs="?", default=0,
                        help="number of the GPU; -1 or cpu for the CPU (default 0)")
    parser.add_argument("--release-table", action="store_true",
                        help="also measure with the release's codes and distance: raw features and raw codewords")
    parser.add_argument("--query", type=number(int, 0), metavar="ROW",
                        help="row of the query to draw, counted from 0 (default: drawn by the seed)")
    parser.add_argument("--no-figures", action="store_true", help="draw nothing, so that matplotlib is not needed")
    add_options(parser)
    return parser.parse_args()


def main():
    options = parse_arguments()
    figures = None
    if not options.no_figures:
        from retrieval import figures
    from gpq import graphs
    from models.session import device_name
    from retrieval import index

    # ------------------------------------------------ features
    config, folder = config_of(options), options.root / options.data
    m = config.n_book
    checkpoint = graphs.find_checkpoint(options.checkpoint)
    split = data.load_split(folder, options.labelled_per_class, options.images, options.seed)
    shown = shown_query(options.query, len(split.query), options.seed)
    encoder = graphs.Encoder(checkpoint, config, len(split.class_names),
                             device_name(options.gpu, lambda line: print(f"warning: {line}")))
    raw_queries = encoder.features(split.query.images, "encoding queries")
    raw_database = encoder.features(split.database.images, "encoding the database")
    queries, database = intra_normalize(raw_queries, m), intra_normalize(raw_database, m)

    # ------------------------------------------------ codes and rankings
    # Z' of training ranks better than intra(Z): 0.236 and 0.222 on a fifth of CIFAR-10 after 120 small steps
    soft, plain = encoder.soft_codebooks(config.alpha), intra_normalize(encoder.codebooks, m)
    codes = hard_codes(database, soft, m)
    rankings = {"codes, Z'": by_codes(queries, codes, soft),
                "codes, intra(Z)": by_codes(queries, hard_codes(database, plain, m), plain)}
    if options.release_table:
        rankings["release's table"] = by_codes(raw_queries, hard_codes(raw_database, plain, m), encoder.codebooks)
    rankings["features"] = lambda rows: queries[rows] @ database.T
    rankings["random"] = lambda rows: metrics.random_scores(range(len(queries))[rows], len(database), options.seed)

    # ------------------------------------------------ mAP
    results = {}
    for name, score in rankings.items():
        began = time.perf_counter()
        with counting(score, len(queries), f"ranking by {name}") as counted:
            results[name] = mean_average_precision(
                counted, split.query.labels, split.database.labels, len(split.class_names))
        print(f"{name}: mAP {results[name]:.4f}, duration: {time.perf_counter() - began:.2f} sec.")
    used = [len(np.unique(column)) for column in codes.T]  # codewords of each codebook that some image uses
    print(f"\n{len(queries)} queries, {len(database)} database images, {config.bits} bits\n{'':16}{'mAP':>8}")
    for name, value in results.items():
        print(f"{name:16}{value:8.4f}")
    print(f"codewords of each codebook in use, of {config.codewords}: {' '.join(map(str, used))}\n")
    write_json(checkpoint.with_name("metrics.json"), {
        "checkpoint": str(checkpoint), "bits": config.bits, "queries": len(queries),
        "database_images": len(database), "map": results, "codewords_used": used})

    # ------------------------------------------------ the index: scores are M less the distances
    labels = one_hot(split.database.labels, len(split.class_names))
    engine = index.save(checkpoint.with_name("index"), index.Content(
        codes=codes, codebooks=by_segment(soft, m), images=split.database.names,
        tag_names=[], tag_embeddings=np.empty((0, config.length), np.float32),
        labels=labels, label_names=split.class_names,
        facts={"made_by": "gpq.demo", "checkpoint": str(checkpoint), "images": os.path.realpath(folder),
               "seed": options.seed,
               "checkpoint_sha256": fingerprint(checkpoint.with_name(f"{checkpoint.name}.data-00000-of-00001"))}))

    # ------------------------------------------------ figures
    if figures:
        scores, rows = engine.search(queries[shown:shown + 1], SHOWN_RESULTS)
        figures.ranking_figure(checkpoint.with_name("ranking.png"), [ranking(split, shown, rows[0], scores[0])])
        figures.tsne_figure(checkpoint.with_name("tsne.png"), database, labels, split.class_names, options.seed)
    print(f"saved the metrics, the index{' and the figures' if figures else ''} in {checkpoint.parent}.")


def shown_query(row, queries, seed):
    """The row of the query to draw, of so many `queries`; one drawn by the seed if `row` is None.

    Raises UserError if there is no such row.
    """
    if row is None:
        return int(stream(seed, "shown query").integers(queries))
    if row >= queries:
        raise UserError(f"--query: expected a row from 0 to {queries - 1}, found {row}")
    return row


def by_codes(queries, codes, codebooks):
    """A function of a slice of `queries`, float32 (Q, M·D), that returns their scores of `codes`, uint8 (N, M)."""
    return lambda rows: -distances(queries[rows], codes, codebooks)


def ranking(split, query, rows, scores):
    """A row of `figures.ranking_figure`: a query and its first results, which are rows of the database, best first."""
    label, images, names = split.query.labels[query], split.database, split.class_names
    results = [(images.images[row], f"{names[images.labels[row]]} {score:.2f}", bool(images.labels[row] == label))
               for row, score in zip(rows, scores, strict=True)]
    return split.query.images[query], names[label], results


if __name__ == "__main__":
    run_program(main)
