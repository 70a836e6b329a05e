"""GPQ's training step and encoder on a narrow network, and the checkpoints between them."""
import numpy as np
import pytest

import gpq_oracles as oracles
from gpq import config, graphs, network, retrieval
from models.session import open_session, tf
from models.states import States
from narrow import NARROW
from storage.files import replacing_folder
from util import UserError, stream

SMALL = config.Config(n_book=3, bn_word=2, len_code=4)


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


# ---------------------------------------------------------------- checkpoints

def test_a_flipped_byte_is_found_before_a_checkpoint_is_read(tmp_path):
    with replacing_folder(tmp_path / "step_000001") as new:
        (new / "model.ckpt.index").write_bytes(b"whole")
    (tmp_path / "step_000001/model.ckpt.index").write_bytes(b"wholf")
    with pytest.raises(UserError, match=r"model\.ckpt\.index was altered since it was written"):
        graphs.check_checkpoint(graphs.find_checkpoint(tmp_path), config.Config(), {})


def test_the_newest_checkpoint_is_the_one_after_most_steps_and_not_the_last_by_name(tmp_path):
    for step in ("step_999999", "step_1000000", ".step_2000000.1.tmp"):
        (tmp_path / step).mkdir()
        (tmp_path / step / "model.ckpt.index").write_bytes(b"")
    assert graphs.find_checkpoint(tmp_path) == tmp_path / "step_1000000" / "model.ckpt"
    assert States(tmp_path, {}, "model.ckpt", 6).newest_step() == 1_000_000


def test_a_checkpoint_that_a_kill_left_under_its_other_name_is_found(tmp_path):
    for state in ("step_000001", ".step_000002.old"):  # see replacing_folder
        (tmp_path / "a" / state).mkdir(parents=True)
        (tmp_path / "a" / state / "model.ckpt.index").write_bytes(b"")
    assert graphs.find_checkpoint(tmp_path) == tmp_path / "a" / "step_000002" / "model.ckpt"


def test_a_checkpoint_without_what_only_training_needs_is_encoded(tmp_path):
    """The release's have other names for that."""
    shapes = network.parameter_shapes(SMALL.length, SMALL.codewords, 3, NARROW)
    values = network.xavier(shapes, stream(0, "gpq released"))
    with tf.Graph().as_default(), tf.Session() as session:
        variables, first = network.make_variables(shapes)
        averages = network.MovingAverages(training=False, convolutions=NARROW)
        session.run(tf.global_variables_initializer(), {first[name]: value for name, value in values.items()})
        tf.train.Saver({**variables, **averages.variables}).save(session, str(tmp_path / "48_bits.ckpt"))
    encoder = graphs.Encoder(graphs.find_checkpoint(tmp_path / "48_bits.ckpt"), SMALL, 3, "/cpu:0", NARROW)
    np.testing.assert_array_equal(encoder.codebooks, values["Z"])
    images = stream(0, "gpq images").integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    assert encoder.features(images, "encoding").shape == (3, 12)
    expected = oracles.soft(oracles.intra(values["C"], 3), values["Z"], 3, 20)
    np.testing.assert_allclose(encoder.soft_codebooks(20), expected, atol=1e-5)
    assert retrieval.hard_codes(encoder.features(images, "encoding"), encoder.codebooks, 3).max() < 4
