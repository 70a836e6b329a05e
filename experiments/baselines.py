"""What else one would use at the same number of bits: a retrieval file's codes beside those of FAISS's quantizers.

What belongs here: building FAISS's indexes over the embeddings of a retrieval file, and measuring MAP, search speed
and training time of each. Letters: N database images, Q queries, D = 300, M codebooks of K = 256 codewords, L labels.
"""
import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from threadpoolctl import threadpool_limits

import metrics
import quantizer
from storage.run_log import provenance
from storage.safe_files import check_checksums, write_json
from util import DIMENSIONS, MOST_CODEBOOKS, UserError, number, progress, run_program, stream

BITS = 8  # of a code's part: K = 256
NEAREST = 100  # results of a timed search
RUNS = 5  # timed searches, of which the median counts
QUERIES_TIMED = 1000  # at most
TRAINING_IMAGES = 20_000  # at most, drawn from the database
ENOUGH_TRAINING_IMAGES = 39 * quantizer.CODEWORDS  # with fewer, FAISS's k-means warns
EXACT_BYTES = 4 * DIMENSIONS

DESCRIPTION = f"""\
Compare the codes in a retrieval file (validation.py writes it) with other codes of the same length over the same
embeddings, and print one table.

rows
  AQD       this model's codes; the query is not quantized
  LSH       signs along random orthogonal directions, embeddings centred; Hamming distance
  ITQ       signs after PCA and a learned rotation, embeddings centred; Hamming distance
  PQ, OPQ   product quantization, plain and with a learned rotation; the query is not quantized
  RQ, LSQ   residual and local search quantization (additive codes); the query is not quantized
  exact     the embeddings themselves; random: a random order
columns
  bytes        of an image's code
  MAP@K        over the relevant results among the top K, as validation.py reports it
  min(R,K)     the usual MAP, divided by min(R, K)
  queries/s    FAISS searching for {NEAREST} results; median of {RUNS} searches of up to {QUERIES_TIMED:,} queries
  training s   seconds; AQD's codebooks were trained with the network

FAISS's quantizers learn from the database embeddings, at most {TRAINING_IMAGES:,} of them. PQ and OPQ of 7 and 8 bytes
see {DIMENSIONS} dimensions padded with zeros to 301 and 304."""


@dataclass(frozen=True)
class Content:
    """What is compared: features float32 (N or Q, D), labels (N or Q, L), codes uint8 (N, M), codebooks (M, K, D)."""
    db_features: np.ndarray
    qry_features: np.ndarray
    db_label: np.ndarray
    qry_label: np.ndarray
    db_codes: np.ndarray
    codebooks: np.ndarray


@dataclass(frozen=True)
class Method:
    """A row of the table. bytes, training_seconds: or None; score: as of `metrics.evaluate`; search: a FAISS search
    of all `searched` queries, or None."""
    bytes: int | None
    score: Callable
    search: Callable | None = None
    searched: int = 0
    training_seconds: float | None = None


def main():
    options = parse_arguments()
    content = read_content(options.retrieval)
    faiss = import_faiss()
    topk = min(options.topk, len(content.db_label))
    training = training_images(content.db_features, options.seed)
    print_setting(content, topk, len(training), options)
    with threadpool_limits(options.threads):
        rows = measure(faiss, content, training, topk, options.seed)
    print_table(rows, topk)
    if options.json:
        save(options, content, topk, len(training), rows, faiss.__version__)
        print(f"saved {options.json}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("retrieval", metavar="RETRIEVAL_H5", type=Path, help="an <experiment>_retrieval.h5")
    parser.add_argument("--topk", type=number(int, 1), default=5000, metavar="K",
                        help="results a query that count in MAP@K; cut to the size of the database (default 5000)")
    parser.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0,
                        help="drives every random choice; two runs with one seed, and as many threads, give the same "
                             "MAPs (default 0)")
    parser.add_argument("--threads", type=number(int, 1, 1024), default=1, metavar="N",
                        help="threads that train and search (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too (default: do not)")
    return parser.parse_args()


def import_faiss():
    """FAISS, which only this program needs."""
    try:
        import faiss
    except ImportError as error:
        raise UserError("baselines need faiss: pip install -r requirements-search.txt") from error
    return faiss


# ---------------------------------------------------------------- the retrieval file

def read_content(path):
    """The Content of a retrieval file. Raises UserError for whatever is missing or does not fit together."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    check_checksums(path.with_suffix(".json"))
    names = Content.__dataclass_fields__
    try:
        with h5py.File(path, "r") as file:
            missing = [name for name in names if not isinstance(file.get(name), h5py.Dataset)]
            if missing:
                raise UserError(f"{path}: expected the datasets {', '.join(names)}, found no {', '.join(missing)}")
            arrays = {name: file[name][()] for name in names}
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: expected an HDF5 file, found one that cannot be read ({error})") from error
    check_shapes(path, arrays)
    check_values(path, arrays)
    for name in ("db_features", "qry_features", "codebooks"):
        arrays[name] = np.ascontiguousarray(arrays[name], np.float32)
    return Content(**arrays)


def check_shapes(path, arrays):
    """Refuse arrays whose shapes are not those of a Content, or differ where they must not."""
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    for name, shape in shapes.items():
        if len(shape) != (3 if name == "codebooks" else 2):
            raise UserError(f"{path}: expected {name} with {3 if name == 'codebooks' else 2} dimensions, found shape "
                            f"{shape}")
    codebooks = shapes["codebooks"]
    if codebooks[1:] != (quantizer.CODEWORDS, DIMENSIONS) or not 1 <= codebooks[0] <= MOST_CODEBOOKS:
        raise UserError(f"{path}: expected codebooks with shape (M, {quantizer.CODEWORDS}, {DIMENSIONS}) for M from "
                        f"1 to {MOST_CODEBOOKS}, found {codebooks}")
    for name, axis, other, other_axis in (
            ("db_features", 0, "db_label", 0), ("db_features", 0, "db_codes", 0), ("qry_features", 0, "qry_label", 0),
            ("db_label", 1, "qry_label", 1), ("db_codes", 1, "codebooks", 0)):
        if shapes[name][axis] != shapes[other][other_axis]:
            what = ("rows", "columns")[axis]
            others = "codebooks" if other == "codebooks" else f"{what} of {other}"
            raise UserError(f"{path}: expected as many {what} of {name} as {others}, found {shapes[name][axis]:,} and "
                            f"{shapes[other][other_axis]:,}")
    for name in ("db_features", "qry_features"):
        if shapes[name][1] != DIMENSIONS:
            raise UserError(f"{path}: expected {name} with {DIMENSIONS} columns, found {shapes[name][1]:,}")
    if shapes["db_features"][0] < quantizer.CODEWORDS or not shapes["qry_features"][0]:
        raise UserError(f"{path}: expected at least {quantizer.CODEWORDS} database images and one query, found "
                        f"{shapes['db_features'][0]:,} and {shapes['qry_features'][0]:,}")


def check_values(path, arrays):
    """Refuse values that cannot be compared: NaN, codes that are no bytes, labels that nothing shares."""
    for name in ("db_features", "qry_features", "codebooks"):
        if arrays[name].dtype.kind != "f":
            raise UserError(f"{path}: expected {name} of floats, found {arrays[name].dtype}")
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{path}: {name} holds NaN or infinite values")
    if arrays["db_codes"].dtype != np.uint8:
        raise UserError(f"{path}: expected db_codes of uint8, found {arrays['db_codes'].dtype}")
    for name in ("db_label", "qry_label"):
        if arrays[name].dtype.kind not in "biuf" or not np.isin(arrays[name], (0, 1)).all():
            raise UserError(f"{path}: expected {name} of 0 and 1, found something else")
    packed = (metrics.pack_labels(arrays[name]) for name in ("qry_label", "db_label"))
    if not metrics.count_relevant(*packed).any():
        raise UserError(f"{path}: no query shares a label with a database image, so there is no MAP")


def training_images(features, seed):
    """What the quantizers learn from: all embeddings, or TRAINING_IMAGES of them, float32 (at most that, D)."""
    if len(features) <= TRAINING_IMAGES:
        return features
    rows = stream(seed, "baselines' training images").choice(len(features), TRAINING_IMAGES, replace=False)
    return features[np.sort(rows)]


# ---------------------------------------------------------------- FAISS's indexes, untrained

def lsh_index(faiss, m, seed):
    signs = faiss.IndexLSH(DIMENSIONS, BITS * m, True, False)
    signs.rrot.init(seed)
    return faiss.IndexPreTransform(faiss.CenteringTransform(DIMENSIONS), signs)


def itq_index(faiss, m, seed):
    rotation = faiss.ITQTransform(DIMENSIONS, BITS * m, True)
    rotation.itq.seed = seed
    return faiss.IndexPreTransform(rotation, faiss.IndexLSH(BITS * m, BITS * m, False, False))


def pq_index(faiss, m, seed):
    index = faiss.IndexPQ(padded(m), m, BITS, faiss.METRIC_INNER_PRODUCT)
    seed_kmeans(index.pq.cp, seed)
    return with_padding(faiss, index)


def opq_index(faiss, m, seed):
    rotation = faiss.OPQMatrix(padded(m), m)
    rotation.quantizer = faiss.ProductQuantizer(padded(m), m, BITS)  # FAISS keeps a bare pointer to it
    seed_kmeans(rotation.quantizer.cp, seed)
    rotation.pq = rotation.quantizer
    index = faiss.IndexPQ(padded(m), m, BITS, faiss.METRIC_INNER_PRODUCT)
    seed_kmeans(index.pq.cp, seed)
    return with_padding(faiss, faiss.IndexPreTransform(rotation, index))


def rq_index(faiss, m, seed):
    index = faiss.IndexResidualQuantizer(DIMENSIONS, m, BITS, faiss.METRIC_INNER_PRODUCT,
                                         faiss.AdditiveQuantizer.ST_LUT_nonorm)
    seed_kmeans(index.rq.cp, seed)
    return index


def lsq_index(faiss, m, seed):
    index = faiss.IndexLocalSearchQuantizer(DIMENSIONS, m, BITS, faiss.METRIC_INNER_PRODUCT,
                                            faiss.AdditiveQuantizer.ST_LUT_nonorm)
    index.lsq.random_seed = seed
    return index


def padded(m):
    """D, or the next multiple of `m`: all sub-spaces of a product quantizer are of one width."""
    return -(-DIMENSIONS // m) * m


def with_padding(faiss, index):
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
    from retrieval.faiss_engine import flat_engine
    m = len(c.codebooks)
    queries = np.tile(c.qry_features[:QUERIES_TIMED], (1, m))
    return Method(m, lambda q: quantizer.quantized_scores(c.qry_features[q], c.db_codes, c.codebooks),
                  search(flat_engine(c.db_codes, c.codebooks), queries), len(queries))


def baseline_method(faiss, name, c, training, seed):
    """Train the quantizer `name` of BASELINES and encode the database with it."""
    make, hamming = BASELINES[name]
    index = make(faiss, len(c.codebooks), seed)
    began = time.perf_counter()
    index.train(training)
    seconds = time.perf_counter() - began
    index.add(c.db_features)
    codes = codes_of(faiss, index)
    queries = c.qry_features[:QUERIES_TIMED]
    score = hamming_score(codes, index.sa_encode(c.qry_features)) if hamming else additive_score(
        index, codes, c.qry_features)
    return Method(codes.shape[1], score, search(index, queries), len(queries), seconds)


def codes_of(faiss, index):
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
    words = index.sa_decode(different)  # (codes in use, D)
    rows = rows.ravel()
    return lambda q: (queries[q] @ words.T)[:, rows]


def exact_method(faiss, c):
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

def measure(faiss, content, training, topk, seed):
    """Every row's numbers, `{name: {column: number or None}}`, in the order of the table."""
    methods = {"AQD": lambda: own_method(content),
               **{name: lambda name=name: baseline_method(faiss, name, content, training, seed)
                  for name in BASELINES},
               "exact": lambda: exact_method(faiss, content),
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


# ---------------------------------------------------------------- for people

def print_setting(content, topk, training, options):
    """What the table is about, and what in it may surprise."""
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


def save(options, content, topk, training, rows, faiss_version):
    """Write the table's numbers, and what they depend on, as JSON."""
    origin = provenance({options.retrieval.name: options.retrieval})
    origin["versions"]["faiss"] = faiss_version
    write_json(options.json, {
        "bits": BITS * len(content.codebooks), "topk": topk, "queries": len(content.qry_label),
        "database_images": len(content.db_label), "training_images": training, "seed": options.seed,
        "threads": options.threads, "results_of_a_timed_search": min(NEAREST, len(content.db_label)),
        "rows": rows, **origin})


if __name__ == "__main__":
    run_program(main)
