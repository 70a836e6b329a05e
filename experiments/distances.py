"""In which distance to find codes: `python experiments/distances.py DATASET RETRIEVAL_H5 [options]`."""
import argparse
from pathlib import Path

from util import ROOT, number, run_program


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Fit codebooks in the distances that powers of the embeddings' second moment make, and rank "
                    "training photos by them that were held out, whose tags tell what is relevant. Prints MAP of each. "
                    "No label is looked at.")
    parser.add_argument("dataset", metavar="DATASET", help="a data set whose training photos are its database too")
    parser.add_argument("retrieval", metavar="RETRIEVAL_H5", type=Path, help="its <experiment>_retrieval.h5")
    parser.add_argument("--queries", type=number(int, 1), default=700, metavar="N",
                        help="photos that are held out (default 700)")
    parser.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0, help="of all choices (default 0)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                        help="folder that holds data/ and the rest (default: this program's folder)")
    return parser.parse_args()


def main():
    options = parse_arguments()
    from experiments import held_out_tags
    held_out_tags.compare(options)


if __name__ == "__main__":
    run_program(main)
