"""Learning the codebooks, in NumPy: random ones, k-means, the closed-form update (section 7 of the method), and fitting
them to embeddings that no longer change.

Letters as in quantizer.py: N images, D = 300, M codebooks of K = 256 codewords, float32 (M, K, D).
"""
import warnings
from functools import partial

import numpy as np
import scipy.linalg
import scipy.sparse
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from quantization.neighbourhoods import averages, neighbourhoods
from quantization.quantizer import CODEWORDS, local_search, query_factor
from util import DIMENSIONS, progress, sample, stream

RIDGE = 0.001  # keeps HᵀH invertible in the closed-form update
LEAST_SQUARED_NORM = 1e-8  # an updated codeword below it keeps its old value
RELEASED_KMEANS = partial(MiniBatchKMeans, batch_size=100, n_init=3)
FIT_ROUNDS = 12  # updates of the codes, then of the codebooks
FIT_IMAGES = 50_000  # that codebooks are fitted to at most, about 200 a codeword


def random_codebooks(codebooks, rng):
    """The codebooks before the first update, uniform in [−1, 1): float32 (M, K, D) for M = `codebooks`."""
    return rng.uniform(-1, 1, (codebooks, CODEWORDS, DIMENSIONS)).astype(np.float32)


def initial_codebooks(embeddings, codebooks, rng, make=RELEASED_KMEANS):
    """Codebooks from k-means on slices: codebook m knows only columns [m·⌊D/M⌋, (m+1)·⌊D/M⌋) at first.

    With fewer than K images there are as many centres as images; the other codewords keep their values.

    Args:
        embeddings: float32 (N, D).
        codebooks: what to keep from, float32 (M, K, D); not written to.
        make: k-means of scikit-learn, from the number of centres and `random_state`; the release's by default.
    Returns:
        float32 (M, K, D).
    """
    width = DIMENSIONS // len(codebooks)
    centres = min(CODEWORDS, len(embeddings))
    codebooks = codebooks.copy()
    for m, codebook in enumerate(codebooks):
        columns = slice(m * width, (m + 1) * width)
        kmeans = make(centres, random_state=int(rng.integers(2**31)))
        with threadpool_limits(1), warnings.catch_warnings():  # one thread sums in one order, on any machine
            warnings.simplefilter("ignore", ConvergenceWarning)  # of equal images
            kmeans.fit(embeddings[:, columns])
        codebook[:centres] = 0
        codebook[:centres, columns] = kmeans.cluster_centers_
    return codebooks


def update_codebooks(embeddings, codes, codebooks):
    """The closed form C = (HᵀH + 0.001·I)⁻¹ HᵀE for one-hot codes H and embeddings E, float32 (M, K, D).

    A codeword that comes out as zero, being in no image's code, keeps its value from `codebooks`.
    """
    n, m = codes.shape
    columns = codes + CODEWORDS * np.arange(m)  # (N, M), positions of the ones in H
    hot = scipy.sparse.csr_array((np.ones(n * m), columns.ravel(), np.arange(n + 1) * m),
                                 shape=(n, m * CODEWORDS))
    gram = (hot.T @ hot).toarray() + RIDGE * np.eye(m * CODEWORDS)  # (M·K, M·K)
    solved = scipy.linalg.solve(gram, hot.T @ embeddings.astype(np.float64), assume_a="pos")
    solved = solved.reshape(codebooks.shape)
    used = np.square(solved).sum(-1, keepdims=True) >= LEAST_SQUARED_NORM
    return np.where(used, solved, codebooks).astype(np.float32)


def final_fit(embeddings, codebooks, seed):
    """Codebooks fitted to embeddings of length 1, float32 (N, D), that no longer change.

    Returns the codebooks, float32 (M, K, D) for M = `codebooks`; S of the distances in which codes are found, float32
    (D, D); and the neighbourhoods whose averages codes represent, [anchors (A, D), β (1,)].
    """
    neighbours = neighbourhoods(embeddings, stream(seed, "anchors"))
    vectors = averages(sample(embeddings, FIT_IMAGES, stream(seed, "fit sample")), neighbours)
    factor = query_factor(vectors)
    return fit_codebooks(vectors, codebooks, stream(seed, "final fit"), factor), factor, neighbours


def fit_codebooks(vectors, codebooks, rng, factor=None):
    """Codebooks that approximate vectors which no longer change: float32 (M, K, D).

    They begin with k-means on slices. Then codes, by ICM from those before, and codebooks, in closed form, are updated
    alternately.

    Args:
        vectors: float32 (N, D).
        codebooks (int): M.
        factor: S, (D, D), of the distance ‖x S‖ in which codes are found, or None for the plain one. The closed form is
            the same in both.
    """
    fitted = initial_codebooks(vectors, np.zeros((codebooks, CODEWORDS, DIMENSIONS), np.float32), rng,
                               make=partial(KMeans, n_init=1, max_iter=25, init="random"))
    codes = None
    for _ in progress(range(FIT_ROUNDS), desc="fitting the codebooks", leave=False):
        codes = local_search(vectors, fitted, rng, codes, rounds=0, factor=factor)
        fitted = update_codebooks(vectors, codes, fitted)
    return fitted
