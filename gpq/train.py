"""Train GPQ on CIFAR-10: `python -m gpq.train GPU [options]`."""
import argparse

from gpq.config import add_options, from_options
from util import gpu_number, run_program


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="python -m gpq.train",
        description="Train GPQ's network, codebooks and prototypes on labelled and unlabelled images; writes "
                    "<checkpoints>/<experiment>/step_NNNNNN and <logs>/<experiment>.log.")
    parser.add_argument("gpu", metavar="GPU", type=gpu_number, help="number of the GPU; -1 or cpu for the CPU")
    parser.add_argument("--loss", choices=("gpq", "classification"), default="gpq",
                        help="the whole method, or, to compare with, the classification loss alone, without "
                             "unlabelled images (default gpq)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    add_options(parser)
    return parser.parse_args()


def main():
    options = parse_arguments()
    from gpq import training
    training.train(options, from_options(options))


if __name__ == "__main__":
    run_program(main)
