"""Fit a checkpoint's codebooks anew: `python fit.py DATASET CHECKPOINT GPU [options]`."""
import argparse
from pathlib import Path

from util import MOST_CODEBOOKS, add_precision, add_shared_options, gpu_numbers, number, run_program


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Fit codebooks to what a trained checkpoint makes of its training images, as train.py --final-fit "
                    "does at its end; writes <experiment>_fit.npy beside the checkpoint, for 8 to 64 bits an image.")
    parser.add_argument("dataset", metavar="DATASET", help="the data set whose training images the checkpoint has seen")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path,
                        help="an .npy file of train.py or of the release")
    parser.add_argument("gpu", metavar="GPU", type=gpu_numbers,
                        help="number of the GPU, several as 0,1; -1 or cpu for the CPU")
    parser.add_argument("--codebooks", type=number(int, 1, MOST_CODEBOOKS), metavar="M",
                        help=f"1 to {MOST_CODEBOOKS}; 8 bits each (default: as many as the checkpoint has)")
    parser.add_argument("--output", type=Path, metavar="FILE.npy",
                        help="the file to write (default: the experiment's name with _fit, and with the new bits)")
    parser.add_argument("--features", type=Path, metavar="FILE.h5",
                        help="the features that a checkpoint of train.py --features was trained on")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read, and count them")
    add_precision(parser)
    add_shared_options(parser)
    return parser.parse_args()


def main():
    options = parse_arguments()
    from models import fitting
    fitting.fit(options)


if __name__ == "__main__":
    run_program(main)
