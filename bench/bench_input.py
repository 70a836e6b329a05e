"""Which side of a step waits, the loader or the network: `python bench/bench_input.py`.

1. Images a second of the loader alone: random crops of photo-sized JPEG files on one core and on all, decoded each time
   or from the cache.
2. Images a second of training steps, in turns in one process, and the seconds of a step that wait for its images.
3. Images a second of encoding with ten crops, from the files.
"""
import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from bench_training import STEPS, make_data, training
from storage.arrays import read_weights
from util import PRECISIONS, stream

CACHES = (0, 4)  # --cache-gb


def loader(paths, batch_size, cache_gb, cores, seconds):
    """Images a second of random crops on some cores, for about so many seconds."""
    import image_files
    from backbones import alexnet
    os.sched_setaffinity(0, cores)  # of this thread, and of those that it starts from here on
    store = image_files.ImageStore(paths, cache_gb * 1e9)
    if cache_gb:
        store.images(range(len(store)))
    began, loaded = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        rng = stream(0, "bench input", loaded)
        loaded += len(image_files.random_crops(store, rng.permutation(len(store))[:batch_size], alexnet.SIDE, rng))
    return loaded / (time.perf_counter() - began)


def loaders(paths, batch_size, rounds):
    """Print the loader's rates."""
    every = os.sched_getaffinity(0)
    kinds = {(len(cores), cache_gb): (cache_gb, cores) for cores in ({min(every)}, every) for cache_gb in CACHES}
    rates = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, (cache_gb, cores) in kinds.items():
            rates[kind].append(loader(paths, batch_size, cache_gb, cores, 2))
    os.sched_setaffinity(0, every)
    for (cores, cache_gb), values in rates.items():
        print(f"loader alone, {cores} core{'s' if cores > 1 else ' '}, --cache-gb {cache_gb}"
              f"{statistics.median(values):16.0f} images/s")


def steps(root, batch_size, rounds):
    """Print the rates of training steps, and what a step waits."""
    kinds = {(precision, cache_gb): training(root, batch_size, cache_gb, precision)
             for precision in PRECISIONS for cache_gb in CACHES}
    taken = {kind: [] for kind in kinds}  # of (seconds, seconds of them waited)
    for _ in range(rounds):
        for kind, generator in kinds.items():
            for number in range(STEPS):
                began = time.perf_counter()
                waited = next(generator)
                if number:
                    taken[kind].append((time.perf_counter() - began, waited))
    for (precision, cache_gb), values in taken.items():
        whole, waited = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"training step, {precision:8}, --cache-gb {cache_gb}  {batch_size / whole:8.1f} images/s; of its "
              f"{whole:.2f} s it waits {waited:.3f} s for images and computes {whole - waited:.2f} s")


def encoders(weights, paths, rounds):
    """Print the rates of encoding."""
    from encoder import Encoder
    kinds = {precision: Encoder(weights, 10, "/cpu:0", precision) for precision in PRECISIONS}
    rates = {precision: [] for precision in kinds}
    for number in range(1 + rounds):
        for precision, ready in kinds.items():
            began = time.perf_counter()
            ready.embed(paths)
            if number:
                rates[precision].append(len(paths) / (time.perf_counter() - began))
    for precision, values in rates.items():
        print(f"encoding, {precision:8}, ten crops  {statistics.median(values):14.1f} images/s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-size", type=int, default=64, help="images a step (default 64)")
    parser.add_argument("--encoded", type=int, default=64, help="images that are encoded a time (default 64)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each part (default 3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_data(root)
        paths = sorted((root / "datasets" / "bench").glob("*.jpg"))
        loaders(paths, options.batch_size, options.rounds)
        steps(root, options.batch_size, options.rounds)
        encoders(read_weights(root / "alexnet.npy"), paths[:options.encoded], options.rounds)


if __name__ == "__main__":
    main()
