"""What --precision bfloat16 gains and changes: `python bench/bench_precision.py`.

A training step and the encoding of photos in float32 and in bfloat16, in turns in one process, so that what else the
machine does falls on both; then how alike the embeddings are. The weights are random ones.
"""
import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from bench_training import STEPS, make_data, timed, training
from storage.arrays import read_weights
from util import PRECISIONS, stream

CROPS = 10


def encoding(weights, images, precision):
    """A function that embeds images, uint8 (B, 256, 256, 3): float32 (B, D)."""
    from backbones import alexnet
    from encoder import EncodingGraph
    from session import open_session
    graph = EncodingGraph(alexnet, CROPS, "/cpu:0")
    session = open_session(graph.graph, precision)
    graph.initialize(session, weights)
    return lambda: session.run(graph.outputs, {graph.images: images})


def report(what, images, seconds):
    """Print the median of each precision and their ratio, both over all and round by round."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{what}, {name:8} {median:7.2f} s, {images / median:7.1f} images/s (best {min(seconds[name]):.2f} s)")
    ratios = [there / here for there, here in zip(*seconds.values(), strict=True)]
    print(f"{what}: bfloat16 is {statistics.median(ratios):.2f} times as fast (median of {len(ratios)} pairs, "
          f"{min(ratios):.2f} to {max(ratios):.2f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-size", type=int, default=64, help="images a training step (default 64)")
    parser.add_argument("--images", type=int, default=16, help="photos a run of the encoder (default 16)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of 3 counted steps of each kind (default 3)")
    options = parser.parse_args()
    from session import has_bfloat16
    print(f"instructions for bfloat16: {'yes' if has_bfloat16() else 'no'}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_data(root)
        steps = {precision: partial(next, training(root, options.batch_size, 4, precision)) for precision in PRECISIONS}
        report("training step", options.batch_size, timed(steps, options.rounds, STEPS))
        weights = read_weights(root / "alexnet.npy")
        photos = photos_of(root, options.images)
    del steps
    runs = {precision: encoding(weights, photos, precision) for precision in PRECISIONS}
    report("encoding", options.images, timed(runs, options.rounds, STEPS))
    exact, rounded = (run() for run in runs.values())
    cosines = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    print(f"cosine of an embedding with its float32 one: median {np.median(cosines):.6f}, least {cosines.min():.6f} "
          f"({len(cosines)} photos)")


def photos_of(root, count):
    """Some of the photos that `make_data` drew, uint8 (count, 256, 256, 3)."""
    import image_files
    paths = sorted((root / "datasets" / "bench").glob("*.jpg"))
    rows = stream(0, "bench photos").permutation(len(paths))[:count]
    return image_files.ImageStore([paths[row] for row in rows]).images(range(count))


if __name__ == "__main__":
    main()
