"""How fast codes are made and ranked, at the sizes of MIRFLICKR-25K and NUS-WIDE: `python bench/bench_retrieval.py`.

Each part says what it times; peak memory is the process's so far.
"""
import contextlib
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

import dataset
import metrics
import quantizer
from codebooks import random_codebooks, update_codebooks
from util import stream


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


def rank(rng):
    database = rng.normal(size=(193_000, 300)).astype(np.float32)
    queries = rng.normal(size=(2_000, 300)).astype(np.float32)
    codes = rng.integers(0, 256, (193_000, 4)).astype(np.uint8)
    codebooks = random_codebooks(4, rng)
    labels = [rng.random((n, 21)) < 0.1 for n in (2_000, 193_000)]
    with timed("MAP@5000 of 2,000 queries, 193,000 images, 32-bit codes (AQD, SQD)"):
        metrics.evaluate(lambda q: quantizer.quantized_scores(queries[q], codes, codebooks), *labels, 5000)
    with timed("the same with embeddings (feats)"):
        metrics.evaluate(lambda q: queries[q] @ database.T, *labels, 5000)


if __name__ == "__main__":
    for part in (parse_matrix, encode, rank):
        part(stream(0, part.__name__))
