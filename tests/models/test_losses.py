"""The losses against their oracles, the released program, and the inputs that broke it."""
import numpy as np
import pytest

import oracles
import parity_inputs as parity
from models import losses
from models.session import tf
from quantization.quantizer import reconstruct, semantic_factor
from util import stream

R = parity.features(parity.SEED + 2, 8)
W, Y = parity.tags(parity.SEED + 1, 8, 20)
RELEASED = {
    "adaptive_gamma1": (losses.adaptive_margin_loss, {}),
    "adaptive_gamma2": (losses.adaptive_margin_loss, {"gamma": 2.0}),
    "fixed_margin": (losses.adaptive_margin_loss, {"fixed_margin": 0.7}),
    "adaptive_no_l2": (losses.adaptive_margin_loss, {"l2_norm": False}),
    "adaptive_neg_sampling": (losses.adaptive_margin_loss, {"negative_sampling": True}),
    "fixed_neg_sampling": (losses.adaptive_margin_loss, {"negative_sampling": True, "fixed_margin": 0.7}),
    "wdht": (losses.wdht_loss, {}),
    "wdht_no_l2": (losses.wdht_loss, {"l2_norm": False}),
}


def value_and_gradient(loss, r, *arrays, **options):
    """`loss(r, *arrays)` and its gradient with respect to r, from a TensorFlow graph in float32."""
    with tf.Graph().as_default(), tf.Session() as session:
        fed = tf.constant(np.float32(r))
        value = loss(fed, *(tf.constant(np.float32(array)) for array in arrays), **options)
        return session.run([value, tf.gradients(value, fed)[0]])


def assert_gradient_close(found, expected, relative=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.mark.parametrize("case", RELEASED)
def test_embedding_loss_and_gradient_are_the_released_ones(case):
    loss, options = RELEASED[case]
    value, gradient = value_and_gradient(loss, R, Y, W, **options)
    assert value == pytest.approx(float(parity.CASES[f"loss/{case}/embedding"]), rel=1e-5)
    assert_gradient_close(gradient, parity.CASES[f"loss/{case}/embedding_grad"])


def test_quantization_loss_and_gradient_are_the_released_ones():
    q = reconstruct(parity.codes(parity.SEED + 4, 8, 2), parity.codebooks(parity.SEED + 3, 2))
    value, gradient = value_and_gradient(losses.quantization_loss, R, q, semantic_factor(W))
    # the case holds λ·L_q or L_q: the released program multiplies outside the loss
    assert value == pytest.approx(float(parity.CASES["loss/quantization"]), rel=1e-5)
    assert_gradient_close(gradient, parity.CASES["loss/quantization_grad"])
    assert value == pytest.approx(oracles.quantization_loss(R, q, W), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"gamma": 2.0}, {"gamma": 0.5}, {"gamma": 1.5}, {"fixed_margin": 0.7},
                                     {"l2_norm": False}, {"gamma": 2.0, "l2_norm": False}])
def test_margin_loss_is_the_sum_over_all_triples(options):
    value, _ = value_and_gradient(losses.adaptive_margin_loss, R, Y, W, **options)
    assert value == pytest.approx(oracles.adaptive_margin_loss(R, Y, W, **options), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"gamma": 2.0}, {"fixed_margin": 0.4}])
def test_sampled_loss_is_the_sum_over_the_best_scored(options):
    value, _ = value_and_gradient(losses.adaptive_margin_loss, R, Y, W, negative_sampling=True, **options)
    assert value == pytest.approx(oracles.sampled_margin_loss(R, Y, W, **options), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"margin": 0.3}, {"l2_norm": False}])
def test_wdht_loss_is_the_sum_over_all_pairs(options):
    value, _ = value_and_gradient(losses.wdht_loss, R, Y, W, **options)
    assert value == pytest.approx(oracles.wdht_loss(R, Y, W, **options), rel=1e-5)


@pytest.mark.parametrize("loss", ["adaptive_margin_loss", "wdht_loss"])
def test_gradient_is_the_slope_of_the_oracle(loss):
    r, w, y = R[:3, :12], W[:6, :12], Y[:3, :6].copy()
    y[:, 0] = [1, 0, 1]
    y[1, 3] = 1
    _, gradient = value_and_gradient(getattr(losses, loss), r, y, w)
    assert_gradient_close(gradient, oracles.gradient(lambda x: getattr(oracles, loss)(x, y, w), r), 1e-4)


@pytest.mark.parametrize("loss", ["adaptive_margin_loss", "wdht_loss"])
def test_an_image_without_tags_contributes_nothing(loss):
    y = Y.copy()
    y[[2, 5]] = 0
    value, gradient = value_and_gradient(getattr(losses, loss), R, y, W)
    rest = [0, 1, 3, 4, 6, 7]
    expected, slope = value_and_gradient(getattr(losses, loss), R[rest], y[rest], W)
    assert value == pytest.approx(expected, rel=1e-5)
    assert_gradient_close(gradient[rest], slope)
    assert not gradient[[2, 5]].any()


@pytest.mark.parametrize("case", RELEASED)
def test_a_batch_without_any_tag_gives_zero_and_no_nan(case):
    loss, options = RELEASED[case]
    value, gradient = value_and_gradient(loss, R, np.zeros_like(Y), W, **options)
    assert value == 0
    assert not gradient.any()


def test_a_fractional_gamma_survives_a_cosine_above_one():
    w = np.repeat(stream(0, "gamma test").normal(size=(1, 300)), 40, axis=0)  # cosines of 1, some rounded above it
    y = np.eye(8, 40)
    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    assert (np.float32(unit) @ np.float32(unit).T).max() >= 1
    value, gradient = value_and_gradient(losses.adaptive_margin_loss, R, y, w, gamma=0.5)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_no_tensor_of_a_batch_with_few_tags_is_as_large_as_images_by_tags_by_tags():
    with tf.Graph().as_default() as graph:
        r, y, w = tf.zeros([64, 300]), tf.one_hot(tf.range(64), 128), tf.zeros([128, 300])
        tf.gradients(losses.adaptive_margin_loss(r, y, w), r)
        fetches = [tensor for op in graph.get_operations() for tensor in op.outputs
                   if tensor.dtype == tf.float32 and graph.is_fetchable(tensor)]
        with tf.Session() as session:
            largest = max(np.size(value) for value in session.run(fetches))
    assert largest <= max(64 * 128, 64 * 300, 128 * 300)  # P = 64 pairs


SOFTMAX_LOSSES = {
    "multiple_instance_loss": (losses.multiple_instance_loss, (Y, W)),
    "softmax_loss": (losses.softmax_loss, (Y, W)),
    "pair_loss": (losses.pair_loss, (Y,)),
}


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("name", SOFTMAX_LOSSES)
def test_softmax_losses_are_the_sums_of_their_formulas(name, temperature):
    loss, inputs = SOFTMAX_LOSSES[name]
    value, _ = value_and_gradient(loss, R, *inputs, temperature=temperature)
    assert value == pytest.approx(getattr(oracles, name)(R, *inputs, temperature=temperature), rel=1e-5)


@pytest.mark.parametrize("name", SOFTMAX_LOSSES)
def test_gradients_of_softmax_losses_are_the_slopes_of_their_oracles(name):
    y = Y[:4, :6].copy()
    y[:, 0] = [1, 0, 1, 0]
    y[1] = 0  # an image without tags
    inputs = (y,) if name == "pair_loss" else (y, W[:6, :12])
    _, gradient = value_and_gradient(SOFTMAX_LOSSES[name][0], R[:4, :12], *inputs, temperature=0.5)
    oracle = getattr(oracles, name)
    assert_gradient_close(gradient, oracles.gradient(lambda r: oracle(r, *inputs, temperature=0.5), R[:4, :12]), 1e-4)


@pytest.mark.parametrize("name", SOFTMAX_LOSSES)
def test_softmax_losses_of_a_batch_without_tags_are_zero_and_so_is_their_gradient(name):
    none = np.zeros_like(Y)
    value, gradient = value_and_gradient(SOFTMAX_LOSSES[name][0], R, *((none,) if name == "pair_loss" else (none, W)))
    assert value == 0
    assert not gradient.any()
