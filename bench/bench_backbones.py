"""What each start costs: `python bench/bench_backbones.py`.

Photos a second of each backbone, decoding included, in turns in one process, so that what else the machine does falls
on all; then milliseconds of a training step on fixed features, and the seconds in which codebooks are fitted. The
weights are random ones, which take as long as others.
"""
import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import scipy.sparse

import losses
import net
import quantizer
from backbones import BACKBONES
from bench_training import make_data
from codebooks import random_codebooks
from dataset import find_dataset, load_training
from encoder import Encoder
from features import unit_length
from fitting import fitted_entries
from session import open_session
from storage.checkpoint import Checkpoint
from training_inputs import FeatureInputs
from util import stream

KINDS = (("alexnet", 10), ("alexnet", 1), ("efficientnet_lite0", 10), ("efficientnet_lite0", 1))
TAGS = ((269, 3), (1178, 8))  # of all images and of one: as of Corel-5K, and as of MIRFLICKR-25K


def random_weights(layers):
    """He initialisation, so that activations stay of one size."""
    rng = stream(0, "bench backbones")
    return {layer: [rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32),
                    np.zeros(shape[-1], np.float32)] for layer, shape in layers.items()}


def photo_rates(paths, rounds):
    """Print photos a second of each backbone and number of crops."""
    encoders = {kind: Encoder(random_weights(BACKBONES[kind[0]].LAYERS), kind[1], "/cpu:0") for kind in KINDS}
    rates = {kind: [] for kind in KINDS}
    for number in range(1 + rounds):
        for kind, encoder in encoders.items():
            photos = paths[:max(64, len(paths) // kind[1])]
            began = time.perf_counter()
            encoder.embed(photos)
            if number:  # the first round prepares the graph
                rates[kind].append(len(photos) / (time.perf_counter() - began))
    for (name, crops), values in rates.items():
        print(f"{name}, {crops} crop{'s' * (crops > 1)}: {statistics.median(values):.1f} photos/s "
              f"({min(values):.1f} to {max(values):.1f})", flush=True)


def step_milliseconds(tag_count, tags_of_image, batch_size, steps):
    """Print milliseconds of a whole step on fixed features, from choosing the images to taking the embeddings."""
    rng = stream(0, "bench features")
    images, width = 5000, BACKBONES["efficientnet_lite0"].FEATURES
    tags = scipy.sparse.random_array((images, tag_count), density=tags_of_image / tag_count, rng=rng).astype(bool)
    tag_embeddings = rng.normal(size=(tag_count, 300)).astype(np.float32)
    inputs = FeatureInputs(rng.random((images, 1, width), np.float32).astype(np.float16), 0)
    factor = quantizer.semantic_factor(tag_embeddings)
    for name, loss in (("paper", losses.adaptive_margin_loss),
                       ("SOFTMAX + pairs", lambda *r: net.softmax_and_pairs(losses.softmax_loss, 0.1, 1, *r))):
        graph = net.TrainingGraph(inputs.network, tag_embeddings, factor, loss, 0.2, ["fc8"], "/cpu:0")
        schedule = net.Schedule(images, batch_size, 0)
        alternation = net.AlternatingOptimisation(images, factor, random_codebooks(2, rng), 0)
        with open_session(graph.graph) as session:
            graph.initialize(session, random_weights(inputs.network.LAYERS))
            taken = net.take_steps(net.load_batches(inputs, schedule, range(steps)), tags.astype(np.uint8).tocsr(),
                                   schedule, graph, alternation, session, 1e-3, 0, joint=False)
            times = [time.perf_counter() for _ in taken]
        milliseconds = 1000 * statistics.median(np.diff(times))
        print(f"a step of {batch_size} on features, {tag_count:,} tags, {tags_of_image} an image, {name}: "
              f"{milliseconds:.1f} ms", flush=True)


def fit_seconds(sizes):
    """Print the seconds in which codebooks are fitted to embeddings of some numbers of images, and codes found."""
    rng = stream(0, "bench fit")
    centres = rng.normal(size=(500, 300))
    for images in sizes:
        vectors = centres[rng.integers(500, size=images)] + rng.normal(size=(images, 300))
        vectors = unit_length(vectors.astype(np.float32))
        inputs = SimpleNamespace(embeddings=lambda *_, vectors=vectors, **__: vectors)
        for m in (2, 4):
            began = time.perf_counter()
            checkpoint = Checkpoint({}, None, False).with_fit(
                fitted_entries(inputs, {}, m, 0, None, None, logging.getLogger("bench")))
            fitted = time.perf_counter()
            checkpoint.encode(vectors, checkpoint.fit_factor, rng)
            print(f"{images:,} images, {8 * m} bits: fitted in {fitted - began:.1f} s, encoded in "
                  f"{time.perf_counter() - fitted:.1f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=int, default=1024, help="of 375×500 pixels, at most 1,024 (default 1024)")
    parser.add_argument("--rounds", type=int, default=3, help="of all backbones (default 3)")
    parser.add_argument("--batch-size", type=int, default=128, help="images a training step (default 128)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder))
        paths = load_training(find_dataset("bench", Path(folder))).paths[:options.photos]
        photo_rates(paths, options.rounds)
    for counts in TAGS:
        step_milliseconds(*counts, options.batch_size, 60)
    fit_seconds((5_000, 200_000))


if __name__ == "__main__":
    main()
