"""A small retrieval file's content, and a log that is a list of its lines."""
import numpy as np

from quantization.codebooks import random_codebooks
from retrieval.retrieval_file import Retrieval


def small_retrieval(rng, m=2, queries=30, images=120):
    c = random_codebooks(m, rng)
    arrays = {"codebooks": c}
    for prefix, n in (("db", images), ("qry", queries)):
        arrays[f"{prefix}_features"] = rng.normal(size=(n, 300)).astype(np.float32)
        arrays[f"{prefix}_codes"] = rng.integers(0, 256, (n, m)).astype(np.uint8)
        arrays[f"{prefix}_label"] = (rng.random((n, 4)) < 0.4).astype(np.uint8)
    return Retrieval(**arrays)


class Log(list):
    def info(self, line):
        self.append(line)

    warning = info
