"""AlexNet with few filters, for tests of programs: a checkpoint has 1 MB in place of 235, and a step costs little.

`python tests/support/small_network.py train.py …` runs a program with it. What the programs promise does not depend on
the size; tests of the network itself have the full one.
"""
import contextlib
import os
import runpy
import sys

from models.checkpoint import ALEXNET
from tiny import PROJECT, SMALL

LAYERS = {"conv1": (11, 11, 3, 8), "conv2": (5, 5, 4, 16), "conv3": (3, 3, 16, 16), "conv4": (3, 3, 8, 16),
          "conv5": (3, 3, 8, 16), "fc6": (6 * 6 * 16, 32), "fc7": (32, 32), "fc8": (32, 300)}


@contextlib.contextmanager
def small_network():
    """AlexNet is small within the block."""
    full = dict(ALEXNET)
    ALEXNET.update(LAYERS)
    os.environ[SMALL] = "1"
    try:
        yield
    finally:
        del os.environ[SMALL]
        ALEXNET.update(full)


if __name__ == "__main__":
    del sys.argv[0]
    sys.path[0] = str(PROJECT)  # as if the program itself had been started
    with small_network():
        runpy.run_path(sys.argv[0], run_name="__main__")
