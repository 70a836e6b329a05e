"""Train WSDHQ: `python train.py DATASET LR ITERATIONS LAMBDA SUBSPACE_NUM LOSS NOTES GPU [options]`."""
import argparse
from pathlib import Path

from storage.run_log import experiment_name
from util import (
    MOST_CODEBOOKS,
    add_precision,
    add_shared_options,
    gpu_numbers,
    number,
    run_program,
)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Train AlexNet and the codebooks on images and their merged tags; writes "
                    "checkpoints/<experiment>.npy and .json, and logs/<experiment>.log.")
    parser.add_argument("dataset", metavar="DATASET", help="flickr, nuswide, or the name of a folder in data/")
    parser.add_argument("lr", metavar="LR", type=number(float, 0),
                        help="learning rate of the first 300 steps; it halves every 300 steps")
    parser.add_argument("iterations", metavar="ITERATIONS", type=number(int, 0), help="gradient steps")
    parser.add_argument("lambda_", metavar="LAMBDA", type=number(float, 0), help="weight of the quantization loss")
    parser.add_argument("codebooks", metavar="SUBSPACE_NUM", type=number(int, 1, MOST_CODEBOOKS),
                        help=f"codebooks, 1 to {MOST_CODEBOOKS}; 8 bits each")
    parser.add_argument("loss", metavar="LOSS", choices=("WSDQH", "WSDHQ", "WDHT"),
                        help="WSDQH (the release's spelling; WSDHQ is the same): the adaptive cosine margin; "
                             "WDHT: the baseline's hinge")
    parser.add_argument("notes", metavar="NOTES", help="ends the experiment's name")
    parser.add_argument("gpu", metavar="GPU", type=gpu_numbers,
                        help="number of the GPU, several as 0,1; -1 or cpu for the CPU")
    margin = parser.add_argument_group("loss")
    margin.add_argument("--fixed-margin", action="store_true", help="--margin in place of the adaptive margin")
    margin.add_argument("--margin", type=number(float), default=0.7,
                        help="of --fixed-margin and WDHT, in cosine (default 0.7)")
    margin.add_argument("--gamma", type=number(float, 0), default=1.0,
                        help="exponent of the adaptive margin (default 1)")
    margin.add_argument("--no-l2-norm", action="store_true", help="embeddings and words are not normalised")
    margin.add_argument("--negative-sampling", action="store_true",
                        help="only the best-scored tags of an image count as ones it has not")
    margin.add_argument("--two-stage", action="store_true",
                        help="the paper's ablation: train the network first, codebooks and codes afterwards")
    network = parser.add_argument_group("network")
    network.add_argument("--weights", type=Path, metavar="FILE",
                         help="weights to start from: alexnet.npy, or a checkpoint, from whose fc8 and codebooks "
                              "training then goes on (default: alexnet.npy in --root)")
    network.add_argument("--backbone-init", choices=("file", "lsuv"), default="file",
                         help="start from --weights, or from random weights, scaled layer by layer to unit variance; "
                              "these learn with LR 1e-5 to 3e-5 and --dropout 0 (default file)")
    network.add_argument("--finetune", choices=("all", "last"), default="all",
                         help="layers to train: all, or fc8 alone (default all)")
    network.add_argument("--dropout", type=number(float, 0, 0.99), default=0.5,
                         help="share of fc6 and fc7 that is dropped (default 0.5)")
    running = parser.add_argument_group("running")
    running.add_argument("--batch-size", type=number(int, 1), default=256, help="images a step (default 256)")
    add_precision(running)
    running.add_argument("--cache-gb", type=number(float, 0), default=4.0,
                         help="memory for decoded images, GB of 10^9 bytes (default 4; 5,000 images a GB)")
    running.add_argument("--skip-bad", action="store_true",
                         help="leave out images that cannot be read, with their rows, and count them")
    running.add_argument("--save-every", type=number(int, 1), metavar="N",
                         help="save a state that can be resumed every N steps; the newest is kept "
                              "(0.7 GB; default: none)")
    running.add_argument("--resume", action="store_true",
                         help="go on from the newest saved state, also one that Ctrl-C left; the weights at the end "
                              "are those of a run that was not interrupted")
    running.add_argument("--print-path", action="store_true",
                         help="print the path of the checkpoint that these arguments train, and do nothing else")
    add_shared_options(parser)
    options = parser.parse_args()
    if options.loss == "WSDHQ":
        options.loss = "WSDQH"  # the release's spelling, so that names agree
    if options.weights is not None and options.backbone_init == "lsuv":
        parser.error("--weights and --backbone-init lsuv exclude each other")
    if options.negative_sampling and options.loss == "WDHT":
        parser.error("--negative-sampling is an option of WSDQH, not of WDHT")
    if options.weights is None:
        options.weights = options.root / "alexnet.npy"
    if "/" in options.notes:
        parser.error(f"argument NOTES: expected no slash, found {options.notes!r}")
    return options


def checkpoint_path(options):
    """The checkpoint that these options train."""
    experiment = experiment_name(options.dataset, options.loss, options.codebooks, options.fixed_margin,
                                 options.margin, options.gamma, options.lambda_, options.notes)
    return options.root / "checkpoints" / f"{experiment}.npy"


def main():
    options = parse_arguments()
    if options.print_path:
        print(checkpoint_path(options))
        return
    import net
    net.train(options, checkpoint_path(options), "alexnet")


if __name__ == "__main__":
    run_program(main)
