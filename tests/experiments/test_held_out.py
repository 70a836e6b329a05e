"""experiments/held_out.py: half of the photos are trained on, the other half is searched."""
import shutil

import numpy as np
import pytest

from dataset import find_dataset, load_retrieval, load_training, read_split
from experiments import held_out
from tiny import TRAINING, call, make_tiny


@pytest.fixture
def halve(tmp_path, monkeypatch, capsys):
    """A function that halves the data set `tiny`; exit code, and what was printed."""
    root = make_tiny(tmp_path)
    return lambda *options: call(monkeypatch, capsys, held_out, "tiny", "half", "--root", root, *options)


def test_no_photo_is_both_trained_on_and_searched(halve, tmp_path):
    code, printed = halve()
    assert code == 0, printed
    assert printed == f"wrote {tmp_path / 'data/half'}: 5 photos to train on, 5 others to search, 3 queries\n"
    whole, half = (find_dataset(name, tmp_path) for name in ("tiny", "half"))
    trained, searched = read_split(half, "train"), read_split(half, "database")
    assert sorted(trained[0] + searched[0]) == sorted(read_split(whole, "train")[0])
    for split, (names, matrix) in {"train": trained, "database": searched}.items():
        all_names, full = read_split(whole, split)
        np.testing.assert_array_equal(matrix.toarray(), full.toarray()[[all_names.index(name) for name in names]])
    for name in ("test_img.txt", "test_label.txt", "common_tags.txt", "tags/FinalTagEmbs.txt",
                 "tags/TagIdMergeMap.pkl"):
        assert (half.splits / name).read_bytes() == (whole.splits / name).read_bytes()
    assert load_training(half).tags.shape[1] == load_training(whole).tags.shape[1]
    assert len(load_retrieval(half, "database").paths) == len(searched[0])


def test_the_seed_draws_the_halves(halve, tmp_path):
    halves = []
    for seed in (0, 0, 1):
        assert halve("--seed", seed)[0] == 0
        halves.append((tmp_path / "data/half/train_img.txt").read_text())
        shutil.rmtree(tmp_path / "data/half")
    assert halves[0] == halves[1] != halves[2]


def test_what_cannot_be_halved_is_refused_and_nothing_is_written(halve, tmp_path):
    splits, names = tmp_path / "data/tiny", [f"{i}.jpg\n" for i in range(TRAINING)]
    labels = (splits / "database_label.txt").read_text().splitlines(keepends=True)
    (splits / "database_img.txt").write_text("".join(names[1:]))
    (splits / "database_label.txt").write_text("".join(labels[1:]))
    code, printed = halve()
    assert code == 2
    assert "expected training photos that are in the database too, found 1 others, such as 0.jpg" in printed
    (splits / "database_img.txt").write_text("".join(names))
    (splits / "database_label.txt").write_text("".join(labels))
    for name in ("train_img.txt", "train_tag.txt"):
        (splits / name).write_text((splits / name).read_text().splitlines(keepends=True)[0])
    code, printed = halve()
    assert (code, printed) == (2, "error: tiny: expected at least two training photos, found 1\n")
    assert not (tmp_path / "data/half").exists()
    assert not (tmp_path / "datasets/half").exists()
    (tmp_path / "data/half").mkdir()
    code, printed = halve()
    assert code == 2
    assert f"{tmp_path / 'data/half'} already exists; remove it, or choose another name" in printed
