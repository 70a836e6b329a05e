"""Queries a second on a million 32-bit codes: `python experiments/bench_search.py`.

This project's additive index, a plain product quantizer of FAISS with the same bytes, FAISS's own additive index and
NumPy, in turns in one run, so that what else the machine does falls on all.
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
from util import DIMENSIONS, stream

CODEBOOKS, TOPK, QUERIES, ROUNDS = 4, 100, 200, 15


def additive(codes, codebooks):
    """FAISS's own index of additive codes, with norms left out as for inner products."""
    engine = faiss.IndexLocalSearchQuantizer(DIMENSIONS, CODEBOOKS, 8, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(codebooks.ravel(), engine.lsq.codebooks)
    engine.lsq.is_trained = engine.is_trained = True
    engine.lsq.search_type = faiss.AdditiveQuantizer.ST_LUT_nonorm  # from tables; else it decompresses every vector
    engine.add_sa_codes(codes)
    return engine


def plain_product(codes, rng):
    """The usual product quantizer of the same bytes: each codebook knows 75 of the 300 columns."""
    engine = faiss.IndexPQ(DIMENSIONS, CODEBOOKS, 8, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(rng.normal(size=256 * DIMENSIONS).astype(np.float32), engine.pq.centroids)
    engine.is_trained = True
    engine.add_sa_codes(codes)
    return engine


def make_kinds(images, folder):
    """{what: function of queries}, and the index on disk."""
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
    parser.add_argument("--images", type=int, default=1_000_000, help="codes (default a million)")
    parser.add_argument("--threads", type=int, default=1, help="threads of FAISS (default 1)")
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
        print(f"FAISS's file: {size:,} bytes, {(size - fixed) / options.images:.3f} a vector beside the codebooks")


if __name__ == "__main__":
    main()
