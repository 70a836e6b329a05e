"""Queries a second on a million 32-bit codes: `python experiments/bench_search.py`.

This project's additive index, FAISS's plain product quantizer with as many bytes, FAISS's own additive index and NumPy
search in turns in one run, so that other load on the machine affects all alike.
"""
import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from retrieval import index
from util import DIMENSIONS, number, run_program, stream

CODEBOOKS, TOPK, QUERIES, ROUNDS = 4, 100, 200, 15


def additive(codes, codebooks):
    """FAISS's own index of additive codes, without norms, which inner products do not need."""
    engine = faiss.IndexLocalSearchQuantizer(DIMENSIONS, CODEBOOKS, 8, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(codebooks.ravel(), engine.lsq.codebooks)
    engine.lsq.is_trained = engine.is_trained = True
    engine.lsq.search_type = faiss.AdditiveQuantizer.ST_LUT_nonorm  # from tables; else it decompresses every vector
    engine.add_sa_codes(codes)
    return engine


def plain_product(codes, rng):
    """The usual product quantizer with as many bytes: each codebook covers 75 of the 300 dimensions."""
    engine = faiss.IndexPQ(DIMENSIONS, CODEBOOKS, 8, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(rng.normal(size=256 * DIMENSIONS).astype(np.float32), engine.pq.centroids)
    engine.is_trained = True
    engine.add_sa_codes(codes)
    return engine


def make_kinds(images, folder):
    """{name: function that searches for queries}, and this project's index, which is saved in `folder`."""
    rng = stream(0, "bench search")
    codes = rng.integers(0, 256, (images, CODEBOOKS), dtype=np.uint8)
    codebooks = rng.normal(size=(CODEBOOKS, 256, DIMENSIONS)).astype(np.float32)
    content = index.Content(codes, codebooks, [f"{i}.jpg" for i in range(images)], [["tag"]],
                            codebooks[0, :1], None, [], {"seed": 0, "images": "."})
    index.save(folder, content)
    ours, plain, own = index.load(folder), plain_product(codes, rng), additive(codes, codebooks)
    return {"plain IndexPQ": lambda q: plain.search(q, TOPK),
            "this project": lambda q: ours.search(q, TOPK),
            "IndexLocalSearchQuantizer": lambda q: own.search(q, TOPK),
            "this project, NumPy": lambda q: index.search_numpy(q[:4], codes, codebooks, TOPK)}, ours


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=number(int, TOPK), default=1_000_000, metavar="N",
                        help="codes (default a million)")
    parser.add_argument("--threads", type=number(int, 1), default=1, metavar="N", help="threads of FAISS (default 1)")
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    queries = stream(0, "bench queries").normal(size=(QUERIES, DIMENSIONS)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        kinds, ours = make_kinds(options.images, Path(folder))
        rates = {name: [] for name in kinds}
        for _ in range(ROUNDS):
            for name, search in kinds.items():
                began = time.perf_counter()
                found = search(queries)
                rates[name].append(len(found[0]) / (time.perf_counter() - began))
        plain = statistics.median(rates["plain IndexPQ"])
        for name, values in rates.items():
            rate = statistics.median(values)
            print(f"{name:26}{rate:8.1f} queries/s, {rate / plain:.2f} times the plain one")
        size = os.path.getsize(next(Path(folder).glob("engine*")))
        fixed = ours.content.codebooks.nbytes
        print(f"FAISS's file: {size:,} bytes; without the codebooks, {(size - fixed) / options.images:.3f} bytes a "
              "vector")


if __name__ == "__main__":
    run_program(main)
