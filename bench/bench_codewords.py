"""Which codewords of GPQ come into use, by images a step and by steps.

The last layer, the codebooks and the prototypes are trained on from a checkpoint while the convolutions stand still, so
that 3,000 steps of 500 + 500 images take minutes.

    python bench/bench_codewords.py CHECKPOINT --data cifar10 [--steps 3000] [--batch-size 64 500] [--start stored]

CHECKPOINT is of `python -m gpq.train` with the default codebooks. Pictures are not augmented. `--start new` begins the
last layer, codebooks and prototypes anew, as a training does that starts from a trained network.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpq import data, graphs, network, retrieval
from gpq.config import Config
from gpq.measuring import codewords_used
from session import open_session, tf
from util import stream

REPORTS = 6  # beside the one before the first step
WIDTH = 512 + 256  # of what the last layer sees


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of gpq.train, or its folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10's batches")
    parser.add_argument("--steps", type=int, default=3000, help="steps (default 3000, as the release's)")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[64, 500],
                        help="labelled images a step, and as many unlabelled ones (default 64 and 500)")
    parser.add_argument("--start", choices=("stored", "new"), default="stored", help="(default stored)")
    options = parser.parse_args()
    config = Config()
    split = data.load_split(options.data, config.labelled_per_class, config.images, 0)
    checkpoint = graphs.find_checkpoint(options.checkpoint)
    encoder = graphs.Encoder(checkpoint, config, len(split.class_names), "/cpu:0")
    pooled = {what: encoder.pooled(part.images, what) for what, part in
              (("labelled", split.labelled), ("database", split.database), ("queries", split.query))}
    shapes = network.parameter_shapes(config.length, config.codewords, len(split.class_names))
    first = first_values(checkpoint, shapes, options.start)
    for size in options.batch_size:
        print(f"\n{size} + {size} images a step")
        train_head(replace(config, batch_size=size), split, pooled, first, options.steps)


def head(shapes):
    """Of `{name: shape}` the last layer, the codebooks and the prototypes."""
    return {name: shape for name, shape in shapes.items()
            if name.startswith(network.DENSE) or name in (network.CODEBOOKS, network.PROTOTYPES)}


def first_values(checkpoint, shapes, start):
    """`{name: array}` to start from: those of the checkpoint, or new ones."""
    if start == "new":
        return network.xavier(head(shapes), stream(0, "new head"))
    reader = tf.train.load_checkpoint(str(checkpoint))
    return {name: reader.get_tensor(name) for name in head(shapes)}


class HeadGraph(graphs.TrainingGraph):
    """The training step of GPQ on what the last layer sees."""

    def _build_inputs(self):
        self.labels, self.learning_rate = tf.placeholder(tf.int64, [None]), tf.placeholder(tf.float32, [])
        self.images, self.unlabelled = (tf.placeholder(tf.float32, [None, WIDTH]) for _ in range(2))

    def _build_features(self, shapes, _convolutions):
        self.variables, self._first_values = network.make_variables(head(shapes))
        self.features = network.project(self.images, self.variables)
        self.target_features = network.project(self.unlabelled, self.variables)
        self._update = tf.no_op()


def train_head(config, split, pooled, first, steps):
    """Train, and print from time to time how many codewords database images use, and the mAP."""
    graph = HeadGraph(config, len(split.class_names), "gpq", "/cpu:0")
    rng = stream(0, "batches")
    with open_session(graph.graph) as session:
        graph.initialize(session, first)
        for step in range(steps + 1):
            if step % max(1, steps // REPORTS) == 0 or step == steps:
                report(step, config, split, pooled, graph, session)
            rows = rng.choice(len(split.labelled), config.batch_size, replace=False)
            others = rng.choice(len(split.database), config.batch_size, replace=False)
            graph.step(session, pooled["labelled"][rows], split.labelled.labels[rows], pooled["database"][others],
                       graphs.learning_rate(config.learning_rate, step))


def report(step, config, split, pooled, graph, session):
    features, queries = (
        retrieval.intra_normalize(session.run(graph.features, {graph.images: pooled[what]}), config.n_book)
        for what in ("database", "queries"))
    codebooks, prototypes = session.run([graph.variables[name] for name in (network.CODEBOOKS, network.PROTOTYPES)])
    codebooks = retrieval.soft_codebooks(prototypes, codebooks, config.n_book, config.alpha)
    codes = retrieval.hard_codes(features, codebooks, config.n_book)
    used = codewords_used(codes)
    cone = np.linalg.norm(retrieval.by_segment(features, config.n_book).mean(1), axis=1).mean()
    quality = retrieval.mean_average_precision(
        lambda rows: -retrieval.distances(queries[rows], codes, codebooks), split.query.labels, split.database.labels,
        len(split.class_names))
    print(f"{step:6} steps: {sum(used):4} of {config.n_book * config.codewords} codewords in use, "
          f"{' '.join(map(str, used))}; mean of the features' segments {cone:.2f} long; mAP {quality:.4f}", flush=True)


if __name__ == "__main__":
    main()
