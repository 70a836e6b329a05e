"""Shared by all tests: the --slow switch, programs run in this process, and a small network."""
import gc
import importlib
import signal

import pytest

from tiny import call
from util import collect_garbage_seldom

# files of tests that take longest: they begin first, so that no worker of xdist ends long after the other
LONGEST = ("test_programs", "test_serve", "test_search", "test_train", "test_faults", "test_tag_processing",
           "test_hostile_files", "test_connections", "test_net")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_configure():
    """A suite in the background is started deaf to Ctrl-C, and so would the programs be that it starts."""
    collect_garbage_seldom()
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    gc.freeze()  # what was imported stays, and is not looked through for garbage again and again


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes; --slow runs it"))


@pytest.fixture
def run_here(monkeypatch, capsys):
    """As `tiny.run` in this process, which spares it the start of TensorFlow: run_here("train.py", …)."""
    def run(program, *arguments):
        return call(monkeypatch, capsys, importlib.import_module(program.removesuffix(".py")), *arguments)
    return run


@pytest.fixture(scope="module")
def small():
    """The programs that `tiny.run`, `tiny.start` and `run_here` run have a small network, in the whole module."""
    with importlib.import_module("small_network").small_network():  # loads TensorFlow, which few tests need
        yield
