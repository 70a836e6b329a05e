"""Retrieval metrics as pure NumPy functions of arrays: ranking, average precision, precision and recall.

Letters: Q queries, N database images, L labels. `topk`, the number of results that count, is the K of MAP@K and of
min(R, K).
"""
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from util import cores, stream

QUERIES_AT_ONCE = 64  # of a thread; bounds the memory: 4 bytes for each of these queries and each database image
SAMPLE = 16  # one of this many scores is sampled to guess the lowest of the best ones


@dataclass(frozen=True)
class Quality:
    """How good rankings are, over the queries that have a relevant result among their `topk`.

    map (float): mean of AP = Σ precision@i · relevant_i / (relevant results among the topk): the release's.
    map_min_rk (float): the usual mean, divided by min(R, K), over all queries with relevant images in the
        database, R of them.
    precision, recall: float64 (topk,), mean curves; recall is of the relevant results among the topk.
    left_out (int): queries without a relevant result among the topk; `map` and the curves leave them out.
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
    top = np.empty((len(scores), topk), np.int64)
    for query, row in enumerate(scores):
        rows = likely_best(row, topk)
        top[query] = np.sort(sort_keys(row[rows], rows))[:topk] & 0xFFFFFFFF
    return top


def likely_best(scores, topk):
    """Ascending rows of all scores, float32 (N,), above a threshold that at least `topk` reach: int64.

    The threshold is estimated from a sample of the scores, a little too low. Where fewer than `topk` scores reach it,
    which is rare, all rows are returned.
    """
    expected = topk / SAMPLE  # scores of the sample that are among the best
    sample = scores[::SAMPLE]
    place = len(sample) - int(expected + 4 * expected**0.5 + 1)
    if place > 0:
        rows = np.flatnonzero(scores >= np.partition(sample, place)[place])
        if len(rows) >= topk:
            return rows
    return np.arange(len(scores))


def sort_keys(scores, rows):
    """Numbers that sort as scores do, best first, and of equal scores the lower row first: int64 (n,).

    The upper 32 bits are those of the score, changed so that they ascend as it falls; the lower 32 are the row.
    """
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)  # −0 becomes 0
    ascending = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (~ascending << 32) | rows


def random_scores(rows, images, seed):
    """Scores of a random order for the queries with these rows, float32 (len(rows), images).

    The scores of a query depend only on its row and the seed.
    """
    return np.stack([stream(seed, "random ranking", row).random(images, dtype=np.float32) for row in rows])


def pack_labels(labels):
    """0/1 labels (N, L) as bits, uint64 (N, ⌈L/64⌉): images share a label where the AND of their bits is not zero."""
    labels = np.asarray(labels)
    padded = np.zeros((len(labels), -(-labels.shape[1] // 64) * 64), bool)
    padded[:, :labels.shape[1]] = labels
    return np.packbits(padded, axis=1).view(np.uint64)


def count_relevant(query_bits, database_bits):
    """The number of database images that share a label with each query, int64 (Q,). Takes packed labels."""
    ordered = database_bits[np.lexsort(database_bits.T)]
    first = np.flatnonzero(np.append(True, (ordered[1:] != ordered[:-1]).any(1)))  # rows where another pattern begins
    patterns = np.ascontiguousarray(ordered[first].T)  # (⌈L/64⌉, patterns)
    counts = np.diff(np.append(first, len(ordered)))  # (patterns,)
    return np.array([counts[(patterns & bits[:, None]).any(0)].sum() for bits in query_bits], np.int64)


def average_precision(relevant):
    """Σ_i precision@i · relevant_i of each query, without a divisor, and the number of hits up to each rank.

    Args:
        relevant: bool (Q, topk), whether each result is relevant, best first.
    Returns:
        float64 (Q,) and int64 (Q, topk), the relevant results up to each rank.
    """
    hits = relevant.cumsum(1)
    precision = hits / np.arange(1, relevant.shape[1] + 1)
    return (precision * relevant).sum(1), hits


def evaluate(score, query_labels, database_labels, topk):
    """The quality of the rankings by `score`.

    Args:
        score: function from a slice of queries to their scores, float32 (queries, N); larger is better.
        query_labels: 0/1 (Q, L).
        database_labels: 0/1 (N, L).
        topk (int): results that count, at most N.
    Returns:
        Quality; map, map_min_rk and the curves are NaN where no query has a relevant result.
    """
    query_bits, database_bits = pack_labels(query_labels), pack_labels(database_labels)
    label_bits = np.ascontiguousarray(database_bits.T)  # (⌈L/64⌉, N)
    ranks = np.arange(1, topk + 1)

    def measure(start):
        queries = slice(start, start + QUERIES_AT_ONCE)
        top = rank(score(queries), topk)
        relevant = (label_bits[:, top] & query_bits[queries].T[:, :, None]).any(0)  # (n, topk)
        sums, hits = average_precision(relevant)
        found = hits[:, -1]
        answered = hits[found > 0]
        return (sums, found, (answered / ranks).sum(0),
                (answered / np.maximum(answered[:, -1:], 1)).sum(0))

    with threadpool_limits(1), ThreadPoolExecutor(cores()) as pool:  # threads share the queries, not a matrix product
        parts = list(pool.map(measure, range(0, len(query_bits), QUERIES_AT_ONCE)))
    sums, found = (np.concatenate(column) for column in list(zip(*parts, strict=True))[:2])
    precision, recall = (np.sum(column, axis=0) for column in list(zip(*parts, strict=True))[2:])
    total = count_relevant(query_bits, database_bits)
    answered, answerable = found > 0, total > 0
    return Quality(
        map=_mean(sums[answered] / found[answered]),
        map_min_rk=_mean(sums[answerable] / np.minimum(total, topk)[answerable]),
        precision=precision / answered.sum() if answered.any() else np.full(topk, np.nan),
        recall=recall / answered.sum() if answered.any() else np.full(topk, np.nan),
        left_out=int((~answered).sum()))


def _mean(values):
    return float(values.mean()) if len(values) else float("nan")
