"""Which loss to train the last layer with: `python experiments/losses.py DATASET WORD_VECTORS GPU [options]`."""
import argparse
from pathlib import Path

from util import ROOT, number, run_program


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Train the last layer on fixed features with each loss, with and without the tag graph, over "
                    "several seeds, and print one table of MAP over the whole database: of float embeddings, and of "
                    "codes of fitted codebooks. A finished training is not repeated.")
    parser.add_argument("dataset", metavar="DATASET", help="a data set that can be trained and validated")
    parser.add_argument("vectors", metavar="WORD_VECTORS", help="as of tag_processing.py")
    parser.add_argument("gpu", metavar="GPU", help="number of the GPU; -1 or cpu for the CPU")
    parser.add_argument("--also", metavar="DATASET", action="append", default=[],
                        help="a data set with the same images and other labels, that is measured too")
    parser.add_argument("--backbone", default="efficientnet_lite0", help="as of train.py (default efficientnet_lite0)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="as of train.py (default BACKBONE.npy in --root)")
    parser.add_argument("--seeds", type=number(int, 1), default=3, help="runs of each variant (default 3)")
    parser.add_argument("--only", metavar="NAME", action="append", help="a row of the table (default: all)")
    parser.add_argument("--faiss", action="store_true", help="FAISS's quantizers on the same embeddings too")
    parser.add_argument("--threshold", type=number(float, -1, 1), default=0.75, help="of the tag graph (default 0.75)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                        help="folder that holds data/ and the rest (default: this program's folder)")
    return parser.parse_args()


def main():
    options = parse_arguments()
    from experiments import loss_table
    loss_table.compare(options)


if __name__ == "__main__":
    run_program(main)
