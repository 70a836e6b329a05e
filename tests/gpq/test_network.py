"""GPQ's network: names, shapes, batch normalisation and its moving averages, pretrained files."""
import io
import re
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
import scipy.io

import gpq_oracles as oracles
from gpq import matlab, network
from models.session import tf
from narrow import NARROW
from util import UserError, stream

SHAPES = network.parameter_shapes(24, 8, 5, NARROW)
IMAGES = stream(0, "gpq network test").standard_normal((6, 32, 32, 3), np.float32)


def weights():
    """Xavier's values with biases, β and γ that show where they enter."""
    rng = stream(0, "gpq weights")
    return {name: value if value.ndim > 1 else (value + rng.normal(0, 0.2, value.shape)).astype(np.float32)
            for name, value in network.xavier(SHAPES, rng).items()}


def numpy_features(images, values, normalize):
    """Features in float64; `normalize(norm, x)` is the batch normalisation of a layer."""
    x = np.float64(images)
    for convolution, norm, _, outputs in NARROW:
        kernel = np.float64(values[f"Fixed_VGG/{convolution}/kernel"])
        side = x.shape[1]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = np.zeros((*x.shape[:3], outputs))
        for row in range(3):
            for column in range(3):
                y += padded[:, row:row + side, column:column + side] @ kernel[row, column]
        x = np.maximum(normalize(norm, y + values[f"Fixed_VGG/{convolution}/bias"]), 0)
        if convolution in ("conv2d_1", "conv2d_3", "conv2d_6"):
            x = x.reshape(len(x), side // 2, 2, side // 2, 2, -1).max((2, 4))
        if convolution == "conv2d_6":
            branch = x.mean((1, 2))
    pooled = np.concatenate([x.mean((1, 2)), branch], 1)
    return pooled @ values["Fixed_VGG/dense/kernel"] + values["Fixed_VGG/dense/bias"]


def test_names_and_shapes_are_the_released_ones():
    shapes = network.parameter_shapes(144, 16, 10)
    assert shapes["Fixed_VGG/conv2d/kernel"] == (3, 3, 3, 64)
    assert shapes["Fixed_VGG/conv2d_9/kernel"] == (3, 3, 512, 512)
    assert shapes["Fixed_VGG/batch3-2/gamma"] == (512,)
    assert shapes["Fixed_VGG/dense/kernel"] == (768, 144)
    assert (shapes["Z"], shapes["C"]) == ((16, 144), (10, 144))
    assert len(shapes) == 10 * 4 + 4
    norms = {name.split("/")[1] for name in shapes if name.endswith("gamma")}
    assert norms == {"batch0", "batch0-1", "batch1", "batch1-1", "batch2", "batch2-1", "batch2-2", "batch3",
                     "batch3-1", "batch3-2"}
    with tf.Graph().as_default():
        variables, _ = network.make_variables(SHAPES)
        averages = network.MovingAverages(training=False, convolutions=NARROW)
    assert {variable.op.name for variable in variables.values()} == set(SHAPES)
    assert all(variable.op.name == name for name, variable in averages.variables.items())
    assert len(averages.variables) == 20


def test_xavier_is_uniform_with_variance_of_two_over_fan_in_and_out():
    values = network.xavier(network.parameter_shapes(144, 16, 10), stream(0, "gpq xavier"))
    kernel = values["Fixed_VGG/conv2d_3/kernel"]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.01)
    assert np.abs(kernel).max() <= np.sqrt(6 / (9 * 256))
    assert np.abs(values["Z"]).max() == pytest.approx(np.sqrt(6 / 160), rel=0.01)
    assert not values["Fixed_VGG/conv2d_3/bias"].any()
    assert (values["Fixed_VGG/batch1/gamma"] == 1).all()


def test_training_normalises_by_the_batch_and_both_batches_move_the_averages():
    values, batches = weights(), (IMAGES[:4], IMAGES[4:] + 1)
    with tf.Graph().as_default(), tf.Session() as session:
        images = [tf.constant(batch) for batch in batches]
        variables, first = network.make_variables(SHAPES)
        averages = network.MovingAverages(training=True, convolutions=NARROW)
        passes = [network.extract_features(batch, variables, averages, True, NARROW) for batch in images]
        updates = [averages.update(statistics) for _, statistics in passes]
        session.run(tf.global_variables_initializer(), {first[name]: value for name, value in values.items()})
        features = session.run([found for found, _ in passes])
        for _ in range(3):
            for update in updates:
                session.run(update)
        moved = session.run(averages.variables)

    state = {norm: {"biased": 0.0, "local_step": 0, "moving_mean": 0.0, "moving_variance": 1.0}
             for _, norm, _, _ in NARROW}

    def normalize(norm, x):
        state[norm] = oracles.update_averages(state[norm], x)
        return oracles.batch_norm(x, *(np.float64(values[f"Fixed_VGG/{norm}/{part}"]) for part in ("gamma", "beta")))

    for _ in range(3):
        for batch, found in zip(batches, features, strict=True):
            np.testing.assert_allclose(found, numpy_features(batch, values, normalize), rtol=0, atol=1e-4)
    for norm, expected in state.items():
        for part, name in [("moving_mean", "moving_mean"), ("moving_variance", "moving_variance"),
                           ("biased", "moving_mean/biased"), ("local_step", "moving_mean/local_step")]:
            np.testing.assert_allclose(moved[f"Fixed_VGG/{norm}/{name}"], expected[part], rtol=1e-4, atol=1e-5)


def test_one_batch_already_gives_a_debiased_mean():
    with tf.Graph().as_default(), tf.Session() as session:
        averages = network.MovingAverages(training=True, convolutions=NARROW[:1])
        update = averages.update({"batch0": (tf.constant([1.0, 2, 3, 4]), tf.constant([2.0] * 4))})
        session.run(tf.global_variables_initializer())
        session.run(update)
        mean, variance = session.run(averages.layer("batch0"))
    np.testing.assert_allclose(mean, [1, 2, 3, 4], rtol=1e-6)
    np.testing.assert_allclose(variance, [1.1] * 4, rtol=1e-6)


def test_encoding_normalises_by_the_moving_averages():
    values, rng = weights(), stream(0, "gpq moving")
    with tf.Graph().as_default(), tf.Session() as session:
        variables, first = network.make_variables(SHAPES)
        averages = network.MovingAverages(training=False, convolutions=NARROW)
        features, _ = network.extract_features(tf.constant(IMAGES), variables, averages, False, NARROW)
        session.run(tf.global_variables_initializer(), {first[name]: value for name, value in values.items()})
        moving = {name: rng.uniform(0.5, 1.5, variable.shape) for name, variable in averages.variables.items()}
        for name, variable in averages.variables.items():
            variable.load(moving[name], session)
        found = session.run(features)

    def normalize(norm, x):
        mean, variance, gamma, beta = (
            {**moving, **values}[f"Fixed_VGG/{norm}/{part}"]
            for part in ("moving_mean", "moving_variance", "gamma", "beta"))
        return (x - mean) / np.sqrt(variance + 0.001) * gamma + beta

    np.testing.assert_allclose(found, numpy_features(IMAGES, values, normalize), rtol=0, atol=1e-4)


# ---------------------------------------------------------------- pretrained files

def pretrained():
    return {f"{name}:0": value for name, value in weights().items()
            if name.startswith("Fixed_VGG") and "dense" not in name}


@pytest.mark.parametrize("suffix", [".mat", ".npz"])
def test_a_pretrained_file_gives_all_layers_but_the_last(tmp_path, suffix):
    path = tmp_path / f"start{suffix}"
    if suffix == ".mat":
        scipy.io.savemat(path, pretrained())  # it makes rows of vectors; squeezing undoes that
    else:
        np.savez(path, **pretrained())
    found = network.read_pretrained(path, SHAPES)
    assert set(found) == {name for name in SHAPES if "dense" not in name} - {"Z", "C"}
    for name, value in found.items():
        np.testing.assert_array_equal(value, weights()[name])
        assert value.dtype == np.float32


def test_training_starts_from_a_pretrained_file(tmp_path):
    shapes = network.parameter_shapes(144, 16, 10)
    content = {f"{name}:0": value for name, value in network.xavier(shapes, stream(7, "other weights")).items()}
    scipy.io.savemat(tmp_path / "start.mat", content)
    fresh = network.first_values(shapes, seed=0)
    for name, value in network.first_values(shapes, 0, tmp_path / "start.mat").items():
        expected = fresh[name] if name in ("Z", "C") or "dense" in name else content[f"{name}:0"]
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(("change", "message"), [
    ({"Fixed_VGG/conv2d/bias:0": None}, "under 'Fixed_VGG/conv2d/bias:0', found nothing"),
    ({"Fixed_VGG/conv2d/bias:0": np.ones(9)}, "floats of shape (4,) under 'Fixed_VGG/conv2d/bias:0', found float64 of "
                                              "shape (9,)"),
    ({"Fixed_VGG/batch0/beta:0": np.full(4, np.nan)}, "'Fixed_VGG/batch0/beta:0' holds NaN"),
])
@pytest.mark.parametrize("suffix", [".mat", ".npz"])
def test_a_wrong_pretrained_file_is_refused(tmp_path, suffix, change, message):
    path = tmp_path / f"start{suffix}"
    content = {name: value for name, value in {**pretrained(), **change}.items() if value is not None}
    if suffix == ".mat":
        scipy.io.savemat(path, content)
    else:
        np.savez(path, **content)
    with pytest.raises(UserError, match=re.escape(message)):
        network.read_pretrained(path, SHAPES)


@pytest.mark.parametrize("suffix", [".mat", ".npz"])
@pytest.mark.parametrize("content", [b"", b"no such format", b"PK\x03\x04 and nothing", bytes(200)])
def test_a_file_of_another_format_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"start{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="start"):
        network.read_pretrained(path, SHAPES)
    with pytest.raises(UserError, match="no such file"):
        network.read_pretrained(tmp_path / f"missing{suffix}", SHAPES)


def mat_bytes(content, **options):
    file = io.BytesIO()
    scipy.io.savemat(file, content, **options)
    return bytearray(file.getvalue())


def test_floats_that_matlab_stored_as_integers_are_read():
    """As MATLAB does if all are whole numbers: the class of the array is single, that of its values is not."""
    content = mat_bytes({"Fixed_VGG/batch0/gamma:0": np.uint8([1, 2, 3, 4])})
    at = content.index(struct.pack("<III", 6, 8, 9)) + 8  # the flags of the array, which begin with its class
    content[at] = 7
    found = matlab.read_arrays(bytes(content), {"Fixed_VGG/batch0/gamma:0": 4})
    assert {name: (array.dtype, array.tolist()) for name, array in found.items()} == {
        "Fixed_VGG/batch0/gamma:0": (np.float32, [[1, 2, 3, 4]])}


def test_a_damaged_file_that_crashes_scipy_is_refused(tmp_path):
    content = mat_bytes(pretrained())
    content[content.index(struct.pack("<II", 7, 4 * 9 * 3 * 4))] = 194  # type and bytes of the first kernel's values
    (tmp_path / "start.mat").write_bytes(content)
    crashed = subprocess.run([sys.executable, "-c", "import scipy.io, sys; scipy.io.loadmat(sys.argv[1])",
                              tmp_path / "start.mat"], stderr=subprocess.DEVNULL)
    assert crashed.returncode == -signal.SIGSEGV
    with pytest.raises(UserError, match=r"start\.mat: expected a \.mat or \.npz file, and it could not be read"):
        network.read_pretrained(tmp_path / "start.mat", SHAPES)


def test_a_small_file_of_vast_arrays_is_refused(tmp_path):
    vast = mat_bytes({**pretrained(), "Fixed_VGG/conv2d/bias:0": np.zeros(10**6)}, do_compression=True)
    (tmp_path / "start.mat").write_bytes(vast)
    with pytest.raises(UserError, match="could not be read"):
        network.read_pretrained(tmp_path / "start.mat", SHAPES)
