"""Names of indexes, and the embedder of queries, which threads share."""
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from models.checkpoint import Checkpoint
from retrieval import searcher
from retrieval.searcher import QueryEmbedder, find_index, named_folder
from storage.files import fingerprint
from util import UserError

# ---------------------------------------------------------------- names

@pytest.fixture
def root(tmp_path):
    for name in ("demo_a", "demo2_b", "mine", "mine_c", "two_a", "two_b", ".hidden"):
        (tmp_path / "indexes" / name).mkdir(parents=True)
        (tmp_path / "indexes" / name / "manifest.json").write_text("{}")
    (tmp_path / "indexes" / "demo_no_index").mkdir()
    return tmp_path


@pytest.mark.parametrize(("name", "found"), [
    ("demo", "demo_a"), ("demo2", "demo2_b"), ("demo_", "demo_a"), ("mine", "mine"), ("mine_", "mine_c"),
    ("two_b", "two_b")])
def test_a_name_is_that_of_the_index_that_it_fits(root, name, found):
    assert find_index(name, root) == root / "indexes" / found


@pytest.mark.parametrize(("name", "sentence"), [
    ("two", "two may be one of 2 indexes: two_a; two_b$"), ("dem", "dem may be one of 2 indexes: demo2_b; demo_a$"),
    ("beach", "beach: expected an index, or how the name of one begins, found neither; .*indexes has demo2_b; demo_a;"),
    ("*", "expected an index")])
def test_a_name_that_fits_several_indexes_or_none_is_one_sentence(root, name, sentence):
    with pytest.raises(UserError, match=sentence):
        find_index(name, root)


def test_a_path_comes_first(root, monkeypatch):
    (root / "two").mkdir()
    (root / "two" / "manifest.json").write_text("{}")
    assert find_index(str(root / "indexes/mine_c"), root) == root / "indexes/mine_c"
    monkeypatch.chdir(root)
    assert find_index("two", root).resolve() == root / "two"


def test_a_project_without_indexes_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="indexes has none yet"):
        find_index("two", tmp_path)


@pytest.mark.parametrize("name", ["a/b", "..", "", ".x", "/"])
def test_an_index_is_called_by_a_plain_name(root, name):
    with pytest.raises(UserError, match="expected a name without slashes"):
        named_folder(name, root)
    assert named_folder("my index", root) == root / "indexes/my index"


# ---------------------------------------------------------------- the embedder of queries

class Mean:
    """The embedding of an image is its mean; a run waits until as many run as are expected."""

    def __init__(self, together=1):
        self.running = threading.Barrier(together, timeout=30)

    def embed(self, images):
        self.running.wait()
        return np.array([[image.mean()] for image in images], np.float32)


@pytest.fixture
def facts(tmp_path):
    (tmp_path / "c.npy").write_text("a checkpoint")
    return {"checkpoint": str(tmp_path / "c.npy"), "checkpoint_sha256": fingerprint(tmp_path / "c.npy"), "crops": 1,
            "experiment": "c"}


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    monkeypatch.setattr(searcher, "read_checkpoint", lambda path, sha256: Checkpoint({}, None))


def image(number):
    return np.full((2, 2, 3), number, np.uint8)


def test_threads_load_the_embedder_once_and_embed_at_the_same_time(facts, monkeypatch):
    loaded = []
    monkeypatch.setattr(searcher, "embedder_of", lambda *which: loaded.append(which) or Mean(together=4))
    embedder = QueryEmbedder("index", facts)
    assert not loaded
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: embedder.embed([image(number)])[0, 0], range(4)))
    assert found == [0, 1, 2, 3]
    assert len(loaded) == 1


def test_an_embedder_that_cannot_be_loaded_is_reported_and_tried_again(facts, monkeypatch):
    tries = []

    def load(*_):
        tries.append(1)
        if len(tries) < 3:
            raise UserError("no such file")
        return Mean()
    monkeypatch.setattr(searcher, "embedder_of", load)
    embedder = QueryEmbedder("index", facts)
    assert embedder.embed([]).shape == (0, 300)  # loads nothing
    for _ in range(2):
        with pytest.raises(UserError, match="no such file"):
            embedder.embed([image(1)])
    assert embedder.embed([image(1)]).tolist() == [[1]]
