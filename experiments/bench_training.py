"""Time and memory of training in batches as for MIRFLICKR-25K: `python experiments/bench_training.py`.

1. Seconds from the start of train.py to its second step, compared with those of the import of TensorFlow, one and a
   half bare steps, and 2 s; its peak memory with --cache-gb 0.
2. A training step with everything (loading, losses, codes), compared with a bare AlexNet forward/backward/Adam step,
   in turns in one process, so that other load on the machine affects both alike.
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

import net
import train
from dataset import find_dataset, load_training
from models import alexnet, layers
from models.checkpoint import ALEXNET, CROP_SIDE
from models.losses import adaptive_margin_loss
from models.session import open_session, tf
from quantization import quantizer
from quantization.codebooks import random_codebooks
from storage.arrays import read_weights, write_weights
from tag_processing import write_tags
from util import ROOT, number, run_program, stream

TAGS, TAGS_AN_IMAGE, IMAGES = 1178, 8, 1024
BARE_STEPS = 3  # timed steps, with whose median the start is compared
ROUNDS, STEPS = 3, 4  # of each kind, in turns; the first step of a round is not counted


def make_data(root):
    """Make a data set `bench` of JPEG files of 500×375 pixels with random tags, and random weights."""
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
                np.zeros(shape[-1], np.float32)] for layer, shape in ALEXNET.items()})


def bare_step(batch_size):
    """A function that takes one forward/backward/Adam step of AlexNet alone."""
    graph = tf.Graph()
    with graph.as_default():
        images = tf.placeholder(tf.uint8, [None, CROP_SIDE, CROP_SIDE, 3])
        variables, first_values = layers.make_variables(ALEXNET, ALEXNET)
        embeddings, _ = layers.embed(alexnet, images, variables)
        step = tf.train.AdamOptimizer(1e-5).minimize(tf.reduce_mean(tf.square(embeddings)))
        initialize = tf.global_variables_initializer()
    session = open_session(graph)
    rng = stream(0, "bare")
    weights = {layer: [rng.normal(0, 0.01, shape), np.zeros(shape[-1])] for layer, shape in ALEXNET.items()}
    session.run(initialize, layers.feed_weights(first_values, weights))
    batch = rng.integers(0, 256, (batch_size, CROP_SIDE, CROP_SIDE, 3), dtype=np.uint8)
    return lambda: session.run(step, {images: batch})


def training(root, batch_size, cache_gb):
    """A generator that takes a step of the real training each time; it yields the seconds it waited for images."""
    content = load_training(find_dataset("bench", root))
    inputs = net.PhotoInputs(content.paths, 0, cache_gb * 1e9, "/cpu:0")
    schedule = train.Schedule(len(inputs), batch_size, 0)
    factor = quantizer.semantic_factor(content.embeddings)
    alternation = net.AlternatingUpdate(len(inputs), factor, random_codebooks(4, stream(0, "codebooks")), 0)
    alternation.codes = np.zeros((len(inputs), 4), np.uint8)
    network = net.TrainingNetwork(alexnet, content.embeddings, factor, adaptive_margin_loss, 0.5, list(ALEXNET),
                                  "/cpu:0")
    inputs.centres(range(len(inputs) if cache_gb else 1))  # an epoch has passed
    session = network.open_session()
    network.initialize(session, read_weights(root / "alexnet.npy"))
    while True:
        steps = range(1, 1 + STEPS)  # before the first update, so that only steps are timed
        waits = []
        batches = timed_waits(train.load_batches(inputs, schedule, steps), waits)
        for _ in train.take_steps(batches, content.tags, schedule, network, alternation, session, 1e-5, 1e-4):
            yield waits[-1]


def timed_waits(batches, waits):
    """The same batches; the seconds that each was waited for go into `waits`."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        waits.append(time.perf_counter() - began)
        if batch is None:
            return
        yield batch


def timed(kinds, rounds, times):
    """Seconds of each call of `{name: function}`, in turns, `times` in a row; the first of a row is not counted."""
    seconds = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, run in kinds.items():
            for call in range(times):
                began = time.perf_counter()
                run()
                if call:
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


def seconds_of(function):
    """What `function()` returns, and its seconds."""
    began = time.perf_counter()
    result = function()
    return result, time.perf_counter() - began


def start_to_second_step(root, batch_size):
    """Seconds from the start of train.py until its second step begins, and the seconds of its first step."""
    began = datetime.now()
    done = subprocess.run([sys.executable, ROOT / "train.py", "bench", "0.00001", "2", "0.0001", "4", "WSDQH", "bench",
                           "cpu", "--root", root, "--cache-gb", "0", "--batch-size", str(batch_size)],
                          capture_output=True, text=True, check=True)
    first = re.search(r"^(\S+ \S+) step \[ +1\].* ([\d.]+) sec/batch", done.stdout, re.M)
    return (datetime.strptime(first[1], "%Y-%m-%d %H:%M:%S,%f") - began).total_seconds(), float(first[2])


def start_and_memory(root, batch_size):
    """Print the seconds of train.py's start, their ratio to what is allowed, and its peak memory."""
    start_to_second_step(root, batch_size)  # so that all files are in memory
    _, tensorflow = seconds_of(lambda: subprocess.run([sys.executable, "-c", "import tensorflow"], check=True,
                                                      stderr=subprocess.DEVNULL))
    second, first_step = start_to_second_step(root, batch_size)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    step = bare_step(batch_size)
    _, *steps = [seconds_of(step)[1] for _ in range(1 + BARE_STEPS)]
    bare = statistics.median(steps)
    allowed = tensorflow + 1.5 * bare + 2
    print(f"import of TensorFlow {tensorflow:.1f} s, bare step {bare:.1f} s; the second step began {second:.1f} s after"
          f" the process, {second / allowed:.2f} times the {allowed:.1f} s of the import, 1.5 bare steps and 2 s; the"
          f" first step took {first_step:.1f} s")
    print(f"peak memory with --cache-gb 0: {peak:.2f} GiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-size", type=number(int, 1, IMAGES), default=256, metavar="N",
                        help="images a step (default 256)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder))
        start_and_memory(Path(folder), options.batch_size)
        compare_steps(Path(folder), options.batch_size)


if __name__ == "__main__":
    run_program(main)
