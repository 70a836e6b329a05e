"""Seconds and peak memory of `tag_processing.py` on 10,000 tags: random vectors in clusters, 10,000 images.

    python bench/bench_tags.py [--tags 10000] [--images 10000]

To be met: under 120 s and 4 GB. The data set is made in a temporary folder and removed.
"""
import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PROGRAM = Path(__file__).resolve().parent.parent / "tag_processing.py"
DIMENSIONS = 300
TAGS_PER_IMAGE = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tags", type=int, default=10_000, help="raw tags (default 10000)")
    parser.add_argument("--images", type=int, default=10_000, help="training images (default 10000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for vectors in (make_dataset(Path(folder), options.tags, options.images), "train"):
            start = time.perf_counter()
            subprocess.run([sys.executable, PROGRAM, "bench", vectors, "cpu", "--root", folder], check=True,
                           stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            # The largest of the children so far; Linux counts in KiB.
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            print(f"{options.tags} tags, {options.images} images, {Path(vectors).name}: {seconds:.1f} s, "
                  f"peak {peak:.2f} GiB", flush=True)


def make_dataset(root, tags, images):
    """Write data/bench and a word2vec binary under `root`; return the latter. A third of the tags are alone."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(tags, DIMENSIONS))[rng.integers(0, tags, tags)]
    vectors = (centres + 0.5 * rng.normal(size=centres.shape)).astype(np.float32)
    splits = root / "data" / "bench"
    splits.mkdir(parents=True)
    (splits / "common_tags.txt").write_text("".join(f"tag{i}\n" for i in range(tags)))
    with open(splits / "train_tag.txt", "wb") as file:
        for _ in range(images):
            row = np.full(2 * tags, ord(" "), np.uint8)
            row[::2] = ord("0")
            row[2 * rng.integers(0, tags, TAGS_PER_IMAGE)] = ord("1")
            row[-1] = ord("\n")
            file.write(row.tobytes())
    with open(root / "vectors.bin", "wb") as file:
        file.write(f"{tags} {DIMENSIONS}\n".encode())
        for i, vector in enumerate(vectors):
            file.write(f"tag{i} ".encode() + vector.tobytes())
    return str(root / "vectors.bin")


if __name__ == "__main__":
    main()
