"""GPQ's training step, and its two programs on 360 tiny images."""
import json
import os
import pickle
import re
import signal
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import scipy.io

import gpq_inputs as inputs
import gpq_oracles as oracles
import search
from gpq import config, demo, graphs, measuring, network, retrieval, train, training
from models.session import open_session, tf
from models.states import States
from narrow import NARROW
from retrieval import index
from storage.files import replacing_folder
from tiny import call
from util import UserError, stream

SMALL = config.Config(n_book=3, bn_word=2, len_code=4)
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


# ---------------------------------------------------------------- options and schedule

def test_defaults_are_the_released_ones():
    default = config.Config()
    assert (default.n_book, default.codewords, default.len_code, default.length, default.bits) == (12, 16, 12, 144, 48)
    assert (default.alpha, default.beta, default.lambda_1, default.lambda_2) == (20, 4, 0.1, 0.1)
    assert (default.epochs, default.steps_per_epoch, default.save_period) == (300, 10, 20)
    assert (default.batch_size, default.batch_size_unlabelled, default.learning_rate) == (500, 500, 0.0002)


def test_learning_rate_falls_by_a_twentieth_every_100_steps():
    assert [graphs.learning_rate(0.0002, step) for step in (0, 99, 100, 250)] == pytest.approx(
        [0.0002, 0.0002, 0.00019, 0.0002 * 0.95 ** 2])


# ---------------------------------------------------------------- the training step

def narrow_steps(loss, steps=1):
    """Losses of every step, the features of its two batches, and the variables before and after."""
    rng = stream(0, "gpq step test")
    images, unlabelled = (rng.standard_normal((n, 32, 32, 3), np.float32) for n in (6, 5))
    labels = np.array([0, 1, 1, 2, 0, 1])
    graph = graphs.TrainingGraph(SMALL, 3, loss, "/cpu:0", NARROW)
    with open_session(graph.graph) as session:
        graph.initialize(session, network.xavier(network.parameter_shapes(12, 4, 3, NARROW), rng))
        before = session.run(graph.variables)
        fetched = [graph.features] + ([graph.target_features] if loss == "gpq" else [])
        features = session.run(fetched, {graph.images: images, graph.unlabelled: unlabelled})
        values = [graph.step(session, images, labels, unlabelled, 0.001) for _ in range(steps)]
        return values, features, labels, before, session.run(graph.variables)


@pytest.fixture(scope="module")
def learned():
    return narrow_steps("gpq", steps=10)


def test_losses_of_a_step_are_the_oracles(learned):
    ((loss, hash_, cls, ent), *_), (features, target), labels, values, _ = learned
    f, g, p = (oracles.intra(x, 3) for x in (features, target, values["C"]))
    d = oracles.soft(oracles.soft(p, values["Z"], 3, 20), f, 3, 20)
    assert hash_ == pytest.approx(oracles.n_pair(f, d, labels, 3), rel=1e-5)
    assert cls == pytest.approx(oracles.classification(oracles.logits(f, p, 3, 4), labels), rel=1e-5)
    assert ent == pytest.approx(oracles.entropy(oracles.logits(g, p, 3, 4)), rel=1e-5)
    assert loss == pytest.approx(hash_ + 0.1 * ent + 0.1 * cls, rel=1e-6)


def test_steps_learn_and_move_every_parameter(learned):
    (first, *_, last), _, _, before, after = learned
    assert last[0] < first[0] - 0.1
    assert all((before[name] != after[name]).any() for name in before)


def test_classification_alone_leaves_the_codebooks():
    ((loss, _, cls, ent),), _, _, before, after = narrow_steps("classification")
    assert loss == cls
    assert ent == 0
    assert (before["Z"] == after["Z"]).all()
    assert (before["C"] != after["C"]).any()


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
    assert measuring.shown_query(SimpleNamespace(query=5), 6) == 5
    with pytest.raises(UserError, match="expected a row from 0 to 5, found 6"):
        measuring.shown_query(SimpleNamespace(query=6), 6)


@pytest.mark.slow
def test_the_demo_draws_the_query_that_is_asked_for_or_nothing(root, monkeypatch, capsys):
    call(monkeypatch, capsys, train, "cpu", "--root", root, *TINY, "--epochs", 0)
    arguments = (root / NAME, "cpu", "--root", root, *TINY)
    code, output = call(monkeypatch, capsys, demo, *arguments, "--no-figures")
    assert code == 0, output
    assert not list((root / NAME / "step_000000").glob("*.png"))
    drawn = []
    monkeypatch.setattr(measuring, "draw", lambda *values: drawn.append(values[5]))
    assert call(monkeypatch, capsys, demo, *arguments, "--query", 2)[0] == 0
    assert drawn == [2]
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
    assert "SIGINT came: saved the state after step 2; --resume goes on from it." in output
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
    assert "--resume goes on from them" in output
    code, output = call(monkeypatch, capsys, train, *arguments, "--checkpoints", "parts", "--resume", "--epochs", 0)
    assert code == 2
    assert "the newest checkpoint follows step 3, beyond the 0 of --epochs" in output


def test_a_flipped_byte_is_found_before_a_checkpoint_is_read(tmp_path):
    with replacing_folder(tmp_path / "step_000001") as new:
        (new / "model.ckpt.index").write_bytes(b"whole")
    (tmp_path / "step_000001/model.ckpt.index").write_bytes(b"wholf")
    with pytest.raises(UserError, match=r"model\.ckpt\.index was altered since it was written"):
        graphs.check_checkpoint(graphs.find_checkpoint(tmp_path), config.Config(), {})


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


def test_the_newest_checkpoint_is_the_one_after_most_steps_and_not_the_last_by_name(tmp_path):
    for step in ("step_999999", "step_1000000", ".step_2000000.1.tmp"):
        (tmp_path / step).mkdir()
        (tmp_path / step / "model.ckpt.index").write_bytes(b"")
    assert graphs.find_checkpoint(tmp_path) == tmp_path / "step_1000000" / "model.ckpt"
    assert States(tmp_path, {}, "model.ckpt", 6).newest_step() == 1_000_000


def test_a_checkpoint_that_a_kill_left_under_its_other_name_is_found(tmp_path):
    for state in ("step_000001", ".step_000002.old"):  # as of replacing_folder
        (tmp_path / "a" / state).mkdir(parents=True)
        (tmp_path / "a" / state / "model.ckpt.index").write_bytes(b"")
    assert graphs.find_checkpoint(tmp_path) == tmp_path / "a" / "step_000002" / "model.ckpt"


def test_a_checkpoint_without_what_only_training_needs_is_encoded(tmp_path):
    """As a released one, which has other names for it."""
    small = config.Config(n_book=3, bn_word=2, len_code=4)
    shapes = network.parameter_shapes(small.length, small.codewords, 3, NARROW)
    values = network.xavier(shapes, stream(0, "gpq released"))
    with tf.Graph().as_default(), tf.Session() as session:
        variables, first = network.make_variables(shapes)
        averages = network.MovingAverages(training=False, convolutions=NARROW)
        session.run(tf.global_variables_initializer(), {first[name]: value for name, value in values.items()})
        tf.train.Saver({**variables, **averages.variables}).save(session, str(tmp_path / "48_bits.ckpt"))
    encoder = graphs.Encoder(graphs.find_checkpoint(tmp_path / "48_bits.ckpt"), small, 3, "/cpu:0", NARROW)
    np.testing.assert_array_equal(encoder.codebooks, values["Z"])
    images = stream(0, "gpq images").integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    assert encoder.features(images, "encoding").shape == (3, 12)
    expected = oracles.soft(oracles.intra(values["C"], 3), values["Z"], 3, 20)
    np.testing.assert_allclose(encoder.soft_codebooks(20), expected, atol=1e-5)
    assert retrieval.hard_codes(encoder.features(images, "encoding"), encoder.codebooks, 3).max() < 4


def test_training_starts_from_a_pretrained_file(tmp_path):
    shapes = network.parameter_shapes(144, 16, 10)
    content = {f"{name}:0": value for name, value in network.xavier(shapes, stream(7, "other weights")).items()}
    scipy.io.savemat(tmp_path / "start.mat", content)
    values = training.first_values(config.Config(pretrained=tmp_path / "start.mat"), shapes, seed=0)
    fresh = network.xavier(shapes, stream(0, "gpq weights"))
    for name, value in values.items():
        expected = fresh[name] if name in ("Z", "C") or "dense" in name else content[f"{name}:0"]
        np.testing.assert_array_equal(value, expected)


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


