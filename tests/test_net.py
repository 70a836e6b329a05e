"""The training network: the released steps, the alternating update, first weights; mostly on a linear network."""
from types import SimpleNamespace

import numpy as np
import pytest

import net
import parity_inputs as parity
import train
from linear import PIXELS, SIDE, W, Y, _features, linear_network, linear_training, linear_weights, states_of
from models import alexnet, layers
from models.checkpoint import checked_layers
from models.session import open_session, tf
from quantization import quantizer
from quantization.codebooks import random_codebooks
from small_network import small_network
from util import UserError, stream

# ---------------------------------------------------------------- the released steps

def test_three_steps_of_alexnet_are_the_released_ones():
    network = linear_network(network=alexnet, trainable=list(alexnet.LAYERS))
    images = parity.images(parity.SEED + 9, 8)[:, 14:241, 14:241]
    q = quantizer.reconstruct(parity.codes(parity.SEED + 4, 8, 2), parity.codebooks(parity.SEED + 5, 2))
    weights, steps = parity.alexnet_weights(parity.SEED + 7), []
    with network.open_session() as session:
        network.initialize(session, weights)
        for step in range(3):
            rate = train.learning_rate(1e-5, step)
            _, embedding, quantization = network.step(session, images, Y, q, rate, 1e-4, np.zeros((2, 2)))
            steps.append([embedding, quantization / 1e-4, rate])
        trained = session.run(network.variables)
    np.testing.assert_allclose(steps, parity.CASES["train/steps"], rtol=1e-3)
    for layer, (kernel, bias) in weights.items():
        for part, before, after in zip(("kernel", "bias"), (kernel, bias), trained[layer], strict=True):
            expected = parity.CASES[f"train/{layer}/{part}_delta_abs_mean"]
            np.testing.assert_allclose(np.abs(after - before).mean(), expected, rtol=1e-3, err_msg=f"{layer} {part}")


def first_moments(trainable):
    """Adam's first moments after one step of the small AlexNet, a tenth of the gradients that it is given."""
    network = linear_network(network=alexnet, trainable=trainable)
    rng = stream(0, "moments")
    weights = {layer: [rng.normal(0, 0.05, shape).astype(np.float32), np.zeros(shape[-1], np.float32)]
               for layer, shape in alexnet.LAYERS.items()}
    images = parity.images(parity.SEED + 9, 8)[:, 14:241, 14:241]
    with network.open_session() as session:
        network.initialize(session, weights)
        network.step(session, images, Y, np.zeros((8, 300)), 1e-5, 0, np.zeros((2, 2)))
        slots = {variable.op.name: variable for variable in network.graph.get_collection("variables")}
        return {name: session.run(variable) for name, variable in slots.items() if name.endswith("/Adam")}


def test_adam_is_given_the_gradients_times_the_factors_of_the_release(monkeypatch):
    """Adam divides a constant factor out again, but for its ε, so the steps alone do not show it."""
    with small_network():
        given = first_moments(list(alexnet.LAYERS))
        monkeypatch.setattr(net, "FACTORS", (1, 1))
        monkeypatch.setattr(net, "LAST_FACTORS", (1, 1))
        plain = first_moments(list(alexnet.LAYERS))
    assert len(given) == 2 * len(alexnet.LAYERS)
    for name, moment in given.items():
        factor = {"kernel": 1, "bias": 2}[name.split("/")[1]] * (10 if name.startswith("fc8") else 1)
        assert np.abs(plain[name]).max() > 0
        np.testing.assert_allclose(moment, factor * plain[name], rtol=1e-5, err_msg=name)


# ---------------------------------------------------------------- training as a whole

def test_training_lowers_the_loss_and_the_quantization_error():
    training = linear_training(images=64, batch_size=16)
    with training.network.open_session() as session:
        training.network.initialize(session, linear_weights())
        reports, _ = training.take(range(60), session)
    assert reports[-1]["loss/embedding"] < 0.95 * reports[0]["loss/embedding"]
    assert all(report["loss/quantization"] == 0 for report in reports[:9])
    assert all(report["loss/quantization"] > 0 for report in reports[9:])
    factor, alternation = quantizer.semantic_factor(W), training.alternation
    rest = alternation.embeddings - quantizer.reconstruct(alternation.codes, alternation.codebooks)
    assert np.square(rest @ factor).sum() < 0.2 * np.square(alternation.embeddings @ factor).sum()


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path, rate):
    training = linear_training(40, 16, dropout=rate)
    _, save, _ = states_of(training, tmp_path, {"lr": 1})
    with training.network.open_session() as session:
        training.network.initialize(session, linear_weights())
        training.take(range(11), session)
        save(11, session)
        _, expected = training.take(range(11, 25), session)
    resumed = linear_training(40, 16, dropout=rate)
    states, _, restore = states_of(resumed, tmp_path, {"lr": 1})
    with resumed.network.open_session() as session:
        restore(session)
        assert states.newest_step() == 11
        _, found = resumed.take(range(11, 25), session)
    np.testing.assert_array_equal(found["fc8"][0], expected["fc8"][0])
    np.testing.assert_array_equal(resumed.alternation.codebooks, training.alternation.codebooks)


def test_only_the_newest_state_is_kept_and_a_broken_save_leaves_the_one_before(tmp_path):
    training = linear_training(8, 8)
    states, save, restore = states_of(training, tmp_path, {})
    with training.network.open_session() as session:
        training.network.initialize(session, linear_weights())
        save(1, session)
        save(2, session)
        assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]
        (tmp_path / ".step_00000003.1.tmp").mkdir()  # what a process leaves that is killed while it saves
        assert states.newest_step() == 2
        restore(session)
        save(3, session)
        assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


def test_what_else_lies_among_the_states_stays_and_does_no_harm(tmp_path):
    training = linear_training(8, 8)
    states, save, restore = states_of(training, tmp_path, {})
    (tmp_path / ".DS_Store").write_text("a file")
    (tmp_path / "step_9").write_text("a file")
    (tmp_path / "step_by_step").mkdir()
    with training.network.open_session() as session:
        training.network.initialize(session, linear_weights())
        save(1, session)
        save(2, session)
        assert states.steps() == [2]
        restore(session)
    assert {path.name for path in tmp_path.iterdir()} == {".DS_Store", "step_9", "step_by_step", "step_00000002"}


def test_resuming_with_other_settings_is_refused_by_name(tmp_path):
    training = linear_training(8, 8)
    with training.network.open_session() as session:
        training.network.initialize(session, linear_weights())
        states_of(training, tmp_path, {"lr": 1, "seed": 2})[1](1, session)
        with pytest.raises(UserError, match="seed was 2, now 3"):
            states_of(training, tmp_path, {"lr": 1, "seed": 3})[2](session)
        with pytest.raises(UserError, match="no saved state"):
            states_of(training, tmp_path / "none", {})[2](session)


def test_a_layer_that_is_not_trained_keeps_its_values():
    layers = {"fc7": (SIDE * SIDE * 3, 10), "fc8": (10, 300)}

    def features(images, variables, dropout):
        kernel, bias = variables["fc7"]
        return tf.tanh(tf.matmul(_features(images, variables, dropout)[0], kernel) + bias), {}

    network = linear_network(network=SimpleNamespace(LAYERS=layers, INPUT=PIXELS, features=features), trainable=["fc8"])
    rng = stream(0, "finetune test")
    weights = {layer: [rng.normal(size=shape), np.zeros(shape[-1])] for layer, shape in layers.items()}
    with network.open_session() as session:
        network.initialize(session, weights)
        before = session.run(network.variables)
        network.step(session, rng.integers(0, 256, (8, SIDE, SIDE, 3)), Y, np.zeros((8, 300)), 0.1, 0, np.zeros((2, 2)))
        after = session.run(network.variables)
    np.testing.assert_array_equal(before["fc7"][0], after["fc7"][0])
    assert not np.array_equal(before["fc8"][0], after["fc8"][0])


def test_codebooks_of_a_trained_model_are_not_drawn_anew():
    rng = stream(0, "trained codebooks test")
    given = random_codebooks(1, rng)
    alternation = net.AlternatingUpdate(20, quantizer.semantic_factor(W), given, 0, has_codebooks=True)
    alternation.embeddings = rng.normal(size=(20, 300)).astype(np.float32)
    alternation.update(4)
    unused = np.setdiff1d(np.arange(256), alternation.codes[:, 0])
    np.testing.assert_array_equal(alternation.codebooks[0, unused], given[0, unused])


# ---------------------------------------------------------------- first weights

def test_lsuv_gives_every_layer_an_output_of_variance_one():
    images = parity.images(parity.SEED + 9, 8)[:, 14:241, 14:241]
    weights = layers.lsuv_weights(images, stream(0, "weights"), "/cpu:0")
    with tf.Graph().as_default() as graph, open_session(graph) as session:
        variables, first_values = layers.make_variables(alexnet.LAYERS, ())
        embeddings, before = layers.embed(alexnet, tf.constant(images), variables)
        session.run(tf.global_variables_initializer(), layers.feed_weights(first_values, weights))
        outputs, r = session.run([before, embeddings])
    for layer, output in outputs.items():
        if layer != "fc8":
            assert output.var() == pytest.approx(1, rel=1e-3), layer
    assert r.std(0).mean() > 0.01  # not one embedding for all images


def test_an_fc8_of_another_shape_is_ignored_and_any_other_misfit_refused():
    weights = {layer: [np.zeros(shape), np.zeros(shape[-1])] for layer, shape in alexnet.LAYERS.items()}
    weights["fc8"] = [np.zeros((4096, 1000)), np.zeros(1000)]
    assert "fc8" not in checked_layers(weights, alexnet.LAYERS, "x.npy")
    weights["conv2"] = [np.zeros((5, 5, 96, 256)), np.zeros(256)]
    with pytest.raises(UserError, match=r"x.npy: expected conv2"):
        checked_layers(weights, alexnet.LAYERS, "x.npy")
    del weights["conv2"]
    with pytest.raises(UserError, match=r"conv2 .*found none"):
        checked_layers(weights, alexnet.LAYERS, "x.npy")
