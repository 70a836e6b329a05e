"""Run the paper's ablations on one data set with several seeds: train, validate, and print one table.

A finished run is not repeated, so the program can be interrupted and started again. Tags that are processed without the
graph need a data set of their own, NAME_no_graph, with the same split files.
"""
import argparse
import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import dataset
from prepare.split_files import link_images
from storage.files import write_json
from storage.log import experiment_name, margin_form
from util import MOST_CODEBOOKS, ROOT, UserError, number, run_program

LAMBDA = 0.0001


@dataclass(frozen=True)
class Variant:
    """A row of the table.

    graph: whether tags are processed with the correlation graph. options: of train.py. paper: the paper's points of MAP
    below the full method on MIRFLICKR-25K and NUS-WIDE at 32 bits.
    """
    name: str
    notes: str
    loss: str = "WSDQH"
    graph: bool = True
    options: tuple = ()
    paper: str = ""


VARIANTS = (
    Variant("full method", "full", paper="0.772 / 0.731"),
    Variant("without the tag graph", "nograph", graph=False, paper="−2.3 / −1.6"),
    Variant("without L2 normalisation", "nol2", options=("--no-l2-norm",), paper="−2.9 / −1.4"),
    Variant("WDHT's hinge loss", "hinge", loss="WDHT", paper="−2.8 / −3.3"),
    Variant("two stages", "twostage", options=("--two-stage",), paper="−3.2 / −3.5"),
    Variant("WDHT (hinge, no tag graph, two stages)", "wdht", loss="WDHT", graph=False, options=("--two-stage",),
            paper="−3.4 / −5.3"),
)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser)
    parser.add_argument("--lr", type=number(float, 0), default=0.0001, help="learning rate (default 0.0001)")
    parser.add_argument("--steps", type=number(int, 1), default=300, help="gradient steps (default 300)")
    parser.add_argument("--batch-size", type=number(int, 1), default=64, help="images a step (default 64)")
    parser.add_argument("--codebooks", type=number(int, 1, MOST_CODEBOOKS), default=4,
                        help="number of codebooks, 8 bits each (default 4: 32 bits, as in the paper)")
    parser.add_argument("--crops", type=int, choices=(10, 5, 1), default=1,
                        help="crops of each image in the validation (default 1)")
    parser.add_argument("--weights", type=Path, metavar="FILE",
                        help="weights to start from (default alexnet.npy in --root)")
    return parser.parse_args()


def add_options(parser):
    """Add the arguments of programs that train variants on one data set with several seeds."""
    parser.add_argument("dataset", metavar="DATASET", help="a data set that can be trained and validated")
    parser.add_argument("vectors", metavar="WORD_VECTORS", help="word vectors, see tag_processing.py --help")
    parser.add_argument("gpu", metavar="GPU", help="number of the GPU; -1 or cpu for the CPU")
    parser.add_argument("--seeds", type=number(int, 1), default=3, help="runs of each variant (default 3)")
    parser.add_argument("--threshold", type=number(float, -1, 1), default=0.75,
                        help="threshold of the tag graph (default 0.75)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                        help="folder that holds data/ and the rest (default: the folder of train.py)")


def main():
    options = parse_arguments()
    root, common = options.root, ["--root", options.root]
    prepare_tags(root, options.dataset, options.vectors, options.gpu, options.threshold)
    weights = [] if options.weights is None else ["--weights", options.weights]
    results = {variant.name: [] for variant in VARIANTS}
    for seed in range(options.seeds):
        for variant in VARIANTS:
            name = options.dataset if variant.graph else without_graph(options.dataset)
            notes = f"{variant.notes}{seed}"
            experiment = experiment_name(name, variant.loss, options.codebooks, margin_form(1), LAMBDA, notes)
            checkpoint = root / "checkpoints" / f"{experiment}.npy"
            metrics = checkpoint.with_name(f"{experiment}_metrics.json")
            if not checkpoint.is_file() and not metrics.is_file():
                program("train.py", name, options.lr, options.steps, LAMBDA, options.codebooks, variant.loss, notes,
                        options.gpu, "--batch-size", options.batch_size, *variant.options, *weights, "--seed", seed,
                        *common)
            if not metrics.is_file():
                program("validation.py", name, checkpoint, options.gpu, "--crops", options.crops, "--seed", seed,
                        *common)
            results[variant.name].append(json.loads(metrics.read_text(encoding="utf-8"))["AQD"]["map"])
    print_table(results)
    path = root / "logs" / f"{options.dataset}_ablations.json"
    write_json(path, {"options": {key: str(value) for key, value in vars(options).items()}, "map": results})
    print(f"saved {path}")


def prepare_tags(root, name, vectors, gpu, threshold):
    """Process the tags of the data set `name` with the graph, and those of a copy of its split files without it.

    The arguments are those of tag_processing.py.
    """
    found = dataset.find_dataset(name, root)
    plain = without_graph(name)
    splits = root / "data" / plain
    splits.mkdir(exist_ok=True)
    for path in [*sum((found.split_files(split) for split in ("train", "database", "test")), ()), found.tag_list]:
        shutil.copyfile(path, splits / path.name)
    link_images(root / "datasets" / plain, found.images, root)
    program("tag_processing.py", name, vectors, gpu, "--root", root, "--threshold", threshold)
    program("tag_processing.py", plain, vectors, gpu, "--root", root, "--no-graph")


def without_graph(name):
    """The name of the copy of a data set whose tags are processed without the graph."""
    return f"{name}_no_graph"


def program(*arguments):
    """Run a program of the project, which prints its own errors. Raises UserError if it fails."""
    print("running", *arguments, flush=True)
    if subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"{arguments[0]} failed")


def print_table(results):
    """Print mean and standard deviation of each variant's MAP over the seeds, and the paper's figures."""
    full = statistics.mean(results[VARIANTS[0].name])
    print(f"\n{'':40}{'AQD MAP':>16}{'points':>8}   paper, MIRFLICKR-25K / NUS-WIDE")
    for variant in VARIANTS:
        values = results[variant.name]
        mean, deviation = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else float("nan")
        points = "" if variant is VARIANTS[0] else f"{100 * (mean - full):+.1f}"
        print(f"{variant.name:40}{mean:9.4f} ±{deviation:.4f}{points:>8}   {variant.paper}")


if __name__ == "__main__":
    run_program(main)
