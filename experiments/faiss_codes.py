"""Other quantizers at the same number of bits: a retrieval file's codes beside those of FAISS's quantizers.

What belongs here: building FAISS's indexes over the embeddings of a retrieval file, and measuring MAP, search speed and
training time of each, as baselines.py asks. Without FAISS, which is optional, this module cannot be imported.
Letters: N database images, Q queries, D = 300, M codebooks of K = 256 codewords, L labels.
"""
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from quantization import quantizer
from retrieval import metrics
from retrieval.faiss_index import flat_engine
from retrieval.retrieval_file import read_content
from storage.files import write_json
from storage.log import provenance
from util import DIMENSIONS, UserError, progress, sample, stream

try:
    import faiss
except ImportError as error:
    raise UserError("baselines need faiss: pip install -r requirements-search.txt") from error

NEAREST = 100  # results of a timed search
RUNS = 5  # timed searches, of which the median counts
QUERIES_TIMED = 1000  # at most
TRAINING_IMAGES = 20_000  # at most, drawn from the database
BITS = 8  # of a code's part: K = 256
ENOUGH_TRAINING_IMAGES = 39 * quantizer.CODEWORDS  # with fewer, FAISS's k-means warns
EXACT_BYTES = 4 * DIMENSIONS


@dataclass(frozen=True)
class Method:
    """A row of the table. bytes, training_seconds: or None; score: as of `metrics.evaluate`; search: a FAISS search
    of all `searched` queries, or None."""
    bytes: int | None
    score: Callable
    search: Callable | None = None
    searched: int = 0
    training_seconds: float | None = None


def compare(options):
    """Read the retrieval file, measure each row of the table, print it, and save it where --json says."""
    content = read_content(options.retrieval)
    check_enough(options.retrieval, content)
    topk = min(options.topk, len(content.db_label))
    training = training_images(content.db_features, options.seed)
    print_setting(content, topk, len(training), options)
    with threadpool_limits(options.threads):
        rows = measure(content, training, topk, options.seed)
    print_table(rows, topk)
    if options.json:
        save(options, content, topk, len(training), rows)
        print(f"saved {options.json}")


# ---------------------------------------------------------------- what is compared

def check_enough(path, content):
    """Refuse a Retrieval that FAISS cannot learn from, or that has no MAP."""
    if len(content.db_features) < quantizer.CODEWORDS or not len(content.qry_features):
        raise UserError(f"{path}: expected at least {quantizer.CODEWORDS} database images and one query, found "
                        f"{len(content.db_features):,} and {len(content.qry_features):,}")
    packed = (metrics.pack_labels(labels) for labels in (content.qry_label, content.db_label))
    if not metrics.count_relevant(*packed).any():
        raise UserError(f"{path}: no query shares a label with a database image, so there is no MAP")


def training_images(features, seed):
    """What the quantizers learn from: all embeddings, or TRAINING_IMAGES of them, float32 (at most that, D)."""
    return sample(features, TRAINING_IMAGES, stream(seed, "baselines' training images"))


# ---------------------------------------------------------------- FAISS's indexes, untrained

def lsh_index(m, seed):
    signs = faiss.IndexLSH(DIMENSIONS, BITS * m, True, False)
    signs.rrot.init(seed)
    return faiss.IndexPreTransform(faiss.CenteringTransform(DIMENSIONS), signs)


def itq_index(m, seed):
    rotation = faiss.ITQTransform(DIMENSIONS, BITS * m, True)
    rotation.itq.seed = seed
    return faiss.IndexPreTransform(rotation, faiss.IndexLSH(BITS * m, BITS * m, False, False))


def pq_index(m, seed):
    index = faiss.IndexPQ(padded(m), m, BITS, faiss.METRIC_INNER_PRODUCT)
    seed_kmeans(index.pq.cp, seed)
    return with_padding(index)


def opq_index(m, seed):
    rotation = faiss.OPQMatrix(padded(m), m)
    rotation.quantizer = faiss.ProductQuantizer(padded(m), m, BITS)  # FAISS keeps a bare pointer to it
    seed_kmeans(rotation.quantizer.cp, seed)
    rotation.pq = rotation.quantizer
    index = faiss.IndexPQ(padded(m), m, BITS, faiss.METRIC_INNER_PRODUCT)
    seed_kmeans(index.pq.cp, seed)
    return with_padding(faiss.IndexPreTransform(rotation, index))


def rq_index(m, seed):
    index = faiss.IndexResidualQuantizer(DIMENSIONS, m, BITS, faiss.METRIC_INNER_PRODUCT,
                                         faiss.AdditiveQuantizer.ST_LUT_nonorm)
    seed_kmeans(index.rq.cp, seed)
    return index


def lsq_index(m, seed):
    index = faiss.IndexLocalSearchQuantizer(DIMENSIONS, m, BITS, faiss.METRIC_INNER_PRODUCT,
                                            faiss.AdditiveQuantizer.ST_LUT_nonorm)
    index.lsq.random_seed = seed
    return index


def padded(m):
    """D, or the next multiple of `m`: all sub-spaces of a product quantizer are of one width."""
    return -(-DIMENSIONS // m) * m


def with_padding(index):
    """`index`, taking vectors of D dimensions and appending the zeros itself."""
    if index.d == DIMENSIONS:
        return index
    return faiss.IndexPreTransform(faiss.RemapDimensionsTransform(DIMENSIONS, index.d, False), index)


def seed_kmeans(parameters, seed):
    """Seed a k-means of FAISS, and have it say nothing about few training points: `print_setting` does."""
    parameters.seed = seed
    parameters.min_points_per_centroid = 1


# name: how its index is made, and whether codes are compared by Hamming distance
BASELINES = {"LSH": (lsh_index, True), "ITQ": (itq_index, True), "PQ": (pq_index, False), "OPQ": (opq_index, False),
             "RQ": (rq_index, False), "LSQ": (lsq_index, False)}


# ---------------------------------------------------------------- the rows

def own_method(c):
    m = len(c.codebooks)
    queries = np.tile(c.queries[:QUERIES_TIMED], (1, m))
    return Method(m, lambda q: quantizer.quantized_scores(c.queries[q], c.db_codes, c.codebooks),
                  search(flat_engine(c.db_codes, c.codebooks), queries), len(queries))


def baseline_method(name, c, training, seed):
    """Train the quantizer `name` of BASELINES and encode the database with it."""
    make, hamming = BASELINES[name]
    index = make(len(c.codebooks), seed)
    began = time.perf_counter()
    index.train(training)
    seconds = time.perf_counter() - began
    index.add(c.db_features)
    codes = codes_of(index)
    queries = c.qry_features[:QUERIES_TIMED]
    score = hamming_score(codes, index.sa_encode(c.qry_features)) if hamming else additive_score(
        index, codes, c.qry_features)
    return Method(codes.shape[1], score, search(index, queries), len(queries), seconds)


def codes_of(index):
    """The codes that an index holds, uint8 (N, M)."""
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return faiss.vector_to_array(index.codes).reshape(index.ntotal, index.code_size)


def hamming_score(codes, query_codes):
    """A score function of slices: minus the Hamming distances of codes, uint8 (N, M) and (Q, M)."""
    def score(queries):
        pairs = zip(query_codes[queries].T, codes.T, strict=True)
        return -sum(np.bitwise_count(own[:, None] ^ other) for own, other in pairs).astype(np.float32)
    return score


def additive_score(index, codes, queries):
    """A score function of slices: inner products of queries with what the codes stand for.

    Each code is decoded and compared once, so images of equal code tie exactly, as AQD's do.
    """
    different, rows = np.unique(codes, axis=0, return_inverse=True)
    decoded = index.sa_decode(different)  # (codes in use, D)
    rows = rows.ravel()
    return lambda q: (queries[q] @ decoded.T)[:, rows]


def exact_method(c):
    index = faiss.IndexFlatIP(DIMENSIONS)
    index.add(c.db_features)
    queries = c.qry_features[:QUERIES_TIMED]
    return Method(EXACT_BYTES, lambda q: c.qry_features[q] @ c.db_features.T, search(index, queries), len(queries))


def random_method(c, seed):
    """The same order as validation.py's."""
    return Method(None, lambda q: metrics.random_scores(range(len(c.qry_label))[q], len(c.db_label), seed))


def search(index, queries):
    return lambda: index.search(queries, min(NEAREST, index.ntotal))


# ---------------------------------------------------------------- measuring

def measure(content, training, topk, seed):
    """Every row's numbers, `{name: {column: number or None}}`, in the order of the table."""
    methods = {"AQD": lambda: own_method(content),
               **{name: lambda name=name: baseline_method(name, content, training, seed)
                  for name in BASELINES},
               "exact": lambda: exact_method(content),
               "random": lambda: random_method(content, seed)}
    rows = {}
    with progress(total=len(methods), unit="row") as bar:
        for name, make in methods.items():
            bar.set_description(name)
            rows[name] = measure_row(make(), content, topk)
            bar.update()
    return rows


def measure_row(method, content, topk):
    quality = metrics.evaluate(method.score, content.qry_label, content.db_label, topk)
    return {"bytes": method.bytes, "map": quality.map, "map_min_rk": quality.map_min_rk,
            "queries_left_out": quality.left_out,
            "queries_per_second": method.search and method.searched / median_seconds(method.search),
            "training_seconds": method.training_seconds}


def median_seconds(run):
    """Of RUNS calls, after one that does not count."""
    run()
    seconds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


# ---------------------------------------------------------------- printing and saving

def print_setting(content, topk, training, options):
    """Print the sizes behind the table, and what may surprise in it."""
    m, images = len(content.codebooks), len(content.db_label)
    print(f"{len(content.qry_label):,} queries, {images:,} database images, {BITS * m} bits an image")
    print(f"FAISS's quantizers learn from {training:,} of the images; seed {options.seed}; threads: {options.threads}")
    if topk < options.topk:
        print(f"the database holds {images:,} images, so MAP counts the first {topk:,} results, not {options.topk:,}")
    if training < ENOUGH_TRAINING_IMAGES:
        print(f"few training images: FAISS advises {ENOUGH_TRAINING_IMAGES:,} for the k-means of PQ, OPQ and RQ")
    if padded(m) != DIMENSIONS:
        print(f"PQ and OPQ: {DIMENSIONS} dimensions padded with zeros to {padded(m)}, a multiple of {m}")


def print_table(rows, topk):
    def cell(value, width, form):
        return f"{'-' if value is None else format(value, form):>{width}}"
    print(f"\n{'':8}{'bytes':>7}{f'MAP@{topk}':>11}{'min(R,K)':>10}{'queries/s':>12}{'training s':>12}")
    for name, row in rows.items():
        print(f"{name:8}{cell(row['bytes'], 7, 'd')}{row['map']:11.4f}{row['map_min_rk']:10.4f}"
              f"{cell(row['queries_per_second'], 12, ',.0f')}{cell(row['training_seconds'], 12, '.2f')}")
    print()


def save(options, content, topk, training, rows):
    """Write the table's numbers, and what they depend on, as JSON."""
    origin = provenance({options.retrieval.name: options.retrieval})
    origin["versions"]["faiss"] = faiss.__version__
    write_json(options.json, {
        "bits": BITS * len(content.codebooks), "topk": topk, "queries": len(content.qry_label),
        "database_images": len(content.db_label), "training_images": training, "seed": options.seed,
        "threads": options.threads, "results_of_a_timed_search": min(NEAREST, len(content.db_label)),
        "rows": rows, **origin})
