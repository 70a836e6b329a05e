"""Validate a checkpoint: `python validation.py DATASET CHECKPOINT GPU [options]`."""
import argparse
from pathlib import Path

from util import CROPS, CROPS_HELP, add_precision, add_shared_options, gpu_numbers, number, run_program


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Encode database and queries with a checkpoint and report MAP; writes "
                    "<experiment>_retrieval.h5 and <experiment>_metrics.json beside the checkpoint.")
    parser.add_argument("dataset", metavar="DATASET", help="flickr, nuswide, or the name of a folder in data/")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path,
                        help="an .npy file of train.py or of the release; its codebooks tell the bits")
    parser.add_argument("gpu", metavar="GPU", type=gpu_numbers,
                        help="number of the GPU, several as 0,1; -1 or cpu for the CPU")
    parser.add_argument("--crops", type=int, choices=CROPS, help=CROPS_HELP)
    parser.add_argument("--features", type=Path, metavar="FILE.h5",
                        help="features of database and query that a checkpoint of train.py --features was trained on")
    parser.add_argument("--topk", type=number(int, 1), default=5000, metavar="K",
                        help="results a query that count in MAP@K; cut to the size of the database (default 5000)")
    add_precision(parser)
    parser.add_argument("--skip-bad", action="store_true",
                        help="leave out images that cannot be read, with their rows, and count them")
    parser.add_argument("--figures", action="store_true",
                        help="draw curves, rankings, a t-SNE map, codeword usage and the training into "
                             "<experiment>_figures/ beside the checkpoint (needs matplotlib)")
    add_shared_options(parser)
    return parser.parse_args()


def main():
    options = parse_arguments()
    if options.figures:
        from retrieval import figures
    import net_val

    net_val.validate(options, figures.write_all if options.figures else None)


if __name__ == "__main__":
    run_program(main)
