"""Retrieval metrics as pure NumPy functions of arrays: ranking, average precision, precision and recall.

Letters: Q queries, N database images, K results a query (the `topk` of MAP@K), L labels.
"""
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from util import stream

QUERIES_AT_ONCE = 64  # bounds the memory: 8 bytes for each of these queries and each database image


@dataclass(frozen=True)
class Quality:
    """How good rankings are, over the queries that have a relevant result among their top K.

    map (float): mean of AP = Σ precision@i · relevant_i / (relevant results among the top K): the release's.
    map_min_rk (float): the usual mean, divided by min(R, K), over all queries with R > 0 in the database.
    precision, recall: float64 (K,), mean curves; recall is of the relevant results among the top K.
    left_out (int): queries without a relevant result among the top K; `map` and the curves leave them out.
    """
    map: float
    map_min_rk: float
    precision: np.ndarray
    recall: np.ndarray
    left_out: int


def rank(scores, topk):
    """Rows of the `topk` best images of each query, best first; of equal scores the lower row comes first.

    Args:
        scores: float32 (Q, N), no NaN.
    Returns:
        int64 (Q, topk).
    """
    first = scores.shape[1] - topk
    top = np.empty((len(scores), topk), np.int64)
    for query, row in enumerate(scores):
        least = np.partition(row, first)[first]  # score of the last result, which others may share
        candidates = np.flatnonzero(row >= least)
        top[query] = candidates[np.argsort(-row[candidates], kind="stable")[:topk]]
    return top


def random_scores(rows, images, seed):
    """Scores of a random order for the queries with these rows, float32 (len(rows), images).

    Those of a query depend on its row and the seed, not on which queries are asked for with it.
    """
    return np.stack([stream(seed, "random ranking", row).random(images, dtype=np.float32) for row in rows])


def pack_labels(labels):
    """0/1 labels (N, L) as bits, uint64 (N, ⌈L/64⌉), so that a shared label is a non-zero AND."""
    labels = np.asarray(labels)
    padded = np.zeros((len(labels), -(-labels.shape[1] // 64) * 64), bool)
    padded[:, :labels.shape[1]] = labels
    return np.packbits(padded, axis=1).view(np.uint64)


def count_relevant(query_bits, database_bits):
    """R, the number of database images that share a label with each query, int64 (Q,). Takes packed labels."""
    patterns, counts = np.unique(database_bits, axis=0, return_counts=True)
    return np.array([counts[(patterns & bits).any(1)].sum() for bits in query_bits], np.int64)


def average_precision(relevant):
    """Σ_i precision@i · relevant_i of each query, not yet divided, and the curve of hits.

    Args:
        relevant: bool (Q, K), whether each result is relevant, best first.
    Returns:
        float64 (Q,) and int64 (Q, K), the relevant results up to each rank.
    """
    hits = relevant.cumsum(1)
    precision = hits / np.arange(1, relevant.shape[1] + 1)
    return (precision * relevant).sum(1), hits


def evaluate(score, query_labels, database_labels, topk):
    """The quality of the rankings that `score` makes.

    Args:
        score: function of a slice of queries that gives their scores, float32 (queries, N); larger is better.
        query_labels: 0/1 (Q, L).
        database_labels: 0/1 (N, L).
        topk (int): results that count, at most N.
    Returns:
        Quality; map, map_min_rk and the curves are NaN where no query has a relevant result.
    """
    query_bits, database_bits = pack_labels(query_labels), pack_labels(database_labels)
    ranks = np.arange(1, topk + 1)

    def measure(start):
        queries = slice(start, start + QUERIES_AT_ONCE)
        top = rank(score(queries), topk)
        relevant = (database_bits[top] & query_bits[queries, None]).any(-1)  # (q, K)
        sums, hits = average_precision(relevant)
        found = hits[:, -1]
        answered = hits[found > 0]
        return (sums, found, (answered / ranks).sum(0),
                (answered / np.maximum(answered[:, -1:], 1)).sum(0))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(measure, range(0, len(query_bits), QUERIES_AT_ONCE)))
    sums, found = (np.concatenate(column) for column in list(zip(*parts, strict=True))[:2])
    precision, recall = (np.sum(column, axis=0) for column in list(zip(*parts, strict=True))[2:])
    total = count_relevant(query_bits, database_bits)  # R
    answered, answerable = found > 0, total > 0
    return Quality(
        map=_mean(sums[answered] / found[answered]),
        map_min_rk=_mean(sums[answerable] / np.minimum(total, topk)[answerable]),
        precision=precision / answered.sum() if answered.any() else np.full(topk, np.nan),
        recall=recall / answered.sum() if answered.any() else np.full(topk, np.nan),
        left_out=int((~answered).sum()))


def _mean(values):
    return float(values.mean()) if len(values) else float("nan")
