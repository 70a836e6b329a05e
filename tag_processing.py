"""Merge the tags of a data set: `python tag_processing.py DATASET WORD_VECTORS GPU [options]`.

Writes `tags/FinalTagEmbs.txt`, `tags/TagIdMergeMap.pkl` and `tags/report.json` beside the split files.
"""
import argparse

from tags.word_vectors import FORMATS
from util import add_shared_options, gpu_number, number, run_program


def parse_options():
    parser = argparse.ArgumentParser(
        description="Gives each tag of a data set a vector, enhances it by its neighbours in the correlation graph, "
                    "merges synonyms, and writes tags/ beside the split files.")
    parser.add_argument("dataset", metavar="DATASET", help="flickr, nuswide, or NAME for data/NAME")
    parser.add_argument("word_vectors", metavar="WORD_VECTORS",
                        help=f"a file of 300-d vectors, {FORMATS}; or the word train, which trains them on the tag "
                             "lists of the training images")
    parser.add_argument("gpu", metavar="GPU", type=gpu_number,
                        help="accepted for the scripts' sake; this program computes on the CPU")
    # Chosen by reading the merged groups of NUS-WIDE's list with GloVe vectors, where T is 927; see docs/datasets.md.
    parser.add_argument("--neighbors", metavar="COUNT", type=number(int, 1), default=5,
                        help="so many nearest tags may be its neighbours (default 5)")
    parser.add_argument("--threshold", metavar="TAU", type=number(float, 0, 1), default=0.75,
                        help="tau: the least cosine between neighbours, 0 to 1 (default 0.75)")
    parser.add_argument("--merge-radius", metavar="EPS", type=number(float, 1e-9, 1), default=0.05,
                        help="eps: DBSCAN's radius as a cosine distance, up to 1 (default 0.05)")
    parser.add_argument("--no-graph", action="store_true",
                        help="the paper's ablation: no enhancement and no merging (default: both)")
    parser.add_argument("--limit", metavar="N", type=number(int, 1),
                        help="read no more than the first N vectors of the file (default: all)")
    add_shared_options(parser)
    return parser.parse_args()


def main():
    options = parse_options()
    train = None
    if options.word_vectors == "train":
        from tags.trained_vectors import train_vectors as train
    from tags import graph
    graph.process(options, train)


if __name__ == "__main__":
    run_program(main)
