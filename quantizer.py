"""The quantizer: codes by ICM, reconstructions and scores, in NumPy (sections 6 and 7 of the method).

Letters: N images, D = 300, M codebooks, K = 256. Codebooks are `codebooks`, float32 (M, K, D); files stack
them as `C`, (M·K, D). Codes are uint8 (N, M): one byte for each codebook. An image's reconstruction is
q = Σ_m codebooks[m, code_m].
"""
import numpy as np

from util import progress

CODEWORDS = 256  # K
SWEEPS = 3  # of ICM over all codebooks


def semantic_factor(tag_embeddings):
    """L with ‖x Wᵀ‖ = ‖x L‖ for every x: the transposed QR factor of W.

    Distances to all T tags become plain Euclidean ones, so T drops out. (Not Cholesky: WᵀW is singular for T < D.)

    Args:
        tag_embeddings: W, (T, D).
    Returns:
        L, float32 (D, min(T, D)).
    """
    return np.linalg.qr(tag_embeddings.astype(np.float64), mode="r").T.astype(np.float32)


def icm_encode(embeddings, codebooks, factor, orders):
    """Codes of images by iterated conditional modes from zero; a codebook not yet visited contributes nothing.

        code_m ← argmin_k ‖(r − Σ_{l≠m} C_l[code_l] − C_m[k]) Wᵀ‖²

    Args:
        embeddings: r, float32 (N, D).
        codebooks: float32 (M, K, D).
        factor: L of `semantic_factor`.
        orders: the codebooks in the order of their visits, int (sweeps, M).
    Returns:
        uint8 (N, M).
    """
    words = codebooks @ factor  # (M, K, D')
    squares = np.square(words).sum(-1)  # (M, K)
    rest = embeddings @ factor  # (N, D'), what the chosen codewords leave of r
    codes = np.zeros((len(embeddings), len(codebooks)), np.uint8)
    visited = np.zeros(len(codebooks), bool)
    for m in np.ravel(orders):
        if visited[m]:
            rest += words[m][codes[:, m]]
        codes[:, m] = (squares[m] - 2 * rest @ words[m].T).argmin(1)
        rest -= words[m][codes[:, m]]
        visited[m] = True
    return codes


def encode(embeddings, codebooks, factor, rng, chunk):
    """ICM codes, uint8 (N, M); the visiting order is drawn anew for each sweep and each `chunk` images."""
    def orders():
        return [rng.permutation(len(codebooks)) for _ in range(SWEEPS)]
    starts = progress(range(0, len(embeddings), chunk), desc="encoding", leave=False)
    return np.concatenate([icm_encode(embeddings[start:start + chunk], codebooks, factor, orders())
                           for start in starts])


def reconstruct(codes, codebooks):
    """q = Σ_m codebooks[m, code_m], float32 (N, D)."""
    total = codebooks[0][codes[:, 0]]
    for m in range(1, len(codebooks)):
        total += codebooks[m][codes[:, m]]
    return total


def quantized_scores(queries, codes, codebooks):
    """Inner products of queries with reconstructions, from tables of M·K numbers a query: float32 (Q, N).

    Images of equal code get equal scores to the last bit, whatever their row.

    Args:
        queries: float32 (Q, D); (Q, M·D) for product quantization, where codebook m meets segment m of a query.
        codes: uint8 (N, M).
        codebooks: float32 (M, K, D).
    """
    d = codebooks.shape[2]
    parts = queries.reshape(len(queries), queries.shape[1] // d, d)  # (Q, 1 or M, D)
    tables = (codebooks @ parts.transpose(1, 2, 0)).transpose(2, 0, 1)  # (Q, M, K)
    columns = codes.T.astype(np.intp)  # (M, N)
    scores = np.empty((len(queries), len(codes)), np.float32)
    for query, query_tables in enumerate(np.ascontiguousarray(tables)):
        scores[query] = sum(table.take(column) for table, column in zip(query_tables, columns, strict=True))
    return scores
