"""A checkpoint for photos without tags: `python train_untagged.py DATASET SUBSPACE_NUM NOTES GPU [options]`.

Its index is searched by photos, not by words.
"""
import argparse
from pathlib import Path

from util import MOST_CODEBOOKS, add_precision, add_shared_options, gpu_numbers, number, run_program


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Make a checkpoint for photos that have too few tags to learn from: EfficientNet-Lite0's features, "
                    "reduced to 300 numbers by PCA, and codebooks fitted to them. Writes checkpoints/<experiment>.npy "
                    "and .json.")
    parser.add_argument("dataset", metavar="DATASET", help="the name of a folder in data/; train_img.txt is enough")
    parser.add_argument("codebooks", metavar="SUBSPACE_NUM", type=number(int, 1, MOST_CODEBOOKS),
                        help=f"codebooks, 1 to {MOST_CODEBOOKS}; 8 bits each")
    parser.add_argument("notes", metavar="NOTES", help="ends the experiment's name")
    parser.add_argument("gpu", metavar="GPU", type=gpu_numbers,
                        help="number of the GPU, several as 0,1; -1 or cpu for the CPU")
    parser.add_argument("--weights", type=Path, metavar="FILE",
                        help="the backbone's weights (default: efficientnet_lite0.npy in --root)")
    parser.add_argument("--print-path", action="store_true",
                        help="print the path of the checkpoint that these arguments make, and do nothing else")
    add_precision(parser)
    add_shared_options(parser)
    options = parser.parse_args()
    if "/" in options.notes:
        parser.error(f"argument NOTES: expected no slash, found {options.notes!r}")
    options.backbone, options.crops, options.views = "efficientnet_lite0", "fixed", 1
    options.weights = options.weights or options.root / f"{options.backbone}.npy"
    options.backbone_init = "file"
    return options


def checkpoint_path(options):
    """The checkpoint that these options make."""
    name = f"{options.dataset}_PCA_nbits={8 * options.codebooks}_{options.notes}.npy"
    return options.root / "checkpoints" / name


def main():
    options = parse_arguments()
    if options.print_path:
        print(checkpoint_path(options))
        return
    from models import untagged
    untagged.train(options, checkpoint_path(options))


if __name__ == "__main__":
    run_program(main)
