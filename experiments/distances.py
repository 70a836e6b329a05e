"""What codes should stand for, and in which distance: `python experiments/distances.py RETRIEVAL_H5 [options]`."""
import argparse
from pathlib import Path

from util import number, run_program


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Fit codebooks to the database's embeddings, averaged more or less with their neighbours, in the "
                    "distances that powers of their second moment Σ make. Print MAP of each over the whole database by "
                    "all labels, by those that at most 2.5 % of its photos have, and the precision of the first ten "
                    "results. To choose by them, take a data set of prepare/held_out.py, whose labels are tags.")
    parser.add_argument("retrieval", metavar="RETRIEVAL_H5", type=Path, help="an <experiment>_retrieval.h5")
    parser.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0, help="of all choices (default 0)")
    return parser.parse_args()


def main():
    options = parse_arguments()
    from experiments import code_distances
    code_distances.compare(options)


if __name__ == "__main__":
    run_program(main)
