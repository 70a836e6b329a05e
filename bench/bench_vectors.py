"""Reading word vectors from a file such as GoogleNews' (3,000,000 of them): `python bench/bench_vectors.py`.

A file of 300,000 random vectors is made, plain and compressed; 1,386 words are wanted. The time for 3,000,000 is ten
times as long, for the file streams by.
"""
import argparse
import gzip
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DIMENSIONS, WANTED, GOOGLE_NEWS = 300, 1386, 3_000_000
BLOCK = 10_000  # vectors that are made at once
READ = f"""
import sys
from word_vectors import read_vectors
step = int(sys.argv[2]) // {WANTED}
found = read_vectors(sys.argv[1], {{f"word_{{i * step}}" for i in range({WANTED})}})
assert len(found) == {WANTED}
"""


def write_vectors(path, count, opener):
    """A word2vec binary of random vectors."""
    rng = np.random.default_rng(0)
    with opener(path, "wb") as file:
        file.write(f"{count} {DIMENSIONS}\n".encode())
        for start in range(0, count, BLOCK):
            vectors = rng.standard_normal((BLOCK, DIMENSIONS), np.float32)
            file.writelines(f"word_{start + i} ".encode() + vector.tobytes() for i, vector in enumerate(vectors))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vectors", type=int, default=300_000, help="in the file (default 300000)")
    count = parser.parse_args().vectors
    with tempfile.TemporaryDirectory() as folder:
        for name, opener in (("vectors.bin", open), ("vectors.bin.gz", partial(gzip.open, compresslevel=1))):
            path = Path(folder) / name
            write_vectors(path, count, opener)
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", READ, path, str(count)], check=True)
            seconds = time.perf_counter() - began
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            print(f"{name}: {count:,} vectors in {seconds:.1f} s, so {GOOGLE_NEWS:,} in about "
                  f"{seconds * GOOGLE_NEWS / count / 60:.1f} minutes; peak {peak:.2f} GiB")
            path.unlink()


if __name__ == "__main__":
    main()
