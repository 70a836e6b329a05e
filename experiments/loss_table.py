"""Losses of the last layer side by side, as losses.py asks: training each, fitting codebooks, and measuring MAP."""
import logging
import statistics
from dataclasses import dataclass, replace

import numpy as np
from models.backbones import LAST, find
from models.fitting import fitted_entries
from models.training_inputs import FeatureInputs

import dataset
from experiments import faiss_codes
from experiments.ablations import plain_name, prepare_tags, program
from models.checkpoint import read_checkpoint
from models.features import embed, photo_features
from models.session import device_name
from quantization import quantizer
from quantization.neighbourhoods import averages
from retrieval import metrics
from storage.files import write_json
from storage.log import experiment_name
from util import UserError, gpu_numbers, note, stream

COUNTS = (1, 2, 3, 4)  # of codebooks
QUANTIZERS = ("PQ", "OPQ", "RQ", "LSQ")
COMPARED = (2, 4)  # codebooks with which FAISS's quantizers are compared
QUIET = logging.getLogger(__name__)  # which keeps progress to itself


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


def compare(options):
    """Train and measure every row, print the table, and save it."""
    for name in options.only or ():
        if name not in VARIANTS:
            raise UserError(f"--only: expected one of {', '.join(VARIANTS)}, found {name}")
    prepare_tags(options)
    images = FixedFeatures(options)
    labels = {name: labels_of(name, options) for name in (options.dataset, *options.also)}
    table = {}
    for name in options.only or VARIANTS:
        for seed in range(options.seeds):
            measured = measure(train(options, VARIANTS[name], seed), images, labels, seed, options.faiss)
            for key, value in measured.items():
                table.setdefault(name, {}).setdefault(key, []).append(value)
        print_row(name, table[name])
        write_json(options.root / "logs" / f"{options.dataset}_losses.json",
                   {"options": {key: str(value) for key, value in vars(options).items()}, "map": table})


class FixedFeatures:
    """The fixed features of a data set's images, computed once."""

    def __init__(self, options):
        self._options = options
        self._folder = dataset.find_dataset(options.dataset, options.root)
        self._found = {}

    def split(self, split, checkpoint):
        """Features of a split, float16 (N, V, F)."""
        if split not in self._found:
            options = self._options
            rows = np.arange(len(dataset.read_split(self._folder, split)[0]))
            self._found[split] = photo_features(
                self._folder, split, rows, checkpoint.weights, find(options.backbone), 1,
                device_name(gpu_numbers(options.gpu), note), "float32", options.root, QUIET)
        return self._found[split]


def labels_of(name, options):
    """0/1 labels of queries and of the database, uint8 (Q, L) and (N, L). Raises UserError for other images."""
    found = dataset.find_dataset(name, options.root)
    same = dataset.find_dataset(options.dataset, options.root)
    labels = []
    for split in ("test", "database"):
        names, matrix = dataset.read_split(found, split)
        if names != dataset.read_split(same, split)[0]:
            raise UserError(f"{name}: expected the {split} images of {options.dataset}, found others")
        labels.append(matrix.toarray())
    return labels


def train(options, variant, seed):
    """The Checkpoint of one training, which is done unless it is there."""
    name = options.dataset if variant.graph else plain_name(options)
    softmax = (0.1, variant.pairs) if variant.loss in ("MILNCE", "SOFTMAX") else None
    experiment = experiment_name(name, variant.loss, 2, False, 0.7, 1.0, 0.0, f"losses{seed}", softmax)
    path = options.root / "checkpoints" / f"{experiment}.npy"
    if not path.is_file():
        weights = [] if options.weights is None else ["--weights", options.weights]
        pairs = ["--pairs", variant.pairs] if variant.pairs else []
        program("train.py", name, 0.003, variant.steps, 0, 2, variant.loss, f"losses{seed}", options.gpu, "--backbone",
                options.backbone, "--finetune", "last", "--dropout", 0.2, "--batch-size", variant.batch, *pairs,
                *weights, "--seed", seed, "--root", options.root)
    return read_checkpoint(path)


def measure(checkpoint, images, labels, seed, with_faiss):
    """`{"data set: ranking": MAP}` of one training.

    `labels`: `{data set: (labels of queries, labels of the database)}`.
    """
    found = {}
    inputs = FeatureInputs(images.split("train", checkpoint), seed)
    embeddings = {split: embed(images.split(split, checkpoint), checkpoint.weights[LAST], unit=True)
                  for split in ("test", "database")}
    for m in COUNTS:
        fitted = checkpoint.with_fit(fitted_entries(inputs, checkpoint.weights, m, seed, None, None, QUIET))
        for ranking, score in scores(embeddings, fitted, seed, with_faiss and m in COMPARED):
            for name, (queries, database) in labels.items():
                found[f"{name}: {ranking}"] = metrics.evaluate(score, queries, database, len(database)).map
    return found


def scores(embeddings, checkpoint, seed, with_faiss):
    """Give the name and the score function, as of `metrics.evaluate`, of floats, of codes, and of FAISS's codes.

    Args:
        embeddings: `{split: float32 (N, D)}`.
        checkpoint: a Checkpoint of fitted codebooks.
    """
    codebooks = checkpoint.codebooks
    queries, database = embeddings["test"], embeddings["database"]
    averaged = averages(queries, checkpoint.neighbours)
    bits = f"{8 * len(codebooks)} bits"
    codes = checkpoint.encode(database, checkpoint.fit_factor, stream(seed, "encode database"))
    yield "floats", lambda q: queries[q] @ database.T
    yield "floats, averaged queries", lambda q: averaged[q] @ database.T
    yield bits, lambda q: quantizer.quantized_scores(averaged[q], codes, codebooks)
    if with_faiss:
        training = faiss_codes.training_images(database, seed)
        for name in QUANTIZERS:
            index = faiss_codes.BASELINES[name][0](len(codebooks), seed)
            index.train(training)
            index.add(database)
            codes_found = faiss_codes.codes_of(index)
            yield f"{bits} {name}", faiss_codes.additive_score(index, codes_found, queries)
            yield f"{bits} {name}, averaged queries", faiss_codes.additive_score(index, codes_found, averaged)


def print_row(name, values):
    """Mean and standard deviation over the seeds of every ranking."""
    print(f"\n{name}")
    for key, numbers in sorted(values.items()):
        deviation = statistics.stdev(numbers) if len(numbers) > 1 else float("nan")
        print(f"  {key:40}{statistics.mean(numbers):8.4f} ±{deviation:.4f}", flush=True)
