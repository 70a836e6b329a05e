"""Photos a second of two of Ray's workers and of one, a thread each: `python bench/bench_encode.py`.

In turns in one run over the same drawn photos, so that what else the machine does falls on both. Counted once each
worker has ended its first shard, so that starting up is left out.
"""
import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from backbones import alexnet
from codebooks import random_codebooks
from retrieval.encoded import Job, cut
from retrieval.encoding import versions
from retrieval.ray_encoding import encode_by_ray, ray
from storage.checkpoint import Checkpoint
from util import DIMENSIONS, progress, stream

CODEBOOKS, SIDES = 4, (375, 500)


def make_photos(folder, photos):
    rng = stream(0, "bench photos")
    names = [f"{i:05}.jpg" for i in range(photos)]
    for name in names:
        cv2.imwrite(str(folder / name), cv2.resize(rng.integers(0, 256, (30, 40, 3), np.uint8), SIDES[::-1]))
    return names


def make_model():
    """Random weights of the real shapes: their values do not change how long anything takes."""
    rng = stream(0, "bench encode")
    weights = {layer: [rng.normal(0, 0.01, shape).astype(np.float32), np.zeros(shape[-1], np.float32)]
               for layer, shape in alexnet.LAYERS.items()}
    checkpoint = Checkpoint(weights, random_codebooks(CODEBOOKS, rng), fitted=False)
    return checkpoint, checkpoint.factor(rng.normal(size=(DIMENSIONS, DIMENSIONS)))


def photos_a_second(job, model, workers):
    shards = range(len(job.shards))
    made = encode_by_ray(job, list(shards), model, None, progress(unit="photo"), "local", workers)
    with contextlib.closing(made):
        ends = [time.perf_counter() for _ in made]
    return (len(shards) - workers) * job.plan["shard"] / (ends[-1] - ends[workers - 1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, default=18, help="of photos (default 18)")
    parser.add_argument("--shard", type=int, default=64, help="photos a shard (default 64)")
    parser.add_argument("--crops", type=int, default=10, choices=(10, 5, 1), help="crops a photo (default 10)")
    parser.add_argument("--rounds", type=int, default=3, help="of one worker and of two (default 3)")
    options = parser.parse_args()
    ray.data.DataContext.get_current().wait_for_min_actors_s = 600  # so that all workers begin together
    model = make_model()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        names = make_photos(folder, options.shards * options.shard)
        job = Job(folder / "out", folder, {
            "crops": options.crops, "precision": "float32", "seed": 0, "shard": options.shard, "codebooks": CODEBOOKS,
            "versions": versions()}, cut([names], options.shard))
        rates = {1: [], 2: []}
        for _ in range(options.rounds):
            for workers, found in rates.items():
                found.append(photos_a_second(job, model, workers))
                print(f"{workers} worker{'s' * (workers > 1)}: {found[-1]:.1f} photos/s", flush=True)
    ratios = [two / one for one, two in zip(*rates.values(), strict=True)]
    print(f"two workers to one: {statistics.median(ratios):.2f} (median of {len(ratios)} rounds; "
          f"{min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
