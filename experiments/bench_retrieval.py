"""How fast codes are made and ranked: `python experiments/bench_retrieval.py`.

Each part prints what it times; peak memory is that of the process so far. Ranking is compared with the plain way in
NumPy: dense products of the queries with all images, and np.argsort of each query's scores. They take turns, and the
median of the ratios counts.
"""
import argparse
import contextlib
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

import dataset
from quantization import quantizer
from quantization.codebooks import random_codebooks, update_codebooks
from retrieval import metrics
from util import number, run_program, stream

IMAGES, QUERIES, TOPK = 193_000, 2_000, 5_000  # as in NUS-WIDE
PLAIN_BLOCK = 64  # queries of the plain way
TURNS = 3


@contextlib.contextmanager
def timed(what):
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {seconds:.2f} s (peak memory {peak:.2f} GiB)", flush=True)


def parse_matrix(rng):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train_tag.txt"
        np.savetxt(path, rng.random((18_500, 1_386)) < 0.006, fmt="%d")
        with timed("parsing an 18,500×1,386 tag matrix"):
            dataset.read_binary_matrix(path)


def encode(rng):
    embeddings = np.tanh(rng.normal(size=(23_000, 300))).astype(np.float32)
    codebooks = random_codebooks(4, rng)
    factor = quantizer.semantic_factor(rng.normal(size=(1_178, 300)))
    with timed("ICM, 23,000 embeddings at 32 bits"):
        codes = quantizer.encode(embeddings, codebooks, factor, rng, 700)
    with timed("codebook update, 23,000 embeddings at 32 bits"):
        update_codebooks(embeddings, codes, codebooks)


def rank(rng, images):
    database = rng.normal(size=(images, 300)).astype(np.float32)
    queries = rng.normal(size=(QUERIES, 300)).astype(np.float32)
    codes = rng.integers(0, 256, (images, 4)).astype(np.uint8)
    codebooks = random_codebooks(4, rng)
    labels = [rng.random((n, 21)) < 0.1 for n in (QUERIES, images)]
    print(f"MAP@{TOPK} of {QUERIES:,} queries and {images:,} images:")
    compare("32-bit codes (AQD, SQD)", queries, quantizer.reconstruct(codes, codebooks), labels,
            lambda q: quantizer.quantized_scores(queries[q], codes, codebooks))
    compare("embeddings (feats)", queries, database, labels, lambda q: queries[q] @ database.T)


def compare(what, queries, vectors, labels, score):
    """Time `metrics.evaluate` with a score function, and the plain way with the decoded `vectors`, in turns."""
    ways = {"this project": lambda: metrics.evaluate(score, *labels, TOPK).map,
            "plain": lambda: plain_map(queries, vectors, *labels, TOPK)}
    seconds, maps = {name: [] for name in ways}, {}
    for _ in range(TURNS):
        for name, way in ways.items():
            began = time.perf_counter()
            maps[name] = way()
            seconds[name].append(time.perf_counter() - began)
            if name == "this project" and len(seconds[name]) == 1:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    plain, own = seconds["plain"], seconds["this project"]
    print(f"    {what}: plain {np.median(plain):.2f} s, this project {np.median(own):.2f} s, "
          f"{np.median(np.divide(plain, own)):.1f} times as fast; MAP {maps['plain']:.6f} and "
          f"{maps['this project']:.6f} (peak memory of this project {peak:.2f} GiB)", flush=True)


def plain_map(queries, vectors, query_labels, database_labels, topk):
    """MAP in the plain way, a block of queries at a time."""
    precision = []
    for start in range(0, len(queries), PLAIN_BLOCK):
        block = slice(start, start + PLAIN_BLOCK)
        shared = query_labels[block].astype(np.float32) @ database_labels.T.astype(np.float32) > 0
        for scores, relevant in zip(queries[block] @ vectors.T, shared, strict=True):
            relevant = relevant[np.argsort(-scores)[:topk]]
            if relevant.any():
                precision.append((relevant.cumsum() / np.arange(1, topk + 1))[relevant].mean())
    return np.mean(precision)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=number(int, TOPK), default=IMAGES, metavar="N",
                        help=f"images that are ranked, at least {TOPK:,} (default {IMAGES:,}, as in NUS-WIDE)")
    options = parser.parse_args()
    parse_matrix(stream(0, "parse_matrix"))
    encode(stream(0, "encode"))
    rank(stream(0, "rank"), options.images)


if __name__ == "__main__":
    run_program(main)
