"""Measure a GPQ checkpoint on CIFAR-10, and search with it: `python -m gpq.demo CHECKPOINT [GPU] [options]`."""
import argparse
from pathlib import Path

from gpq.config import add_options, from_options
from util import gpu_number, number, run_program


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="python -m gpq.demo",
        description="Encode the database with a checkpoint, print mAP over the whole of it beside that of a random "
                    "ranking, and draw a query's results and a t-SNE; writes metrics.json, index/, ranking.png and "
                    "tsne.png beside the checkpoint.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path,
                        help="a released .ckpt, or a folder of gpq.train, of which the newest step is taken")
    parser.add_argument("gpu", metavar="GPU", type=gpu_number, nargs="?", default=0,
                        help="number of the GPU; -1 or cpu for the CPU (default 0)")
    parser.add_argument("--release-table", action="store_true",
                        help="also measure with the release's codes and distance: raw features and raw codewords")
    parser.add_argument("--query", type=number(int, 0), metavar="ROW",
                        help="the query to draw, counted from 0 (default: one drawn by the seed)")
    parser.add_argument("--no-figures", action="store_true", help="draw nothing, and do without matplotlib")
    add_options(parser)
    return parser.parse_args()


def main():
    options = parse_arguments()
    figures = None
    if not options.no_figures:
        from retrieval import figures
    from gpq import measuring
    measuring.run(options, from_options(options), figures)


if __name__ == "__main__":
    run_program(main)
