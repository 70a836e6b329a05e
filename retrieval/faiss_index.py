"""FAISS's side of an index: engines that hold its codes, search in them, and their files. FAISS may be missing.

Its product quantizer computes q · Σ_m codebooks[m, code_m] for the query q repeated M times. Of GPQ, each codebook
stands for a segment of the query, which is a product quantizer as it is. An engine scans all codes, or has them sorted
into inverted lists of images that lie near each other, of which a query looks into some.

Letters as in index.py.
"""
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from quantization import quantizer
from retrieval.manifest import check_codes
from storage.files import naming
from util import UserError, cores, one_line, progress

try:
    import faiss
except ImportError:  # optional: requirements-search.txt
    faiss = None

SAMPLED = 64  # images an inverted list, from which its centre is learned
SWEEPS = 10  # of k-means
BLOCK = 2**22  # images that are sorted into inverted lists, or compared, at once
QUERIES_AT_ONCE = 32  # that one thread takes to FAISS; a fixed number, since the size of a batch and its threads round
MOST_TIED = 16  # times the results that are wanted: so many images are put in order if they tie for the last place


# ---------------------------------------------------------------- searching

def search(engine, queries, topk, probes):
    """Scores, float32 (Q, topk), and rows, int64 (Q, topk), as `Index.search` gives them.

    Scores are the same to the last bit, whatever the number of threads and whatever other rows are there.
    If over MOST_TIED·topk images tie for the last place, any of them may have it.
    """
    options = {}
    if isinstance(engine, faiss.IndexIVF):
        options["params"] = faiss.SearchParametersIVF(nprobe=min(probes, engine.nlist))
    queries = np.tile(queries, (1, engine.d // queries.shape[1]))  # repeated M times; of GPQ once
    if len(queries) == 1:
        return _ask_faiss(engine, queries, topk, options)
    with ThreadPoolExecutor(faiss.omp_get_max_threads(), initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        found = pool.map(lambda start: _ask_faiss(engine, queries[start:start + QUERIES_AT_ONCE], topk, options),
                         range(0, len(queries), QUERIES_AT_ONCE))
        scores, rows = zip(*found, strict=True)
    return np.concatenate(scores), np.concatenate(rows)


def _ask_faiss(engine, queries, topk, options):
    """FAISS keeps any of the images that tie for the last place, so where it cuts a tie it is asked again, for more.

    All queries are, since the size of a batch rounds.
    """
    scores, rows = engine.search(queries, min(topk + 1, engine.ntotal), **options)
    if topk < engine.ntotal and ((scores[:, -1] == scores[:, topk - 1]) & (rows[:, -1] >= 0)).any():
        scores, rows = engine.search(queries, min(MOST_TIED * topk, engine.ntotal), **options)
    return best_first(scores, rows, topk)


def best_first(scores, rows, topk):
    """The `topk` best of each query's (Q, n) scores and rows, n >= topk; of equal scores the lower row comes first."""
    order = np.lexsort((rows, -scores), axis=1)[:, :topk]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


# ---------------------------------------------------------------- engines

def make(codes, codebooks, inverted_lists, seed):
    """The engine of some codes, or None without FAISS. Raises UserError for inverted lists that cannot be made."""
    if faiss is None:
        if inverted_lists:
            raise UserError("inverted lists need FAISS: pip install -r requirements-search.txt")
        return None
    if inverted_lists > len(codes):
        raise UserError(f"expected at most as many lists as images, found {inverted_lists} lists and {len(codes)} "
                        "images")
    if inverted_lists:
        return inverted_engine(codes, codebooks, inverted_lists, seed)
    return flat_engine(codes, codebooks)


def flat_engine(codes, codebooks):
    """FAISS's index that scans all codes. It holds the codes as they are: nothing is encoded by another rule."""
    check_codes(codes, codebooks)
    m, codewords, d = codebooks.shape
    bits = codewords.bit_length() - 1
    engine = faiss.IndexPQ(m * d, m, bits, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(codebooks.astype(np.float32).ravel(), engine.pq.centroids)
    engine.is_trained = True
    engine.add_sa_codes(_packed(codes, bits))
    return engine


def _packed(codes, bits):
    """Codes as FAISS holds them: of `bits` bits each, one behind the other."""
    return np.ascontiguousarray(codes if bits == 8 else faiss.pack_bitstrings(codes.astype(np.int32), bits))


def inverted_engine(codes, codebooks, inverted_lists, seed):
    """FAISS's index with the codes sorted into `inverted_lists` lists, of which a query looks into some.

    Lists are those of k-means on reconstructions. A list's centre c is repeated M times over M, since a query repeated
    M times then gives q · c, the mean score of the list's images.
    """
    check_codes(codes, codebooks)
    m, _, d = codebooks.shape
    rng = np.random.default_rng(seed)
    sample = codes[np.sort(rng.permutation(len(codes))[:SAMPLED * inverted_lists])]
    kmeans = faiss.Kmeans(d, inverted_lists, niter=1, seed=seed, max_points_per_centroid=SAMPLED,
                          min_points_per_centroid=1)
    reconstructed = quantizer.reconstruct(sample, codebooks)
    for _ in progress(range(SWEEPS), desc="learning the lists' centres"):
        kmeans.train(reconstructed, init_centroids=kmeans.centroids)
    centres = kmeans.centroids  # (inverted lists, D)
    coarse = faiss.IndexFlatIP(m * d)
    coarse.add(np.tile(centres, (1, m)) / m)
    engine = empty_inverted_lists(coarse, codebooks)
    with progress(total=len(codes), desc="sorting codes into lists", unit="image") as bar:
        for start in range(0, len(codes), BLOCK):
            block = np.ascontiguousarray(codes[start:start + BLOCK])
            add_to_inverted_lists(engine, block, nearest_centres(block, codebooks, centres), start)
            bar.update(len(block))
    return engine


def nearest_centres(codes, codebooks, centres):
    """The centre c that is nearest to each image's reconstruction q, so that q·c − ‖c‖²/2 is largest, int64 (N,).

    q·c is the sum of M inner products of a codeword and a centre: M additions in place of D multiplications. In the
    order of their codes, equal images are summed once, and those that differ in the last byte share the rest.

    Args:
        codes: uint8 (N, M), N > 0; codebooks: float32 (M, K, D); centres: float32 (inverted lists, D).
    """
    tables = codebooks @ centres.T  # (M, K, inverted lists)
    tables[-1] -= np.square(centres).sum(1) / 2
    m = codes.shape[1]
    keys = np.zeros((len(codes), 8), np.uint8)
    keys[:, :m] = codes
    keys, image = np.unique(keys.view(">u8")[:, 0], return_inverse=True)
    unique = keys[:, None].view(np.uint8)[:, :m]  # (U, M), sorted
    parts = np.array_split(unique, cores())
    with ThreadPoolExecutor(cores()) as pool:
        return np.concatenate(list(pool.map(lambda part: _nearest_of_sorted(part, tables), parts)))[image]


def _nearest_of_sorted(codes, tables):
    nearest = np.empty(len(codes), np.int64)
    first, sums = None, np.empty(tables.shape[2], np.float32)
    for row, (*code, last) in enumerate(codes.tolist()):
        if code != first:
            first, shared = code, tables[range(len(code)), code].sum(0)
        nearest[row] = np.add(shared, tables[-1, last], out=sums).argmax()
    return nearest


def empty_inverted_lists(coarse, codebooks):
    """FAISS's index without codes, with a list for each centre in FAISS's index `coarse`, which it shares."""
    m, _, d = codebooks.shape
    engine = faiss.IndexIVFPQ(coarse, m * d, coarse.ntotal, m, 8, faiss.METRIC_INNER_PRODUCT)
    engine.by_residual = False
    faiss.copy_array_to_vector(codebooks.astype(np.float32).ravel(), engine.pq.centroids)
    engine.is_trained = True
    return engine


def add_to_inverted_lists(engine, codes, assigned, first_row):
    """Put codes, uint8 (n, M), into the lists that they are `assigned` to, int64 (n,), under rows from `first_row`."""
    order = np.argsort(assigned, kind="stable")
    codes, rows = codes[order], order + first_row
    numbers, starts = np.unique(assigned[order], return_index=True)
    for number, start, end in zip(numbers, starts, [*starts[1:], len(codes)], strict=True):
        ids, part = np.ascontiguousarray(rows[start:end]), np.ascontiguousarray(codes[start:end])
        engine.invlists.add_entries(int(number), len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(part))
    engine.ntotal += len(codes)


# ---------------------------------------------------------------- files

def write(engine, temporary, path):
    """Write an engine to `temporary`, which is to become `path`. Raises UserError, naming `path`, of a full disk."""
    with naming(path), open(temporary, "wb") as file:
        faiss.write_index(engine, faiss.PyCallbackIOWriter(file.write))


def open_mapped(path):
    """The engine in a file, which stays on the disk and is read as it is used. Raises UserError for another file."""
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"{path}: expected an index of FAISS, found something else ({one_line(error)})") from None


def read(path, codes, codebooks, inverted_lists):
    """The engine in a file, as `open_mapped` gives it. Raises UserError unless it is the one of just these codes."""
    engine = open_mapped(path)
    if what := _other_settings(engine, codebooks, inverted_lists):
        raise UserError(f"{path}: expected FAISS's index of these codebooks and {inverted_lists} inverted lists, found "
                        f"another {what}")
    holds_codes = _inverted_lists_hold if inverted_lists else _flat_holds
    if engine.ntotal != len(codes) or not holds_codes(engine, codes):
        raise UserError(f"{path}: expected the {len(codes):,} codes of this index, found others")
    return engine


def _other_settings(engine, codebooks, inverted_lists):
    """What of an engine is not as `make` sets it, in words, or None."""
    m, codewords, d = codebooks.shape
    kind = faiss.IndexIVFPQ if inverted_lists else faiss.IndexPQ
    if type(engine) is not kind:
        return f"kind ({type(engine).__name__})"
    pq = engine.pq
    if (engine.d, pq.d, pq.M, 2**pq.nbits, engine.metric_type) != (m * d, m * d, m, codewords,
                                                                   faiss.METRIC_INNER_PRODUCT):
        return "shape or metric"
    if not np.array_equal(faiss.vector_to_array(pq.centroids), codebooks.ravel()):
        return "set of codewords"
    if not inverted_lists:
        return None if (engine.search_type, engine.is_trained) == (faiss.IndexPQ.ST_PQ, True) else "kind of search"
    coarse = faiss.downcast_index(engine.quantizer)
    if (engine.nlist, coarse.ntotal, coarse.d, coarse.metric_type) != (inverted_lists, inverted_lists, m * d,
                                                                       faiss.METRIC_INNER_PRODUCT):
        return "number of inverted lists, or their centres"
    if type(coarse) is not faiss.IndexFlatIP or not np.isfinite(faiss.vector_to_array(coarse.codes)
                                                                .view(np.float32)).all():
        return "kind of centres"
    if engine.by_residual or type(faiss.downcast_InvertedLists(engine.invlists)) is not faiss.ArrayInvertedLists:
        return "kind of inverted lists"
    return None if (engine.invlists.nlist, engine.invlists.code_size) == (inverted_lists, m) else "shape"


def _flat_holds(engine, codes):
    size = engine.code_size
    if engine.codes.size() != len(codes) * size:
        return False
    held = faiss.rev_swig_ptr(engine.codes.data(), len(codes) * size).reshape(-1, size)
    return all(np.array_equal(held[start:start + BLOCK], _packed(codes[start:start + BLOCK], engine.pq.nbits))
               for start in range(0, len(codes), BLOCK))


def _inverted_lists_hold(engine, codes):
    """Whether each row is in one list, once, with its code."""
    seen = np.zeros(len(codes), bool)
    total = 0
    for number in range(engine.nlist):
        size = engine.invlists.list_size(number)
        if not size:
            continue
        rows = faiss.rev_swig_ptr(engine.invlists.get_ids(number), size)
        held = faiss.rev_swig_ptr(engine.invlists.get_codes(number), size * codes.shape[1]).reshape(size, -1)
        if rows.min() < 0 or rows.max() >= len(codes) or not np.array_equal(held, codes[rows]):
            return False
        seen[rows] = True
        total += size
    return total == len(codes) and seen.all()
