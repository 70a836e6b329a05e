"""The quantizer: codes by ICM, reconstructions and scores, in NumPy (sections 6 and 7 of the method).

Letters: N images, D = 300, M codebooks, K = 256, S the semantic factor, or that of queries. Codebooks are `codebooks`,
float32 (M, K, D); files stack them as `C`, (M·K, D). Codes are uint8 (N, M): one byte for each codebook. An image's
reconstruction is q = Σ_m codebooks[m, code_m].
"""
import numpy as np

from util import progress

CODEWORDS = 256  # K
SCORED_AT_ONCE = 4096  # images, whose scores of some queries stay in the processor's cache
SWEEPS = 3  # of ICM over all codebooks
QUERY_POWER = 0.125  # of the second moment, in the distances of fitted codebooks
SEARCH_ROUNDS = 16  # of local search: more lower the error by less than a hundredth
SEARCHED_AT_ONCE = 1024  # vectors, whose products with all codewords stay in memory


def semantic_factor(tag_embeddings):
    """S with ‖x Wᵀ‖ = ‖x S‖ for every x: the transposed QR factor of W.

    Distances to all T tags become plain Euclidean ones, so T drops out. (Not Cholesky: WᵀW is singular for T < D.)

    Args:
        tag_embeddings: W, (T, D).
    Returns:
        S, float32 (D, D'), where D' = min(T, D).
    """
    return np.linalg.qr(tag_embeddings.astype(np.float64), mode="r").T.astype(np.float32)


def query_factor(vectors):
    """S in whose distances ‖x S‖ the codes of fitted codebooks are found: Σ^⅛ of the second moment Σ = E[x xᵀ].

    Queries are distributed as the vectors, so an error e of a reconstruction changes their scores by eᵀΣe = ‖e Σ^½‖² in
    the mean square. Σ^⅛ lies between the plain error and that of the scores, which ranks frequent tags better and rare
    ones worse: of the powers 0 to ½ it was the best for held-out tags of both kinds.

    Args:
        vectors: float32 (N, D).
    Returns:
        S, float32 (D, D), symmetric.
    """
    moment = vectors.T.astype(np.float64) @ vectors / len(vectors)  # (D, D)
    values, directions = np.linalg.eigh(moment)
    return (directions * np.maximum(values, 0) ** QUERY_POWER @ directions.T).astype(np.float32)


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
    """ICM codes, uint8 (N, M); the visiting order is drawn anew for each sweep and each `chunk` images.

    `factor`: S of `semantic_factor`.
    """
    def orders():
        return [rng.permutation(len(codebooks)) for _ in range(SWEEPS)]
    codes = np.empty((len(embeddings), len(codebooks)), np.uint8)
    for start in progress(range(0, len(embeddings), chunk), desc="encoding", leave=False):
        codes[start:start + chunk] = icm_encode(embeddings[start:start + chunk], codebooks, factor, orders())
    return codes


def local_search(vectors, codebooks, rng, codes=None, rounds=SEARCH_ROUNDS, factor=None):
    """Codes of vectors by iterated local search (Martinez et al. 2018): uint8 (N, M).

    A round changes one random codeword of each image, lets ICM settle, and keeps what is nearer than before.

    Args:
        vectors: float32 (N, D).
        codebooks: float32 (M, K, D).
        codes: to begin with, uint8 (N, M), or None: the better of two runs of ICM from zero.
        rounds (int): 0 is ICM from `codes` alone.
        factor: S, (D, D), of the distance ‖x S‖ in which they are near, or None for the plain one.
    """
    if factor is not None:
        vectors, codebooks = vectors @ factor, codebooks @ factor
    gram = codebooks[:, None] @ codebooks[None].transpose(0, 1, 3, 2)  # (M, M, K, K)
    found = np.empty((len(vectors), len(codebooks)), np.uint8)
    for start in progress(range(0, len(vectors), SEARCHED_AT_ONCE), desc="encoding", leave=False):
        part = slice(start, start + SEARCHED_AT_ONCE)
        products = np.stack([vectors[part] @ codebook.T for codebook in codebooks])  # (M, n, K)
        found[part] = _search(products, gram, rng, None if codes is None else codes[part], rounds)
    return found


def _search(products, gram, rng, codes, rounds):
    """Codes, uint8 (n, M), as `local_search` finds them.

    Args:
        products: inner products of n vectors with all codewords, float32 (M, n, K).
        gram: inner products of the codewords with one another, (M, M, K, K).
    """
    codebooks, count, _ = products.shape
    if codes is None:
        codes, cost = _settle(products, gram, rng)
        codes, cost = _nearer(codes, cost, *_settle(products, gram, rng))
    else:
        codes, cost = _settle(products, gram, rng, codes)
    for _ in range(rounds if codebooks > 1 else 0):
        changed = codes.copy()
        changed[np.arange(count), rng.integers(codebooks, size=count)] = rng.integers(CODEWORDS, size=count)
        codes, cost = _nearer(codes, cost, *_settle(products, gram, rng, changed, sweeps=2))
    return codes


def _nearer(codes, cost, others, other_cost):
    """Of two codes of each vector the one with the lower cost, uint8 (n, M), and these costs, float32 (n,)."""
    better = other_cost < cost
    return np.where(better[:, None], others, codes), np.where(better, other_cost, cost)


def _settle(products, gram, rng, codes=None, sweeps=SWEEPS):
    """ICM from `codes`, uint8 (n, M), or from zero: codes and ‖x − q‖² − ‖x‖², float32 (n,).

    Since the inner products are known, a visit takes M look-ups of K numbers, not K products of length D.
    """
    codebooks, count, _ = products.shape
    visited = np.full(codebooks, codes is not None)
    codes = np.zeros((count, codebooks), np.uint8) if codes is None else codes.copy()
    for _ in range(sweeps):
        for m in rng.permutation(codebooks):
            codes[:, m] = _costs(products, gram, codes, visited, m).argmin(1)
            visited[m] = True
    total = np.zeros(count, np.float32)
    for m in range(codebooks):
        costs = _costs(products, gram, codes, np.arange(codebooks) < m, m)
        total += costs[np.arange(count), codes[:, m]]
    return codes, total


def _costs(products, gram, codes, chosen, m):
    """What each codeword of codebook m adds to ‖x − q‖², given the codes of the codebooks `chosen`, bool (M,): float32
    (n, K)."""
    costs = np.diag(gram[m, m]) - 2 * products[m]
    for other in np.flatnonzero(chosen):
        if other != m:
            costs += 2 * gram[other, m].take(codes[:, other], 0)
    return costs


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
    """Scores of product quantization, in which codebook m represents segment m of a vector: float32 (Q, N).

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
