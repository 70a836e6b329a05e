"""GPQ's two programs on 360 tiny images."""
import json
import os
import pickle
import re
import signal
import sys

import cv2
import numpy as np
import pytest

import gpq_inputs as inputs
import search
from gpq import config, demo, graphs, retrieval, train
from models.session import tf
from retrieval import figures, index
from tiny import call
from util import UserError, stream

TINY = ("--labelled-per-class", 20, "--batch-size", 4, "--batch-size-unlabelled", 5, "--steps-per-epoch", 1,
        "--save-period", 1)
NAME = "checkpoints/gpq/cifar10_gpq_nbits=48_seed=0"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "cifar10").mkdir()
    for name, content in inputs.cifar_batches(3).items():
        (tmp_path / "cifar10" / name).write_bytes(pickle.dumps(content, 2))
    return tmp_path


def stored(folder):
    reader = tf.train.load_checkpoint(str(graphs.find_checkpoint(folder)))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


# ---------------------------------------------------------------- options

def test_defaults_are_the_released_ones(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "cpu"])
    options = train.parse_arguments()
    default = config.config_of(options)
    assert default == config.Config()
    assert (default.n_book, default.codewords, default.len_code, default.length, default.bits) == (12, 16, 12, 144, 48)
    assert (default.alpha, default.beta, default.lambda_1, default.lambda_2) == (20, 4, 0.1, 0.1)
    assert (options.epochs, options.steps_per_epoch, options.save_period) == (300, 10, 20)
    assert (options.batch_size, options.batch_size_unlabelled, options.learning_rate) == (500, 500, 0.0002)
    assert (options.images, options.labelled_per_class, options.pretrained) == (60_000, 500, None)


# ---------------------------------------------------------------- programs

def test_training_writes_the_released_lines_and_names_and_the_demo_measures_it(root, monkeypatch, capsys):
    code, output = call(monkeypatch, capsys, train, "cpu", "--root", root, *TINY, "--epochs", 2)
    assert code == 0, output
    number = r"-?\d+\.\d{4}"
    lines = re.findall(rf"epoch: \d/2, iter: \d - \(Batch\) loss: {number}, hash: {number}, cls: {number}, "
                       rf"ent: {number}, lr: 0\.00020\n", output)
    assert len(lines) == 2
    assert [path.name for path in sorted((root / NAME).iterdir())] == ["record.json", "step_000001", "step_000002"]
    record = json.loads((root / NAME / "record.json").read_text())
    assert record["batch_size"] == 4
    assert set(record["fingerprints"]) == set(inputs.cifar_batches(3)) - {"batches.meta"}
    assert "tensorflow" in record["versions"]
    names = set(stored(root / NAME))
    assert {"Z", "C", "Fixed_VGG/dense/kernel", "Fixed_VGG/batch3-2/moving_variance", "Z/Adam", "C/Adam_1"} <= names
    assert list((root / "logs/gpq/cifar10_gpq_nbits=48_seed=0").glob("events*"))

    arguments = (root / NAME, "cpu", "--root", root, *TINY)
    code, output = call(monkeypatch, capsys, demo, *arguments, "--release-table")
    assert code == 0, output
    metrics = json.loads((root / NAME / "step_000002/metrics.json").read_text())
    assert metrics["bits"] == 48
    assert list(metrics["map"]) == ["codes, Z'", "codes, intra(Z)", "release's table", "features", "random"]
    assert all(0 < value <= 1 for value in metrics["map"].values())
    assert len(metrics["codewords_used"]) == 12
    for name in ("ranking.png", "tsne.png"):
        assert cv2.imread(str(root / NAME / "step_000002" / name)) is not None
    check_index(root / NAME / "step_000002")
    code, output = call(monkeypatch, capsys, demo, *arguments, "--n-book", 6)
    assert code == 2
    assert "6 codebooks of 16 codewords of 12 dimensions need Z with shape [16, 72]" in output
    assert "Traceback" not in output


def check_index(folder):
    """The index ranks as the distances of Z' do, and search.py says that it is not its own."""
    searched = index.load(folder / "index")
    content = searched.content
    queries = retrieval.intra_normalize(stream(0, "gpq queries").standard_normal((5, 144), np.float32), 12)
    scores, rows = searched.search(queries, 30)
    distances = retrieval.distances(queries, content.codes, content.codebooks.transpose(1, 0, 2).reshape(16, 144))
    np.testing.assert_allclose(np.take_along_axis(12 - distances, rows, 1), scores, atol=1e-4)
    np.testing.assert_allclose(scores, -np.sort(distances - 12, 1)[:, :30], atol=1e-4)
    assert {name.split("/")[0] for name in content.images} <= set(inputs.cifar_batches(3))
    assert content.label_names == [f"class {number}" for number in range(10)]
    with pytest.raises(UserError, match=r"is an index of another program: gpq\.demo"):
        search.open_index(folder / "index")


def test_a_query_that_is_not_there_is_refused():
    assert demo.shown_query(5, queries=6, seed=0) == 5
    assert 0 <= demo.shown_query(None, queries=6, seed=0) < 6
    with pytest.raises(UserError, match="expected a row from 0 to 5, found 6"):
        demo.shown_query(6, queries=6, seed=0)


@pytest.mark.slow
def test_the_demo_draws_the_query_that_is_asked_for_or_nothing(root, monkeypatch, capsys):
    call(monkeypatch, capsys, train, "cpu", "--root", root, *TINY, "--epochs", 0)
    arguments = (root / NAME, "cpu", "--root", root, *TINY)
    code, output = call(monkeypatch, capsys, demo, *arguments, "--no-figures")
    assert code == 0, output
    assert not list((root / NAME / "step_000000").glob("*.png"))
    drawn = []
    monkeypatch.setattr(demo, "ranking", lambda _, query, rows, scores: drawn.append((query, len(rows), len(scores))))
    monkeypatch.setattr(figures, "ranking_figure", lambda path, rows: None)
    monkeypatch.setattr(figures, "tsne_figure", lambda *_: None)
    assert call(monkeypatch, capsys, demo, *arguments, "--query", 2)[0] == 0
    assert drawn == [(2, 20, 20)]
    code, output = call(monkeypatch, capsys, demo, *arguments, "--query", 6)
    assert code == 2
    assert "expected a row from 0 to 5, found 6" in output


@pytest.mark.slow
def test_ctrl_c_saves_the_state_and_a_resumed_run_ends_as_an_undisturbed_one(root, monkeypatch, capsys):
    arguments = ("cpu", "--root", root, *TINY, "--steps-per-epoch", 3, "--epochs", 1)
    call(monkeypatch, capsys, train, *arguments, "--checkpoints", "whole")
    step = graphs.TrainingGraph.step

    def interrupted(self, *batch):
        if interrupted.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        interrupted.left -= 1
        return step(self, *batch)
    interrupted.left = 1
    monkeypatch.setattr(graphs.TrainingGraph, "step", interrupted)
    code, output = call(monkeypatch, capsys, train, *arguments, "--checkpoints", "parts")
    assert code == 130, output
    assert "SIGINT came: saved the state after step 2; --resume continues from it." in output
    code, output = call(monkeypatch, capsys, train, *arguments, "--checkpoints", "parts", "--resume")
    assert code == 0, output
    assert "resumed after step 2." in output
    whole, parts = stored(root / "whole"), stored(root / "parts")
    assert whole.keys() == parts.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)
    code, output = call(monkeypatch, capsys, train, *arguments, "--checkpoints", "parts", "--resume", "--alpha", 10)
    assert code == 2
    assert "alpha was 20.0, now 10.0" in output
    code, output = call(monkeypatch, capsys, train, *arguments, "--checkpoints", "parts")
    assert code == 2
    assert "continue from them with --resume" in output
    code, output = call(monkeypatch, capsys, train, *arguments, "--checkpoints", "parts", "--resume", "--epochs", 0)
    assert code == 2
    assert "the newest checkpoint follows step 3, beyond the 0 of --epochs" in output


@pytest.mark.slow
def test_a_flipped_byte_in_a_checkpoint_is_found_and_the_file_named(root, monkeypatch, capsys):
    call(monkeypatch, capsys, train, "cpu", "--root", root, *TINY, "--epochs", 0)
    path = root / NAME / "step_000000" / "model.ckpt.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    for program, arguments in ((demo, (root / NAME, "cpu")), (train, ("cpu", "--resume", "--epochs", 1))):
        code, output = call(monkeypatch, capsys, program, *arguments, "--root", root, *TINY)
        assert code == 2
        assert f"{path} was altered since it was written" in output


# ---------------------------------------------------------------- bad input

def missing(root):
    (root / "cifar10/data_batch_3").unlink()


def damaged(root):
    (root / "cifar10/data_batch_3").write_bytes(b"\x80\x02nothing")


@pytest.mark.parametrize(("prepare", "arguments", "message"), [
    (missing, (), "data_batch_3 is missing"),
    (damaged, (), "data_batch_3: this pickle was not read"),
    (None, ("--batch-size", 201), "its 200 labelled images are fewer than one batch of 201"),
    (None, ("--batch-size-unlabelled", 155), "its 154 unlabelled images are fewer than one batch of 155"),
    (None, ("--pretrained", "none.mat"), "none.mat: no such file"),
    (None, ("--resume",), "there is no saved state to resume; one is saved when a training is interrupted"),
    (None, ("--n-book", 0), "expected a whole number of at least 1"),
    (None, ("--bn-word", 9), "expected a whole number from 1 to 8"),
])
def test_bad_input_to_training_ends_in_a_sentence_and_code_2(root, monkeypatch, capsys, prepare, arguments, message):
    if prepare:
        prepare(root)
    code, output = call(monkeypatch, capsys, train, "cpu", "--root", root, *TINY, "--epochs", 1, *arguments)
    assert code == 2
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize(("files", "message"), [
    ([], "expected a checkpoint of gpq.train in this folder, found none"),
    (["model.ckpt.index"], "this checkpoint cannot be read"),
])
def test_a_wrong_checkpoint_ends_in_a_sentence_and_code_2(root, monkeypatch, capsys, files, message):
    (root / "model").mkdir()
    for name in files:
        (root / "model" / name).write_bytes(b"nothing")
    code, output = call(monkeypatch, capsys, demo, root / "model", "cpu", "--root", root, *TINY)
    assert code == 2
    assert message in output
    code, output = call(monkeypatch, capsys, demo, root / "48.ckpt", "cpu", "--root", root, *TINY)
    assert code == 2
    assert "48.ckpt.index is missing" in output


