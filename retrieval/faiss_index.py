"""FAISS's part of an index: engines that hold its codes, searching them, and their files. FAISS may be missing.

Its product quantizer computes q · Σ_m codebooks[m, code_m] for the query q repeated M times. In an index of GPQ, each
codebook encodes a segment of the query, which is a product quantizer without repetition. An engine scans all codes, or
has them sorted into inverted lists of images near each other, of which a query searches some.

The letters are those of index.py.
"""
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from quantization import quantizer
from storage.files import naming
from util import UserError, cores, one_line, progress

try:
    import faiss
except ImportError:  # optional: the extra `search`
    faiss = None

SAMPLED = 64  # images for each inverted list, from which its centre is learned
SWEEPS = 10  # of k-means
BLOCK = 2**22  # images that are sorted into inverted lists at once
QUERIES_AT_ONCE = 32  # of a thread; a fixed number, since scores are rounded by the size of a batch and its threads
MOST_TIED = 16  # times topk: at most this many images are put in order if they tie for the last place


# ---------------------------------------------------------------- searching

def search(engine, queries, topk, probes):
    """Scores, float32 (Q, topk), and rows, int64 (Q, topk), as returned by `Index.search`.

    Scores are the same to the last bit, whatever the number of threads and whatever other images there are.
    If more than MOST_TIED·topk images tie for the last place, any of them may have it.
    """
    options = {}
    if isinstance(engine, faiss.IndexIVF):
        options["params"] = faiss.SearchParametersIVF(nprobe=min(probes, engine.nlist))
    queries = np.tile(queries, (1, engine.d // queries.shape[1]))  # repeated M times, for GPQ once
    if len(queries) == 1:
        return _search_batch(engine, queries, topk, options)
    with ThreadPoolExecutor(faiss.omp_get_max_threads(), initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        batches = [queries[start:start + QUERIES_AT_ONCE] for start in range(0, len(queries), QUERIES_AT_ONCE)]
        found = pool.map(lambda batch: _search_batch(engine, batch, topk, options), batches)
        scores, rows = zip(*found, strict=True)
    return np.concatenate(scores), np.concatenate(rows)


def _search_batch(engine, queries, topk, options):
    """Scores and rows of a few queries. FAISS keeps any of the images that tie for the last place, so where it cuts a
    tie, all queries are searched for again with more results: the size of a batch decides how scores are rounded."""
    scores, rows = engine.search(queries, min(topk + 1, engine.ntotal), **options)
    if topk < engine.ntotal and ((scores[:, -1] == scores[:, topk - 1]) & (rows[:, -1] >= 0)).any():
        scores, rows = engine.search(queries, min(MOST_TIED * topk, engine.ntotal), **options)
    return best_first(scores, rows, topk)


def best_first(scores, rows, topk):
    """The `topk` best of each query's scores and rows (Q, n), n >= topk; of equal scores the lower row comes first."""
    order = np.lexsort((rows, -scores), axis=1)[:, :topk]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


# ---------------------------------------------------------------- engines

def make(codes, codebooks, inverted_lists, seed):
    """The engine of N codes, or None without FAISS. Raises UserError for inverted lists that cannot be made."""
    if faiss is None:
        if inverted_lists:
            raise UserError("inverted lists need FAISS: pip install -e '.[search]'")
        return None
    if inverted_lists > len(codes):
        raise UserError(f"expected at most as many lists as images, found {inverted_lists} lists and {len(codes)} "
                        "images")
    if inverted_lists:
        return inverted_engine(codes, codebooks, inverted_lists, seed)
    return flat_engine(codes, codebooks)


def flat_engine(codes, codebooks):
    """FAISS's index that scans all codes. It holds them as they are: nothing is encoded by FAISS's own rule.

    FAISS checks nothing, so codes and codebooks have to be checked, as `manifest.check_codes` does.
    """
    m, codewords, d = codebooks.shape
    bits = codewords.bit_length() - 1
    engine = faiss.IndexPQ(m * d, m, bits, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(codebooks.astype(np.float32).ravel(), engine.pq.centroids)
    engine.is_trained = True
    engine.add_sa_codes(_packed(codes, bits))
    return engine


def _packed(codes, bits):
    """Codes as FAISS holds them: of `bits` bits each, one after the other."""
    return np.ascontiguousarray(codes if bits == 8 else faiss.pack_bitstrings(codes.astype(np.int32), bits))


def inverted_engine(codes, codebooks, inverted_lists, seed):
    """FAISS's index with the codes sorted into `inverted_lists` lists, of which a query searches some.

    The lists are the clusters of k-means on reconstructions. A list's centre c is repeated M times and divided by M, so
    that a query repeated M times gives q · c, the mean score of the list's images. For codes see `flat_engine`.
    """
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
    """The centre c nearest to each image's reconstruction q, for which q·c − ‖c‖²/2 is largest, int64 (N,).

    q·c is the sum of M inner products of a codeword and a centre: M additions in place of D multiplications. Codes are
    sorted, so that equal ones are summed once, and those that differ in the last byte only share the other sums.

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
    """FAISS's index without codes, with a list for each centre in FAISS's index `coarse`, which it refers to."""
    m, _, d = codebooks.shape
    engine = faiss.IndexIVFPQ(coarse, m * d, coarse.ntotal, m, 8, faiss.METRIC_INNER_PRODUCT)
    engine.by_residual = False
    faiss.copy_array_to_vector(codebooks.astype(np.float32).ravel(), engine.pq.centroids)
    engine.is_trained = True
    return engine


def add_to_inverted_lists(engine, codes, assigned, first_row):
    """Add codes, uint8 (n, M), to the lists that they are `assigned` to, int64 (n,), as rows from `first_row` on."""
    order = np.argsort(assigned, kind="stable")
    codes, rows = codes[order], order + first_row
    numbers, starts = np.unique(assigned[order], return_index=True)
    for number, start, end in zip(numbers, starts, [*starts[1:], len(codes)], strict=True):
        ids, part = np.ascontiguousarray(rows[start:end]), np.ascontiguousarray(codes[start:end])
        engine.invlists.add_entries(int(number), len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(part))
    engine.ntotal += len(codes)


# ---------------------------------------------------------------- files

def write(engine, temporary, path):
    """Write an engine to `temporary`, which is to become `path`. Raises UserError for a full disk, naming `path`."""
    with naming(path), open(temporary, "wb") as file:
        faiss.write_index(engine, faiss.PyCallbackIOWriter(file.write))


def open_mapped(path):
    """The engine in a file, which stays on the disk and is read as it is used. Raises UserError for another file.

    FAISS does not check what a file holds, so open only files of people whom you trust.
    """
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"{path}: expected an index of FAISS, found something else ({one_line(error)})") from None


def read(path, images, codebooks, inverted_lists):
    """The engine in a file, see `open_mapped`. Raises UserError unless it fits the index; codes are not compared."""
    engine = open_mapped(path)
    m, codewords, d = codebooks.shape
    expected = {"kind": "IndexIVFPQ" if inverted_lists else "IndexPQ", "images": images, "dimensions": m * d,
                "codebooks": m, "bits": codewords.bit_length() - 1, "metric": faiss.METRIC_INNER_PRODUCT,
                "lists": inverted_lists, "centres": (inverted_lists, m * d) if inverted_lists else None}
    found = _settings(engine)
    if differing := [name for name in expected if found.get(name) != expected[name]]:
        raise UserError(f"{path}: expected FAISS's index with " + ", ".join(
            f"{name} {expected[name]}" for name in differing) + ", found " + ", ".join(
            f"{name} {found.get(name)}" for name in differing))
    return engine


def _settings(engine):
    """What `make` sets of an engine, by name."""
    settings = {"kind": type(engine).__name__, "images": engine.ntotal, "dimensions": engine.d,
                "metric": engine.metric_type, "lists": 0, "centres": None}
    if isinstance(engine, faiss.IndexPQ | faiss.IndexIVFPQ):
        settings |= {"codebooks": engine.pq.M, "bits": engine.pq.nbits}
    if isinstance(engine, faiss.IndexIVFPQ):
        settings |= {"lists": engine.nlist, "centres": (engine.quantizer.ntotal, engine.quantizer.d)}
    return settings
