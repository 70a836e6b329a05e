"""Features of a data set's photos by any image encoder in ONNX: `python prepare/features.py DATASET MODEL.onnx …`.

train.py, validation.py and fit.py take the file with --features.
"""
import argparse
import os
import sys
from pathlib import Path

from util import ROOT, gpu_number, number, run_program


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Compute features of the photos of a data set with a model in ONNX; writes features/NAME.h5 with "
                    "`train`, `database` and `query`, images × features, for --features of train.py, validation.py "
                    "and fit.py. After an interruption the same command goes on.")
    parser.add_argument("dataset", metavar="DATASET", help="flickr, nuswide, or the name of a folder in data/")
    parser.add_argument("model", metavar="MODEL.onnx", type=Path,
                        help="an image encoder: images × 3 × S × S or images × S × S × 3 to images × features, or to "
                             "maps of features, of which the mean over height and width is taken")
    parser.add_argument("--size", type=number(int, 1), required=True, metavar="S",
                        help="pixels of the square that the model sees")
    parser.add_argument("--mean", type=number(float), nargs=3, required=True, metavar=("R", "G", "B"),
                        help="what is subtracted from pixel values, which are 0 to 1")
    parser.add_argument("--std", type=number(float, 1e-6), nargs=3, required=True, metavar=("R", "G", "B"),
                        help="what they are divided by then")
    parser.add_argument("--output", required=True, metavar="NAME", help="names the file, features/NAME.h5")
    parser.add_argument("--resize", type=number(int, 1, 4096), metavar="SIDE",
                        help="pixels to which a photo's shorter side is resized, before the middle S×S is cut out "
                             "(default S)")
    parser.add_argument("--stretch", action="store_true",
                        help="resize both sides to SIDE, whatever the photo's proportions")
    parser.add_argument("--bgr", action="store_true", help="the model's channels are blue, green, red")
    parser.add_argument("--layer", metavar="OUTPUT", help="the model's output to take, if it has several")
    parser.add_argument("--batch-size", type=number(int, 1), default=16, help="photos a run (default 16)")
    parser.add_argument("--gpu", type=gpu_number, metavar="GPU", help="number of the GPU (default: the CPU)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                        help="folder that holds data/, datasets/ and features/ (default: this program's folder)")
    options = parser.parse_args()
    options.resize = options.resize or options.size
    if options.size > options.resize:
        parser.error(f"--resize {options.resize}: expected at least --size, {options.size}")
    if "/" in options.output or options.output.startswith("."):
        parser.error(f"--output: expected a name without slash or dot before it, found {options.output!r}")
    return options


def main():
    options = parse_arguments()
    from prepare import model_features
    model_features.compute(options)


if __name__ == "__main__":
    if os.path.realpath(sys.path[0]) == str(Path(__file__).resolve().parent):
        del sys.path[0]  # Python looks there first, and would take this file for the room `features`
    run_program(main)
