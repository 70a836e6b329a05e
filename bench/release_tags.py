"""The tags of the release's comparison run on Corel-5K: `python bench/release_tags.py DATASET WORD_VECTORS`.

Each tag with a vector stays as it is: no graph, no merging, and vectors that are not normalised, which
tag_processing.py never writes. See reference_logs/README.md.
"""
import sys

from dataset import find_dataset, read_tag_names
from tag_merging import write_tags
from util import ROOT, run_program
from word_vectors import find_vectors


def main():
    dataset = find_dataset(sys.argv[1], ROOT)
    vectors, spelled = find_vectors(read_tag_names(dataset.tag_list), sys.argv[2])
    found = [column for column, spelling in enumerate(spelled) if spelling is not None]
    write_tags(dataset, vectors[found], {row: [column] for row, column in enumerate(found)}, {})
    print(f"{len(found)} tags")


if __name__ == "__main__":
    run_program(main)
