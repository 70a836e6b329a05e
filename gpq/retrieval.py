"""Codes, distances from look-up tables and mAP, in NumPy.

Letters: Q queries, N database images, M segments (codebooks), K codewords, D dimensions of a codeword, L classes.
"""
import numpy as np

from quantization import quantizer
from retrieval import metrics
from util import unit_length

ENCODED_AT_ONCE = 4096  # images; encoding takes about 4·M·K bytes for each


# ---------------------------------------------------------------- codebooks

def _segments(x, n_book):
    return x.reshape(len(x), n_book, -1)


def intra_normalize(x, n_book):
    """intra(x): each segment of each row L2-normalised on its own, float32 (n, M·D)."""
    return unit_length(_segments(x, n_book)).reshape(x.shape)


def soft_codebooks(prototypes, codebooks, n_book, alpha):
    """Z' of training: each codeword of Z expressed in the prototypes, float32 (K, M·D).

    Args:
        prototypes: of the classes, raw, float32 (L, M·D).
        codebooks: Z, raw, float32 (K, M·D).
        alpha: α, how hard the assignment is.
    """
    p, z = _segments(intra_normalize(prototypes, n_book), n_book), _segments(codebooks, n_book)
    logits = alpha * (np.einsum("ksd,csd->ksc", z, p) - 1)  # (K, M, L)
    weights = np.exp(logits - logits.max(2, keepdims=True))
    weights /= weights.sum(2, keepdims=True)
    return intra_normalize(np.einsum("ksc,csd->ksd", weights, p).reshape(codebooks.shape), n_book)


def hard_codes(features, codebooks, n_book):
    """The codeword with the largest inner product in each segment, uint8 (N, M); on ties the first.

    Args:
        features: float32 (N, M·D); the lengths of their segments do not matter.
        codebooks: float32 (K, M·D).
    """
    codewords = _segments(codebooks, n_book).transpose(1, 2, 0)  # (M, D, K)
    codes = np.empty((len(features), n_book), np.uint8)
    for start in range(0, len(features), ENCODED_AT_ONCE):
        rows = slice(start, start + ENCODED_AT_ONCE)
        parts = _segments(features[rows], n_book).transpose(1, 0, 2)  # (M, n, D)
        codes[rows] = (parts @ codewords).argmax(2).T
    return codes


# ---------------------------------------------------------------- distances and mAP

def by_segment(codebooks, n_book):
    """Codebooks (K, M·D) in the layout of quantizer.py and index.py, float32 (M, K, D)."""
    return np.ascontiguousarray(_segments(codebooks, n_book).transpose(1, 0, 2))


def distances(queries, codes, codebooks):
    """Σ_m (1 − x_m·Z_m[code_m]), float32 (Q, N).

    Args:
        queries: x, float32 (Q, M·D).
        codes: uint8 (N, M).
        codebooks: Z, float32 (K, M·D).
    """
    n_book = codes.shape[1]
    return n_book - quantizer.product_scores(queries, codes, by_segment(codebooks, n_book))


def one_hot(labels, classes):
    """0/1 labels in the layout of metrics.py and index.py, uint8 (N, L), of classes, int (N,)."""
    return np.eye(classes, dtype=np.uint8)[labels]


def mean_average_precision(score, query_labels, database_labels, classes):
    """mAP over the whole database: AP is the mean precision at the ranks of relevant images, 0 if there are none.

    Args:
        score: function of a slice of queries that returns their scores, float32 (queries, N). The largest is ranked
            first; on ties the lower row.
        query_labels: int (Q,), less than `classes`.
        database_labels: int (N,).
    """
    quality = metrics.evaluate(score, one_hot(query_labels, classes), one_hot(database_labels, classes),
                               len(database_labels))
    answered = len(query_labels) - quality.left_out  # `evaluate` leaves out queries without relevant images
    return quality.map * answered / len(query_labels) if answered else 0.0
