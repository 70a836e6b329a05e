"""A dozen small photos as a data set `tiny`, and the programs run on it as people run them."""
import atexit
import contextlib
import functools
import importlib
import io
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from models import make_encoder
from models.checkpoint import LAST, read_checkpoint
from storage.arrays import write_weights
from util import run_program, stream

SMALL = "SMALL_NETWORK"  # set in the environment while programs have the small network
WITH_NETWORK = ("train.py", "validation.py", "search.py")
PROJECT = Path(__file__).resolve().parents[2]
TRAINING, QUERIES, TAGS = 10, 3, 6
STEPS = 8  # with 4 images a step the first update follows step 7
EXPERIMENT = "tiny_WSDQH_nbits=16_adaMargin_gamma=1_lambda=0.0001_t"


def command(*arguments):
    """The command that runs a program of the project, with the small network where the test has it."""
    small = SMALL in os.environ and arguments[0] in WITH_NETWORK and "--server" not in arguments
    return [sys.executable, *([PROJECT / "tests/support/small_network.py"] if small else []), *map(str, arguments)]


def run(*arguments):
    """Run a program of the project; its exit code and all that it printed."""
    done = subprocess.run(command(*arguments), cwd=PROJECT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def call(monkeypatch, capsys, program, *arguments):
    """Run a program, a module, in this process, which is faster; its exit code and all that it printed."""
    code, *printed = call_apart(monkeypatch, capsys, program, *arguments)
    return code, "".join(printed)


def call_apart(monkeypatch, capsys, program, *arguments):
    """The same, but what it printed and what it wrote to stderr apart."""
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, arguments)])
    code = 0
    try:
        run_program(program.main)
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def training(root, *options, iterations=STEPS, codebooks=2, gpu="cpu"):
    return ("train.py", "tiny", 0.00003, iterations, 0.0001, codebooks, "WSDQH", "t", gpu, "--root", root,
            "--batch-size", 4, "--weights", backbone(), *options)


def backbone():
    """A file of random weights that all trainings start from: each would need seconds to draw and scale its own."""
    return random_weights(SMALL in os.environ)


@functools.cache
def random_weights(_small):
    from models import layers
    rng = stream(0, "backbone")
    weights = layers.lsuv_weights(rng.integers(0, 256, (4, 227, 227, 3), dtype=np.uint8), rng, "/cpu:0")
    del weights[LAST]
    folder = tempfile.TemporaryDirectory(prefix="backbone")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "alexnet.npy"
    write_weights(path, weights)
    return path


def train(root, *options, run=run, **arguments):
    """Train, with `run` or the fixture `run_here`."""
    return run(*training(root, *options, **arguments))


def export_encoder(checkpoint):
    """Write the encoder of a checkpoint with AlexNet next to it, as `search.py build` and `encode` do."""
    make_encoder.export_alexnet(checkpoint, read_checkpoint(checkpoint))


def train_in_fixture(root, *options, **arguments):
    """The same in this process for a fixture of a module, which `run_here` cannot serve."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [*map(str, training(root, *options, **arguments))])
        importlib.import_module("train").main()
    return printed.getvalue()


def start(root, *options):
    """The same in the background."""
    return subprocess.Popen(command(*training(root, *options)), cwd=PROJECT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def wait_for(text, process):
    """Read what a process prints up to the first line that holds `text`."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return
    raise AssertionError("".join(lines))


def validate(root, *options, checkpoint=None, run=run):
    checkpoint = checkpoint or root / "checkpoints" / f"{EXPERIMENT}.npy"
    return run("validation.py", "tiny", checkpoint, "cpu", "--root", root, "--crops", 1, *options)


def write_pickle(path, content):
    path.write_bytes(pickle.dumps(content, protocol=4))


def make_tiny(root):
    """A data set of random photos; photo 2 has no tag that was kept."""
    rng = stream(0, "tiny")
    splits, images = root / "data" / "tiny", root / "datasets" / "tiny"
    images.mkdir(parents=True)
    (splits / "tags").mkdir(parents=True)
    names = [f"{i}.jpg" for i in range(TRAINING + QUERIES)]
    for name in names:
        colour = rng.integers(0, 256, 3)
        noise = rng.integers(-30, 30, (60, 80, 3))
        assert cv2.imwrite(str(images / name), np.clip(colour + noise, 0, 255).astype(np.uint8))
    tags = (rng.random((TRAINING, TAGS)) < 0.2).astype(int)
    tags[np.arange(TRAINING), np.arange(TRAINING) % (TAGS - 1)] = 1
    tags[2] = 0
    tags[:, -1] = np.arange(TRAINING) == 2
    labels = rng.integers(0, 2, (len(names), 2)) | np.array([1, 0])
    for split, rows in (("train", slice(TRAINING)), ("database", slice(TRAINING)), ("test", slice(TRAINING, None))):
        (splits / f"{split}_img.txt").write_text("\n".join(names[rows]) + "\n")
        if split != "train":
            np.savetxt(splits / f"{split}_label.txt", labels[rows], fmt="%d")
    np.savetxt(splits / "train_tag.txt", tags, fmt="%d")
    (splits / "common_tags.txt").write_text("\n".join("abcdef") + "\n")
    np.savetxt(splits / "tags" / "FinalTagEmbs.txt", rng.normal(size=(TAGS - 1, 300)))
    write_pickle(splits / "tags" / "TagIdMergeMap.pkl", {**{i: [i] for i in range(TAGS - 1)}, -1: [TAGS - 1]})
    return root
