"""What marking results as right or wrong gains: `python experiments/feedback.py RETRIEVAL_H5 [options]`."""
import argparse
from pathlib import Path

from util import number, run_program


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Simulate one round of the page's feedback on a retrieval file (validation.py writes it): of every "
                    "query's first results those that share a label with it are marked as right, the others as wrong, "
                    "and the query is moved by Rocchio's rule. Prints MAP over the photos that were not marked, before "
                    "and after.")
    parser.add_argument("retrieval", metavar="RETRIEVAL_H5", type=Path, help="an <experiment>_retrieval.h5")
    parser.add_argument("--marked", type=number(int, 1, 1000), action="append", metavar="N",
                        help="results that are marked; may be given again (default: 5, 10 and 20)")
    return parser.parse_args()


def main():
    options = parse_arguments()
    from experiments import feedback_round
    feedback_round.compare(options)


if __name__ == "__main__":
    run_program(main)
