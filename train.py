"""Train WSDHQ: `python train.py DATASET LR ITERATIONS LAMBDA SUBSPACE_NUM LOSS NOTES GPU [options]`."""
import argparse
from pathlib import Path

from storage.log import experiment_name
from util import (
    CROPS,
    MOST_CODEBOOKS,
    add_precision,
    add_shared_options,
    gpu_numbers,
    number,
    run_program,
)

SOFTMAX_LOSSES = ("SOFTMAX", "MILNCE")
BACKBONE_DEFAULTS = {"alexnet": ("all", 0.5), "efficientnet_lite0": ("last", 0.2)}  # --finetune and --dropout


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Train a network and the codebooks on images and their merged tags; writes "
                    "checkpoints/<experiment>.npy and .json, and logs/<experiment>.log.")
    parser.add_argument("dataset", metavar="DATASET", help="flickr, nuswide, or the name of a folder in data/")
    parser.add_argument("lr", metavar="LR", type=number(float, 0),
                        help="learning rate of the first 300 steps; it halves every 300 steps")
    parser.add_argument("iterations", metavar="ITERATIONS", type=number(int, 0), help="gradient steps")
    parser.add_argument("lambda_", metavar="LAMBDA", type=number(float, 0), help="weight of the quantization loss")
    parser.add_argument("codebooks", metavar="SUBSPACE_NUM", type=number(int, 1, MOST_CODEBOOKS),
                        help=f"codebooks, 1 to {MOST_CODEBOOKS}; 8 bits each")
    parser.add_argument("loss", metavar="LOSS", choices=("WSDQH", "WSDHQ", "WDHT", *SOFTMAX_LOSSES),
                        help="WSDQH (the release's spelling; WSDHQ is the same): the adaptive cosine margin; "
                             "WDHT: the baseline's hinge; SOFTMAX: cross entropy of softmax over all tags with an "
                             "image's own ones; MILNCE: -log of the softmax that these have together")
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
    margin.add_argument("--temperature", type=number(float, 0.001), default=0.1,
                        help="of SOFTMAX and MILNCE: what cosines are divided by (default 0.1)")
    margin.add_argument("--pairs", type=number(float, 0), default=0.0, metavar="WEIGHT",
                        help="of SOFTMAX and MILNCE: weight of a second loss, by which images that share tags should "
                             "be near one another (default 0; 1 for own photos)")
    network = parser.add_argument_group("network")
    network.add_argument("--backbone", choices=tuple(BACKBONE_DEFAULTS), default="alexnet",
                         help="the network below the embedding's layer (default alexnet, the paper's)")
    network.add_argument("--weights", type=Path, metavar="FILE",
                         help="weights to start from: those of the backbone, or a checkpoint, from whose fc8 and "
                              "codebooks training then goes on (default: BACKBONE.npy in --root)")
    network.add_argument("--backbone-init", choices=("file", "lsuv"), default="file",
                         help="start from --weights, or from random weights, scaled layer by layer to unit variance; "
                              "these learn with LR 1e-5 to 3e-5 and --dropout 0 (default file)")
    network.add_argument("--finetune", choices=("all", "last"),
                         help="layers to train: all, or fc8 alone (default: all of AlexNet, fc8 of "
                              "EfficientNet-Lite0)")
    network.add_argument("--crops", choices=("fixed", "random"),
                         help="with --finetune last, fixed: what fc8 sees of each image is computed once and kept in "
                              "features/, so that a step takes milliseconds; random: every step sees another crop "
                              "(default fixed where only fc8 is trained)")
    network.add_argument("--views", type=int, choices=CROPS, default=1,
                         help="of fixed crops: 1 is the centre, 2 its mirror image too, 5 and 10 as in validation "
                              "(default 1)")
    network.add_argument("--features", type=Path, metavar="FILE.h5",
                         help="train fc8 on features of any other model, as prepare/features.py writes them: `train`, "
                              "`database` and `query` in one file, images × features, rows as in the image lists")
    network.add_argument("--dropout", type=number(float, 0, 0.99),
                         help="share that is dropped of what the last layers see (default 0.5 of fc6 and fc7 of "
                              "AlexNet, else 0.2)")
    network.add_argument("--final-fit", action=argparse.BooleanOptionalAction,
                         help="fit the codebooks anew at the end, to the trained network's embeddings scaled to length "
                              "1, in plain Euclidean distance (default: with fixed crops or --features)")
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
    check_options(options, parser.error)
    fill_in(options)
    return options


def check_options(options, refuse):
    """Call `refuse(sentence)` for options that do not go together."""
    if options.weights is not None and options.backbone_init == "lsuv":
        refuse("--weights and --backbone-init lsuv exclude each other")
    if options.negative_sampling and options.loss not in ("WSDQH", "WSDHQ"):
        refuse(f"--negative-sampling is an option of WSDQH, not of {options.loss}")
    if options.pairs and options.loss not in SOFTMAX_LOSSES:
        refuse(f"--pairs is an option of {' and '.join(SOFTMAX_LOSSES)}, not of {options.loss}")
    if options.finetune == "all" and (options.crops == "fixed" or options.features is not None):
        refuse("--finetune all changes the layers whose output --crops fixed and --features keep: expected "
               "--finetune last")
    if options.features is not None and options.crops is not None:
        refuse("--features and --crops exclude each other")
    if options.two_stage and options.final_fit:
        refuse("--two-stage and --final-fit exclude each other: both learn the codebooks at the end")
    if "/" in options.notes:
        refuse(f"argument NOTES: expected no slash, found {options.notes!r}")


def fill_in(options):
    """Give the options that were left out their values, which depend on others."""
    if options.loss == "WSDHQ":
        options.loss = "WSDQH"  # the release's spelling, so that names agree
    finetune, dropout = BACKBONE_DEFAULTS[options.backbone]
    if options.features is not None:
        finetune, dropout = "last", 0.2
    elif options.weights is None:
        options.weights = options.root / f"{options.backbone}.npy"
    options.finetune = options.finetune or finetune
    if options.crops is None:
        random = options.finetune == "all" or options.backbone_init == "lsuv"
        options.crops = None if options.features is not None else "random" if random else "fixed"
    if options.dropout is None:
        options.dropout = dropout
    if options.final_fit is None:
        options.final_fit = options.crops != "random" and not options.two_stage


def checkpoint_path(options):
    """The checkpoint that these options train."""
    experiment = experiment_name(options.dataset, options.loss, options.codebooks, options.fixed_margin,
                                 options.margin, options.gamma, options.lambda_, options.notes,
                                 (options.temperature, options.pairs) if options.loss in SOFTMAX_LOSSES else None)
    return options.root / "checkpoints" / f"{experiment}.npy"


def main():
    options = parse_arguments()
    if options.print_path:
        print(checkpoint_path(options))
        return
    import net
    net.train(options, checkpoint_path(options))


if __name__ == "__main__":
    run_program(main)
