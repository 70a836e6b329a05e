"""The quantizer: codes by ICM, reconstructions and scores, in NumPy (sections 6 and 7 of the method).

Letters: N images, D = 300, M codebooks, K = 256, S the semantic factor. Codebooks are `codebooks`, float32 (M, K, D);
files stack them as `C`, (M·K, D). Codes are uint8 (N, M): one byte for each codebook. An image's reconstruction is
q = Σ_m codebooks[m, code_m].
"""
import numpy as np

from util import progress

CODEWORDS = 256  # K
SCORED_AT_ONCE = 4096  # images, whose scores of some queries stay in the processor's cache
SWEEPS = 3  # of ICM over all codebooks


def semantic_factor(tag_embeddings):
    """S with ‖x Wᵀ‖ = ‖x S‖ for every x: the transposed QR factor of W.

    Distances to all T tags become plain Euclidean ones, so T drops out. (Not Cholesky: WᵀW is singular for T < D.)

    Args:
        tag_embeddings: W, (T, D).
    Returns:
        S, float32 (D, D'), where D' = min(T, D).
    """
    return np.linalg.qr(tag_embeddings.astype(np.float64), mode="r").T.astype(np.float32)


def icm_encode(embeddings, codebooks, factor, orders):
    """Codes of images by iterated conditional modes from zero; a codebook not yet visited contributes nothing.

        code_m ← argmin_k ‖(r − Σ_{l≠m} C_l[code_l] − C_m[k]) Wᵀ‖²

    Args:
        embeddings: r, float32 (N, D).
        codebooks: float32 (M, K, D).
        factor: S of `semantic_factor`.
        orders: the codebooks in the order of their visits, int (sweeps, M).
    Returns:
        uint8 (N, M).
    """
    codewords = codebooks @ factor  # (M, K, D')
    squares = np.square(codewords).sum(-1)  # (M, K)
    rest = embeddings @ factor  # (N, D'), what the chosen codewords leave of r
    codes = np.zeros((len(embeddings), len(codebooks)), np.uint8)
    visited = np.zeros(len(codebooks), bool)
    for m in np.ravel(orders):
        if visited[m]:
            rest += codewords[m][codes[:, m]]
        codes[:, m] = (squares[m] - 2 * rest @ codewords[m].T).argmin(1)
        rest -= codewords[m][codes[:, m]]
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


# ---------------------------------------------------------------- scores

def quantized_scores(queries, codes, codebooks):
    """Inner products of queries with reconstructions, q · Σ_m codebooks[m, code_m], float32 (Q, N).

    Images of equal code get equal scores to the last bit, whatever their row.

    Args:
        queries: float32 (Q, D).
        codes: uint8 (N, M).
        codebooks: float32 (M, K, D).
    """
    return sum_tables(codebooks @ queries.T, codes)


def product_scores(queries, codes, codebooks):
    """The same of product quantization, where codebook m stands for segment m of a vector: float32 (Q, N).

    Args:
        queries: float32 (Q, M·D), M segments of length D.
        codes, codebooks: as above.
    """
    segments = queries.reshape(len(queries), len(codebooks), -1)  # (Q, M, D)
    return sum_tables(codebooks @ segments.transpose(1, 2, 0), codes)


def sum_tables(tables, codes):
    """Σ_m tables[m, code_m], added in the order of the codebooks: float32 (Q, N).

    Args:
        tables: inner products of all codewords with the queries, float32 (M, K, Q).
        codes: uint8 (N, M), below K.
    """
    scores = np.empty((tables.shape[2], len(codes)), np.float32)
    for start in range(0, len(codes), SCORED_AT_ONCE):
        columns = codes[start:start + SCORED_AT_ONCE].T.astype(np.intp)  # (M, n)
        total = tables[0].take(columns[0], 0)  # (n, Q): all queries at once, so a look-up copies a whole row
        found = np.empty_like(total)
        for table, column in zip(tables[1:], columns[1:], strict=True):
            total += table.take(column, 0, out=found, mode="wrap")  # the one mode that copies straight into `out`
        scores[:, start:start + len(total)] = total.T
    return scores
