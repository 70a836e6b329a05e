"""prepare/held_out.py and experiments/distances.py: options chosen by tags of training photos that were held out."""
import math
import re

import numpy as np
import pytest

from dataset import find_dataset, read_split
from experiments import code_distances
from test_baselines import write
from tiny import TRAINING, make_tiny
from util import stream


@pytest.fixture
def root(tmp_path):
    return make_tiny(tmp_path)


def test_held_out_photos_are_queries_whose_tags_are_labels(root, run_here):
    code, output = run_here("prepare.held_out", "tiny", "chosen", "--photos", 3, "--fewest", 1, "--root", root)
    assert code == 0, output
    whole, found = find_dataset("tiny", root), find_dataset("chosen", root)
    names, tags = read_split(whole, "train")
    tags_of = dict(zip(names, tags.toarray(), strict=True))
    trained, trained_tags = read_split(found, "train")
    searched, labels = read_split(found, "database")
    queries, query_labels = read_split(found, "test")
    assert trained == searched
    assert len(queries) == 3
    assert sorted(trained + queries) == sorted(names)
    np.testing.assert_array_equal(trained_tags.toarray(), [tags_of[name] for name in trained])
    counted = trained_tags.toarray().any(0)
    np.testing.assert_array_equal(labels.toarray(), trained_tags.toarray()[:, counted])
    np.testing.assert_array_equal(query_labels.toarray(), [tags_of[name][counted] for name in queries])
    assert len((found.splits / "labels.txt").read_text().splitlines()) == counted.sum()
    assert (found.images / queries[0]).is_file()
    assert found.tag_embeddings.read_bytes() == whole.tag_embeddings.read_bytes()


@pytest.mark.parametrize(("arguments", "words"), [
    (("tiny", "--photos", 3), "data/tiny is already there"),
    (("chosen", "--photos", TRAINING), "tiny has 10 training photos: --photos must be fewer, found 10"),
    (("chosen", "--photos", 3, "--fewest", 999), "no tag is on 999 of the photos")])
def test_what_cannot_be_held_out_is_told(arguments, words, root, run_here):
    code, output = run_here("prepare.held_out", "tiny", *arguments, "--root", root)
    assert code == 2
    assert words in output
    assert not (root / "data" / "chosen").exists()


def test_every_share_and_every_distance_is_measured(tmp_path, run_here, monkeypatch):
    monkeypatch.setattr(code_distances, "SHARES", (None, 0.8))
    monkeypatch.setattr(code_distances, "POWERS", (0.125, 0.5))
    monkeypatch.setattr(code_distances, "RARE", 0.5)
    rng = stream(0, "distances test")
    path = write(tmp_path / "x_retrieval.h5", db_features=rng.normal(size=(30, 300)).astype(np.float32),
                 db_codes=np.zeros((30, 2), np.uint8), db_label=np.eye(6, dtype=np.uint8)[np.arange(30) % 6])
    code, output = run_here("experiments.distances", path)
    assert code == 0, output
    maps = [float(value) for value in re.findall(r" (\d\.\d{4}|nan)\b", output)]
    assert len(maps) == 9 * (len(code_distances.SHARES) + len(code_distances.POWERS) - 1)
    assert all(0 < value <= 1 and math.isfinite(value) for value in maps)
