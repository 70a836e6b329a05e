"""Photos embedded a second, decoding included: `python experiments/bench_embedding.py [FOLDER]`.

1. EfficientNet-Lite0 in ONNX Runtime, as it is and in eight bits, one crop.
2. AlexNet with random weights, ten crops, in TensorFlow and in ONNX Runtime.
The variants of a part take turns in one process; the first turn is not counted.
"""
import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from models.checkpoint import ALEXNET, CROPS, LAST, embedder_of, read_checkpoint
from models.encoder import ImageEncoder, PhotoEmbedder
from models.make_encoder import export_alexnet, write_eight_bit
from retrieval.photos import photo_names
from storage.arrays import CODEBOOKS, write_weights
from util import DIMENSIONS, ROOT, run_program, stream

DRAWN, TURNS = 512, 4  # photos; turns that are counted


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="FOLDER", type=Path, nargs="?",
                        help=f"photos to embed (default: {DRAWN} drawn ones of 500×375 pixels)")
    parser.add_argument("--encoder", type=Path, default=ROOT / "efficientnet_lite0.onnx", metavar="FILE.onnx",
                        help="the encoder of the first part (default: efficientnet_lite0.onnx, which "
                             "prepare/efficientnet.py writes)")
    return parser.parse_args()


def main():
    options = parse_arguments()
    import net_val  # loads TensorFlow
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        paths = draw_photos(folder) if options.folder is None else [
            options.folder / name for name in photo_names(options.folder)[:DRAWN]]
        eight_bit = folder / "eight_bit.onnx"
        encoder = ImageEncoder(options.encoder)
        write_eight_bit(encoder, eight_bit, paths, 0)
        encoders = {"as it is": encoder, "in eight bits": ImageEncoder(eight_bit)}
        rng = stream(0, "last layers")
        compare(f"{options.encoder.stem}, one crop", paths, {
            name: PhotoEmbedder(encoder, last_layer(encoder.width, rng), True, 1).embed
            for name, encoder in encoders.items()})
        checkpoint = random_alexnet(folder / "alexnet.npy", rng)
        export_alexnet(folder / "alexnet.npy", checkpoint)
        compare("AlexNet, ten crops", paths[:DRAWN // 8], {
            "TensorFlow": partial(net_val.ValidationNetwork(CROPS, "/cpu:0").embed_photos, checkpoint.weights),
            "ONNX Runtime": embedder_of(folder / "alexnet.npy", checkpoint, CROPS).embed})


def draw_photos(folder):
    """Draw photos, smooth random colours with noise, into `folder`. Returns their paths."""
    rng, paths = stream(0, "bench"), [folder / f"{number}.jpg" for number in range(DRAWN)]
    for path in paths:
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        photo = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(path), cv2.add(photo, rng.integers(0, 24, photo.shape, dtype=np.uint8)))
    return paths


def last_layer(width, rng):
    """A random last layer."""
    return [rng.normal(0, 0.01, (width, DIMENSIONS)).astype(np.float32), np.zeros(DIMENSIONS, np.float32)]


def random_alexnet(path, rng):
    """A Checkpoint of AlexNet with random weights, written to `path`."""
    weights = {layer: [rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32),
                       np.zeros(shape[-1], np.float32)] for layer, shape in ALEXNET.items()}
    weights[LAST] = last_layer(len(weights[LAST][0]), rng)
    write_weights(path, {**weights, CODEBOOKS: np.zeros((256, DIMENSIONS), np.float32)})
    return read_checkpoint(path)


def compare(title, paths, kinds):
    """Print the median photos a second of each of `kinds`, {name: function of paths}, and its ratio to the first."""
    rates = {name: [] for name in kinds}
    for turn in range(1 + TURNS):
        for name, embed in kinds.items():
            began = time.perf_counter()
            embed(paths)
            if turn:
                rates[name].append(len(paths) / (time.perf_counter() - began))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    first = next(iter(medians.values()))
    print(title)
    for name, median in medians.items():
        print(f"  {name:14} {median:7.1f} photos/s, {median / first:.2f} times the first")


if __name__ == "__main__":
    run_program(main)
