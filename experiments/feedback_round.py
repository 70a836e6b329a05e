"""One round of simulated feedback, as feedback.py asks: the page's rule, on queries whose labels tell what is right.

Letters: N images of the database, Q queries, D = 300.
"""
import numpy as np

import metrics
import quantizer
from retrieval.answers import rocchio
from retrieval.index import normalise
from storage.retrieval_file import read_content
from util import progress

MARKED = (5, 10, 20)


def compare(options):
    """Print MAP before and after, for each number of results that are marked."""
    content = read_content(options.retrieval)
    print("marked  right  MAP before  MAP after")
    for marked in options.marked or MARKED:
        right, before, after = measure(content, marked)
        print(f"{marked:6}  {right:5.1f}  {before:10.4f}  {after:9.4f}", flush=True)


def measure(content, marked):
    """The mean number of results marked as right, and MAP without and with the marks, over the images not marked.

    Args:
        content: a Retrieval.
        marked: results of a query that are marked as right or wrong.
    """
    reconstructions = normalise(quantizer.reconstruct(content.db_codes, content.codebooks))  # (N, D), as the page has
    relevant = content.qry_label.astype(np.float32) @ content.db_label.T.astype(np.float32) > 0  # (Q, N)
    found = []
    for query, wanted in zip(progress(content.queries, desc="queries", leave=False), relevant, strict=True):
        first = scores_of(query, content)
        shown = np.argsort(-first, kind="stable")[:marked]
        rest = np.setdiff1d(np.arange(len(first)), shown)
        if not wanted[rest].any():
            continue  # nothing is left to be found
        moved = rocchio(query, reconstructions[shown[wanted[shown]]], reconstructions[shown[~wanted[shown]]])
        found.append([wanted[shown].sum(), *(average_precision(scores[rest], wanted[rest])
                                             for scores in (first, scores_of(moved, content)))])
    return np.mean(found, 0)


def average_precision(scores, wanted):
    """Of one ranking of n images, all of which count."""
    sums, hits = metrics.average_precision(wanted[metrics.rank(scores[None], len(scores))])
    return sums[0] / hits[0, -1]


def scores_of(query, content):
    """Scores of a query, float32 (D,), with all images of the database, float32 (N,)."""
    return quantizer.quantized_scores(query[None], content.db_codes, content.codebooks)[0]
