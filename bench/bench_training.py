"""How fast and how large training is at the size of MIRFLICKR-25K: `python bench/bench_training.py`.

1. A training step with everything (loading, losses, codes) against a bare AlexNet forward/backward/Adam step,
   in turns in one process, so that what else the machine does falls on both.
2. Seconds from the start of train.py to its second step, and its peak memory with --cache-gb 0.
"""
import argparse
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np

from dataset import find_dataset
from storage.arrays import write_weights
from tag_merging import write_tags
from util import ROOT, stream

TAGS, TAGS_AN_IMAGE, IMAGES = 1178, 8, 1024
ROUNDS, STEPS = 3, 4  # of each kind in turn; the first step of a round is not counted


def make_data(root):
    """A data set `bench` of photo-sized JPEG files with random tags, and random weights."""
    from backbones import alexnet
    rng = stream(0, "bench")
    splits, images = root / "data" / "bench", root / "datasets" / "bench"
    (splits / "tags").mkdir(parents=True)
    images.mkdir(parents=True)
    names = [f"{i}.jpg" for i in range(IMAGES)]
    for name in names:
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        photo = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(images / name), cv2.add(photo, rng.integers(0, 24, photo.shape, dtype=np.uint8)))
    tags = np.zeros((IMAGES, TAGS), int)
    np.put_along_axis(tags, rng.permuted(np.tile(np.arange(TAGS), (IMAGES, 1)), axis=1)[:, :TAGS_AN_IMAGE], 1, axis=1)
    (splits / "train_img.txt").write_text("\n".join(names) + "\n")
    np.savetxt(splits / "train_tag.txt", tags, fmt="%d")
    write_tags(find_dataset("bench", root), rng.normal(size=(TAGS, 300)), {i: [i] for i in range(TAGS)}, {})
    write_weights(root / "alexnet.npy", {
        layer: [rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32),
                np.zeros(shape[-1], np.float32)] for layer, shape in alexnet.LAYERS.items()})


def bare_step(batch_size):
    """A function that takes one forward/backward/Adam step of AlexNet alone."""
    from backbones import alexnet, layers
    from session import open_session, tf
    graph = tf.Graph()
    with graph.as_default():
        images = tf.placeholder(tf.uint8, [None, 227, 227, 3])
        variables, first_values = layers.make_variables(alexnet.LAYERS, alexnet.LAYERS)
        embeddings, _ = alexnet.embed(images, variables)
        step = tf.train.AdamOptimizer(1e-5).minimize(tf.reduce_mean(tf.square(embeddings)))
        initialize = tf.global_variables_initializer()
    session = open_session(graph)
    rng = stream(0, "bare")
    weights = {layer: [rng.normal(0, 0.01, shape), np.zeros(shape[-1])] for layer, shape in alexnet.LAYERS.items()}
    session.run(initialize, layers.feed_weights(first_values, weights))
    batch = rng.integers(0, 256, (batch_size, 227, 227, 3), dtype=np.uint8)
    return lambda: session.run(step, {images: batch})


def training(root, batch_size, cache_gb, precision="float32"):
    """A generator that takes a step of the real training each time it is asked; the seconds it waited for images."""
    import dataset
    import image_files
    import net
    import quantizer
    from backbones import alexnet
    from codebooks import random_codebooks
    from losses import adaptive_margin_loss
    from session import open_session
    from storage.arrays import read_weights
    from util import prefetch
    content = dataset.load_training(dataset.find_dataset("bench", root))
    store = image_files.ImageStore(content.paths, cache_gb * 1e9)
    schedule = net.Schedule(len(store), batch_size, 0)
    first = random_codebooks(4, stream(0, "codebooks"))
    alternation = net.AlternatingOptimisation(len(store), quantizer.semantic_factor(content.embeddings), first, 0)
    alternation.codes = np.zeros((len(store), 4), np.uint8)
    graph = net.TrainingGraph(content.embeddings, adaptive_margin_loss, 0.5, list(alexnet.LAYERS), "/cpu:0",
                              precision=precision)
    trainer = net.Trainer(content, store, schedule, graph, alternation, 1e-5, 1e-4)
    store.images(range(len(store) if cache_gb else 1))  # an epoch has passed
    session = open_session(graph.graph, precision)
    graph.initialize(session, read_weights(root / "alexnet.npy"))
    while True:
        steps = range(1, 1 + STEPS)  # before the first update, so that only steps are timed
        batches = prefetch(trainer.load, steps)
        for step in steps:
            began = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - began
            trainer.run(session, step, *batch)
            yield waited


def timed(kinds, rounds, times):
    """Seconds of each call of `{name: function}`, in turns, `times` in a row; the first of a row is not counted."""
    seconds = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, run in kinds.items():
            for number in range(times):
                began = time.perf_counter()
                run()
                if number:
                    seconds[name].append(time.perf_counter() - began)
    return seconds


def compare_steps(root, batch_size):
    """Print the median step of each kind and the ratios to the bare one."""
    kinds = {"bare": bare_step(batch_size)}
    for cache_gb in (4, 0):
        generator = training(root, batch_size, cache_gb)
        kinds[f"--cache-gb {cache_gb}"] = lambda generator=generator: next(generator)
    seconds = timed(kinds, ROUNDS, STEPS)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"step, {name:13} {median:6.2f} s, {median / medians['bare']:.2f} times the bare one "
              f"(best {min(seconds[name]):.2f} s)")


def start_and_memory(root, batch_size):
    """Print when train.py begins its second step, and its peak memory."""
    began = datetime.now()
    done = subprocess.run([sys.executable, ROOT / "train.py", "bench", "0.00001", "3", "0.0001", "4", "WSDQH", "bench",
                           "cpu", "--root", root, "--cache-gb", "0", "--batch-size", str(batch_size)],
                          capture_output=True, text=True, check=True)
    first = re.search(r"^(\S+ \S+) step \[ +1\].* ([\d.]+) sec/batch", done.stdout, re.M)
    second = (datetime.strptime(first[1], "%Y-%m-%d %H:%M:%S,%f") - began).total_seconds()
    print(f"the second step began {second:.1f} s after the process, {first[2]} s of them the first step")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"peak memory with --cache-gb 0: {peak:.2f} GiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-size", type=int, default=256, help="images a step (default 256)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder))
        start_and_memory(Path(folder), options.batch_size)
        compare_steps(Path(folder), options.batch_size)


if __name__ == "__main__":
    main()
