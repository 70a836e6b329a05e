"""Compares a retrieval file's codes with FAISS's of the same length: `python experiments/baselines.py RETRIEVAL_H5`.

Letters: N database images, Q queries, D = 300, M codebooks of K = 256 codewords, L labels.
"""
import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from threadpoolctl import threadpool_limits

from quantization import quantizer
from retrieval import metrics
from retrieval.retrieval_file import read_content
from storage.files import write_json
from storage.log import provenance
from util import DIMENSIONS, UserError, number, progress, run_program, sample, stream

DESCRIPTION = """\
Compare the codes in a retrieval file (written by validation.py) with other codes of the same length for the same
embeddings, and print one table.

rows
  AQD       this model's codes; the query is not quantized
  LSH       signs along random orthogonal directions, embeddings centred; Hamming distance
  ITQ       signs after PCA and a learned rotation, embeddings centred; Hamming distance
  PQ, OPQ   product quantization, plain and with a learned rotation; the query is not quantized
  RQ, LSQ   residual and local search quantization (additive codes); the query is not quantized
  exact     the embeddings themselves
  random    a random order
columns
  bytes        of an image's code
  MAP@K        over the relevant results among the top K, as reported by validation.py
  min(R,K)     the usual MAP, divided by min(R, K)
  queries/s    FAISS searching for 100 results; median of 5 searches of up to 1,000 queries
  training s   seconds; AQD's codebooks were trained with the network

FAISS's quantizers learn from at most 20,000 of the database embeddings. PQ and OPQ of 7 and 8 bytes
pad the 300 dimensions with zeros to 301 and 304."""
NEAREST = 100  # results of a timed search
RUNS = 5  # timed searches, of which the median counts
QUERIES_TIMED = 1000  # at most
TRAINING_IMAGES = 20_000  # at most, drawn from the database
BITS = 8  # of a code's part: K = 256
ENOUGH_TRAINING_IMAGES = 39 * quantizer.CODEWORDS  # with fewer, FAISS's k-means warns
EXACT_BYTES = 4 * DIMENSIONS


def parse_arguments():
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("retrieval", metavar="RETRIEVAL_H5", type=Path, help="an <experiment>_retrieval.h5")
    parser.add_argument("--topk", type=number(int, 1), default=5000, metavar="K",
                        help="results a query that count in MAP@K, at most the size of the database (default 5000)")
    parser.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0,
                        help="seed of every random choice; two runs with the same seed and the same number of threads "
                             "give the same MAPs (default 0)")
    parser.add_argument("--threads", type=number(int, 1, 1024), default=1, metavar="N",
                        help="threads that train and search (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    return parser.parse_args()


def main():
    options = parse_arguments()
    try:
        import faiss

        from retrieval.faiss_index import flat_engine
    except ImportError as error:
        raise UserError("baselines need faiss: pip install -e '.[search]'") from error

    content = read_content(options.retrieval)
    check_enough(options.retrieval, content)
    m, images = len(content.codebooks), len(content.db_label)
    topk = min(options.topk, images)
    training = training_images(content.db_features, options.seed)
    print(f"{len(content.qry_label):,} queries, {images:,} database images, {BITS * m} bits an image")
    print(f"FAISS's quantizers learn from {len(training):,} of the images; seed {options.seed}; threads: "
          f"{options.threads}")
    if topk < options.topk:
        print(f"the database holds {images:,} images, so MAP counts the first {topk:,} results, not {options.topk:,}")
    if len(training) < ENOUGH_TRAINING_IMAGES:
        print(f"few training images: FAISS advises {ENOUGH_TRAINING_IMAGES:,} for the k-means of PQ, OPQ and RQ")
    if padded(m) != DIMENSIONS:
        print(f"PQ and OPQ: {DIMENSIONS} dimensions padded with zeros to {padded(m)}, a multiple of {m}")

    with threadpool_limits(options.threads):
        engine = flat_engine(content.db_codes, content.codebooks)
        rows = measure(content, engine, Quantizers(faiss, m, options.seed), training, topk)
    print_table(rows, topk)
    if options.json:
        origin = provenance({options.retrieval.name: options.retrieval})
        origin["versions"]["faiss"] = faiss.__version__
        write_json(options.json, {
            "bits": BITS * m, "topk": topk, "queries": len(content.qry_label), "database_images": images,
            "training_images": len(training), "seed": options.seed, "threads": options.threads,
            "results_of_a_timed_search": min(NEAREST, images), "rows": rows, **origin})
        print(f"saved {options.json}")


# ---------------------------------------------------------------- what is compared

def check_enough(path, content):
    """Raise UserError for a Retrieval that FAISS cannot learn from, or that has no MAP."""
    least = padded(len(content.codebooks))
    if len(content.db_features) < least or not len(content.qry_features):
        raise UserError(f"{path}: expected at least {least} database images and one query, found "
                        f"{len(content.db_features):,} and {len(content.qry_features):,}")
    packed = (metrics.pack_labels(labels) for labels in (content.qry_label, content.db_label))
    if not metrics.count_relevant(*packed).any():
        raise UserError(f"{path}: no query shares a label with a database image, so there is no MAP")


def training_images(features, seed):
    """The embeddings that the quantizers learn from: all, or a sample of TRAINING_IMAGES, float32 (n, D)."""
    return sample(features, TRAINING_IMAGES, stream(seed, "baselines' training images"))


# ---------------------------------------------------------------- FAISS's quantizers

@dataclass(frozen=True)
class Quantizers:
    """FAISS's quantizers to M bytes, each an untrained index of embeddings.

    faiss: the module. It is optional and slow to load, so main() imports it.
    """
    faiss: ModuleType
    m: int
    seed: int

    def lsh(self):
        signs = self.faiss.IndexLSH(DIMENSIONS, BITS * self.m, True, False)
        signs.rrot.init(self.seed)
        return self.faiss.IndexPreTransform(self.faiss.CenteringTransform(DIMENSIONS), signs)

    def itq(self):
        bits = BITS * self.m
        rotation = self.faiss.ITQTransform(DIMENSIONS, bits, True)
        rotation.itq.seed = self.seed
        return self.faiss.IndexPreTransform(rotation, self.faiss.IndexLSH(bits, bits, False, False))

    def pq(self):
        return self._with_padding(self._product_quantizer())

    def opq(self):
        dimensions = padded(self.m)
        rotation = self.faiss.OPQMatrix(dimensions, self.m)
        rotation.quantizer = self.faiss.ProductQuantizer(dimensions, self.m, BITS)  # FAISS keeps a bare pointer to it
        self._seed_kmeans(rotation.quantizer.cp)
        rotation.pq = rotation.quantizer
        return self._with_padding(self.faiss.IndexPreTransform(rotation, self._product_quantizer()))

    def rq(self):
        index = self.faiss.IndexResidualQuantizer(DIMENSIONS, self.m, BITS, self.faiss.METRIC_INNER_PRODUCT,
                                                  self.faiss.AdditiveQuantizer.ST_LUT_nonorm)
        self._seed_kmeans(index.rq.cp)
        return index

    def lsq(self):
        index = self.faiss.IndexLocalSearchQuantizer(DIMENSIONS, self.m, BITS, self.faiss.METRIC_INNER_PRODUCT,
                                                     self.faiss.AdditiveQuantizer.ST_LUT_nonorm)
        index.lsq.random_seed = self.seed
        return index

    def codes(self, index):
        """The codes that an index holds, uint8 (N, M)."""
        while isinstance(index, self.faiss.IndexPreTransform):
            index = self.faiss.downcast_index(index.index)
        return self.faiss.vector_to_array(index.codes).reshape(index.ntotal, index.code_size)

    def exact(self):
        """An index of the embeddings themselves."""
        return self.faiss.IndexFlatIP(DIMENSIONS)

    def _product_quantizer(self):
        index = self.faiss.IndexPQ(padded(self.m), self.m, BITS, self.faiss.METRIC_INNER_PRODUCT)
        self._seed_kmeans(index.pq.cp)
        return index

    def _with_padding(self, index):
        """`index`, taking vectors of D dimensions and appending the zeros itself."""
        if index.d == DIMENSIONS:
            return index
        return self.faiss.IndexPreTransform(self.faiss.RemapDimensionsTransform(DIMENSIONS, index.d, False), index)

    def _seed_kmeans(self, parameters):
        parameters.seed = self.seed
        parameters.min_points_per_centroid = 1  # no warning of few training images: main() prints one


BASELINES = {"LSH": Quantizers.lsh, "ITQ": Quantizers.itq, "PQ": Quantizers.pq, "OPQ": Quantizers.opq,
             "RQ": Quantizers.rq, "LSQ": Quantizers.lsq}
BINARY = ("LSH", "ITQ")  # whose codes are compared by Hamming distance


def padded(m):
    """D, or the next multiple of `m`: all sub-spaces of a product quantizer have the same width.

    At least as many images are needed for training: OPQ begins with a PCA of so many dimensions, and RQ with one of D.
    With fewer images, FAISS 1.15 writes beyond its memory.
    """
    return -(-DIMENSIONS // m) * m


# ---------------------------------------------------------------- the rows of the table

@dataclass(frozen=True)
class Method:
    """A row of the table.

    bytes, training_seconds: None where there is nothing to show. score: see `metrics.evaluate`. search: a FAISS search
    of all `searched` queries, or None.
    """
    bytes: int | None
    score: Callable
    search: Callable | None = None
    searched: int = 0
    training_seconds: float | None = None


def own_method(c, engine):
    """This model's codes. engine: FAISS's index of them."""
    m = len(c.codebooks)
    queries = np.tile(c.queries[:QUERIES_TIMED], (1, m))
    return Method(m, lambda q: quantizer.quantized_scores(c.queries[q], c.db_codes, c.codebooks),
                  search(engine, queries), len(queries))


def baseline_method(name, c, quantizers, training):
    """Train the quantizer `name` of BASELINES and encode the database with it."""
    index = BASELINES[name](quantizers)
    began = time.perf_counter()
    index.train(training)
    seconds = time.perf_counter() - began
    index.add(c.db_features)
    codes = quantizers.codes(index)
    queries = c.qry_features[:QUERIES_TIMED]
    score = (hamming_score(codes, index.sa_encode(c.qry_features)) if name in BINARY
             else additive_score(index, codes, c.qry_features))
    return Method(codes.shape[1], score, search(index, queries), len(queries), seconds)


def exact_method(c, quantizers):
    index = quantizers.exact()
    index.add(c.db_features)
    queries = c.qry_features[:QUERIES_TIMED]
    return Method(EXACT_BYTES, lambda q: c.qry_features[q] @ c.db_features.T, search(index, queries), len(queries))


def random_method(c, seed):
    """A random order, the same as validation.py's."""
    return Method(None, lambda q: metrics.random_scores(range(len(c.qry_label))[q], len(c.db_label), seed))


def search(index, queries):
    return lambda: index.search(queries, min(NEAREST, index.ntotal))


def hamming_score(codes, query_codes):
    """A score function of slices: minus the Hamming distances of codes, uint8 (N, M) and (Q, M)."""
    def score(queries):
        pairs = zip(query_codes[queries].T, codes.T, strict=True)
        return -sum(np.bitwise_count(own[:, None] ^ other) for own, other in pairs).astype(np.float32)
    return score


def additive_score(index, codes, queries):
    """A score function of slices: inner products of queries with the decoded codes.

    Each different code is decoded and compared once, so images with the same code tie exactly, as AQD's do.
    """
    different, rows = np.unique(codes, axis=0, return_inverse=True)
    decoded = index.sa_decode(different)  # (codes in use, D)
    rows = rows.ravel()
    return lambda q: (queries[q] @ decoded.T)[:, rows]


# ---------------------------------------------------------------- measuring

def measure(content, engine, quantizers, training, topk):
    """Every row's numbers, `{name: {column: number or None}}`, in the order of the table."""
    methods = {"AQD": lambda: own_method(content, engine),
               **{name: lambda name=name: baseline_method(name, content, quantizers, training)
                  for name in BASELINES},
               "exact": lambda: exact_method(content, quantizers),
               "random": lambda: random_method(content, quantizers.seed)}
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
    """The median of RUNS calls, after one that does not count."""
    run()
    seconds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def print_table(rows, topk):
    def cell(value, width, form):
        return f"{'-' if value is None else format(value, form):>{width}}"
    print(f"\n{'':8}{'bytes':>7}{f'MAP@{topk}':>11}{'min(R,K)':>10}{'queries/s':>12}{'training s':>12}")
    for name, row in rows.items():
        print(f"{name:8}{cell(row['bytes'], 7, 'd')}{row['map']:11.4f}{row['map_min_rk']:10.4f}"
              f"{cell(row['queries_per_second'], 12, ',.0f')}{cell(row['training_seconds'], 12, '.2f')}")
    print()


if __name__ == "__main__":
    run_program(main)
