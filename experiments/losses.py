"""Compare losses of the last layer: `python experiments/losses.py DATASET WORD_VECTORS GPU --encoder FILE.onnx`.

Letters: N images, Q queries, L labels, D = 300, M codebooks.
"""
import argparse
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dataset import find_dataset, read_split
from experiments.ablations import add_options, prepare_tags, program, without_graph
from experiments.baselines import BASELINES, Quantizers, additive_score, padded, training_images
from models.checkpoint import LAST, fit_entries, read_checkpoint
from models.encoder import ImageEncoder, embed
from models.features import features_file, photo_features
from quantization import quantizer
from quantization.neighbourhoods import averages
from retrieval import metrics
from storage.arrays import CODEBOOKS, FIT, NEIGHBOURS
from storage.files import write_json
from storage.log import experiment_name, margin_form, softmax_form
from util import DIMENSIONS, UserError, run_program, stream

COUNTS = (1, 2, 3, 4)  # of codebooks
QUANTIZERS = ("PQ", "OPQ", "RQ", "LSQ")
COMPARED = (2, 4)  # codebooks with which FAISS's quantizers are compared


@dataclass(frozen=True)
class Variant:
    """A row of the table: a name, and the arguments of train.py that make it."""
    name: str
    loss: str
    pairs: float = 0
    steps: int = 400
    batch: int = 128
    graph: bool = True


ROWS = (Variant("paper", "WSDQH"), Variant("WDHT", "WDHT"), Variant("MILNCE", "MILNCE"), Variant("SOFTMAX", "SOFTMAX"),
        Variant("MILNCE + pairs", "MILNCE", 1, 800, 256), Variant("SOFTMAX + pairs", "SOFTMAX", 1, 800, 256))
VARIANTS = {variant.name: variant for variant in (
    *ROWS, *(replace(row, name=f"{row.name}, no graph", graph=False) for row in ROWS))}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Train the last layer on an encoder's features with each loss, with and without the tag graph and "
                    "with several seeds, and print one table of MAP over the whole database: that of float embeddings "
                    "and that of codes from fitted codebooks. A finished training is not repeated.")
    add_options(parser)
    parser.add_argument("--encoder", type=Path, metavar="FILE.onnx", required=True,
                        help="an image encoder, see train.py --help")
    parser.add_argument("--also", metavar="DATASET", action="append", default=[],
                        help="also measure MAP with the labels of this data set, which has the same images")
    parser.add_argument("--only", metavar="NAME", action="append", choices=VARIANTS,
                        help=f"a row of the table: {'; '.join(VARIANTS)} (default: all)")
    parser.add_argument("--faiss", action="store_true",
                        help="also measure FAISS's quantizers on the same embeddings, with "
                             f"{' and '.join(map(str, COMPARED))} codebooks")
    return parser.parse_args()


def main():
    options = parse_arguments()
    faiss = None
    if options.faiss:
        try:
            import faiss
        except ImportError as error:
            raise UserError("--faiss needs faiss: pip install -e '.[search]'") from error
        check_enough(options.dataset, options.root)
    from quantization.codebooks import final_fit  # loads scikit-learn
    prepare_tags(options.root, options.dataset, options.vectors, options.gpu, options.threshold)
    labels = {name: labels_of(name, options.dataset, options.root) for name in (options.dataset, *options.also)}
    table = {}
    for name in options.only or VARIANTS:
        variant = VARIANTS[name]
        dataset = options.dataset if variant.graph else without_graph(options.dataset)
        for seed in range(options.seeds):
            path = train(options.root, dataset, variant, options.encoder, options.gpu, seed)
            checkpoint, features = read_checkpoint(path), features_of(options.root, dataset, path)
            embeddings = {split: embed(found[:, None], checkpoint.weights[LAST], unit=True)
                          for split, found in features.items()}
            for m in COUNTS:
                fit = fit_entries(*final_fit(embeddings["train"], m, seed))
                for ranking, score in scores(embeddings, checkpoint, fit, seed, faiss if m in COMPARED else None):
                    for key, (queries, database) in labels.items():
                        found = metrics.evaluate(score, queries, database, len(database)).map
                        table.setdefault(name, {}).setdefault(f"{key}: {ranking}", {})[seed] = found
        print_row(name, table[name])
        write_json(options.root / "logs" / f"{options.dataset}_losses.json",
                   {"options": {key: str(value) for key, value in vars(options).items()}, "map": table})


def check_enough(name, root):
    """Raise UserError if a data set has too few training images for FAISS's quantizers."""
    images, least = len(read_split(find_dataset(name, root), "train")[0]), max(map(padded, COMPARED))
    if images < least:
        raise UserError(f"{name}: expected at least {least} training images for --faiss, found {images}")


def labels_of(name, same, root):
    """0/1 labels of queries and of the database, uint8 (Q, L) and (N, L). Raises UserError if its images are not those
    of the data set `same`."""
    labels = []
    for split in ("test", "database"):
        names, matrix = read_split(find_dataset(name, root), split)
        if names != read_split(find_dataset(same, root), split)[0]:
            raise UserError(f"{name}: expected the {split} images of {same}, found others")
        labels.append(matrix.toarray())
    return labels


def train(root, dataset, variant, encoder, gpu, seed):
    """Train a Variant, unless that was done before. Returns the path of the checkpoint."""
    form = softmax_form(0.1, variant.pairs) if variant.loss in ("MILNCE", "SOFTMAX") else margin_form(1)
    experiment = experiment_name(dataset, variant.loss, 2, form, 0, f"losses{seed}")
    path = root / "checkpoints" / f"{experiment}.npy"
    if not path.is_file():
        pairs = ["--pairs", variant.pairs] if variant.pairs else []
        program("train.py", dataset, 0.003, variant.steps, 0, 2, variant.loss, f"losses{seed}", gpu, "--encoder",
                encoder, "--batch-size", variant.batch, *pairs, "--seed", seed, "--root", root)
    return path


def features_of(root, dataset, checkpoint):
    """`{split: float16 (N, F)}` by the encoder of the checkpoint at this path."""
    folder = find_dataset(dataset, root)
    encoder = ImageEncoder(checkpoint.with_name(f"{checkpoint.stem}_encoder.onnx"))
    return {split: photo_features(folder, split, np.arange(len(read_split(folder, split)[0])), encoder,
                                  features_file(root, dataset, encoder.sha256), lambda line: None)
            for split in ("train", "database", "test")}


def scores(embeddings, checkpoint, fit, seed, faiss):
    """Yield name and score function (see `metrics.evaluate`) for floats, for codes, and for FAISS's codes.

    Args:
        embeddings: `{split: float32 (N, D)}`.
        fit: entries of fitted codebooks.
        faiss: the module, or None for no quantizers of FAISS.
    """
    codebooks = fit[CODEBOOKS].reshape(-1, quantizer.CODEWORDS, DIMENSIONS)
    fitted = replace(checkpoint, codebooks=codebooks, fit_factor=fit[FIT], neighbours=fit[NEIGHBOURS])
    queries, database = embeddings["test"], embeddings["database"]
    averaged = averages(queries, fitted.neighbours)
    bits = f"{8 * len(codebooks)} bits"
    codes = fitted.encode(database, fitted.fit_factor, stream(seed, "encode database"))
    yield "floats", lambda q: queries[q] @ database.T
    yield "floats, averaged queries", lambda q: averaged[q] @ database.T
    yield bits, lambda q: quantizer.quantized_scores(averaged[q], codes, codebooks)
    if faiss:
        quantizers = Quantizers(faiss, len(codebooks), seed)
        training = training_images(embeddings["train"], seed)
        for name in QUANTIZERS:
            index = BASELINES[name](quantizers)
            index.train(training)
            index.add(database)
            found = quantizers.codes(index)
            yield f"{bits} {name}", additive_score(index, found, queries)
            yield f"{bits} {name}, averaged queries", additive_score(index, found, averaged)


def print_row(name, values):
    """Print mean and standard deviation over the seeds. `values`: {ranking: {seed: MAP}}."""
    print(f"\n{name}")
    for key, by_seed in sorted(values.items()):
        numbers = list(by_seed.values())
        deviation = statistics.stdev(numbers) if len(numbers) > 1 else float("nan")
        print(f"  {key:40}{statistics.mean(numbers):8.4f} ±{deviation:.4f}", flush=True)


if __name__ == "__main__":
    run_program(main)
