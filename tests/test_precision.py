"""--precision bfloat16: what is rewritten and what is not; results of one precision do not pass for another's."""
import json
import re
from collections import Counter

import h5py
import numpy as np
import pytest

import parity_inputs as parity
import train
import validation
from backbones import alexnet
from encoder import EncodingGraph
from losses import adaptive_margin_loss, wdht_loss
from session import has_bfloat16, open_session, tf
from test_net import SIDE, W, Y, linear_graph, linear_weights
from tiny import EXPERIMENT, call, make_tiny, training
from util import PRECISIONS, stream

needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="this processor has no instructions for bfloat16")


def step(precision):
    """Of a step on a linear backbone: embeddings, losses, Adam's first moments, the types of variables, and how many
    matrix products ran in each type."""
    graph, told = linear_graph(precision=precision), tf.RunMetadata()
    rng = stream(0, "precision test")
    feed = {graph.inputs: rng.integers(0, 256, (8, SIDE, SIDE, 3)), graph.tags: Y,
            graph.reconstructions: rng.normal(0, 0.1, (8, 300)), graph.learning_rate: 1e-3,
            graph.quantization_weight: 1e-3, graph.dropout_seeds: np.zeros((2, 2))}
    with open_session(graph.graph, precision) as session:
        graph.initialize(session, linear_weights())
        *found, _ = session.run([graph.embeddings, graph.embedding_loss, graph.quantization_loss, graph.train_op], feed,
                                options=tf.RunOptions(output_partition_graphs=True), run_metadata=told)
        variables = graph.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)
        moments = session.run([variable for variable in variables if variable.op.name.endswith("/Adam")])
    products = Counter(tf.as_dtype(node.attr["T"].type).name for part in told.partition_graphs for node in part.node
                       if re.search("MatMul", node.op))
    return *found, moments, {variable.dtype.base_dtype for variable in variables}, products


def cosines(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@needs_bfloat16
def test_a_step_rounds_the_network_alone_and_gives_nearly_the_same_losses_and_gradients():
    exact, rounded = (step(precision) for precision in PRECISIONS)
    assert cosines(exact[0], rounded[0]).min() >= 0.998
    assert not np.array_equal(exact[0], rounded[0])
    np.testing.assert_allclose(rounded[1:3], exact[1:3], rtol=0.01)
    with tf.Graph().as_default(), tf.Session() as session:
        embeddings, labels, words = (tf.constant(array, tf.float32) for array in (rounded[0], Y, W))
        of_rounded = session.run(adaptive_margin_loss(embeddings, labels, words))
    np.testing.assert_allclose(rounded[1], of_rounded, rtol=1e-5)
    for there, here in zip(exact[3], rounded[3], strict=True):
        assert cosines(there.ravel(), here.ravel()) > 0.99
        np.testing.assert_allclose(np.linalg.norm(here), np.linalg.norm(there), rtol=0.01)  # LOSS_SCALES is taken off
    assert exact[4] == rounded[4] == {tf.float32}
    assert set(exact[5]) == {"float32"}
    assert rounded[5] == {"bfloat16": 2, "float64": exact[5]["float32"] - 2}  # forward, and backward to the kernel


@pytest.mark.parametrize("loss", [adaptive_margin_loss, wdht_loss])
def test_losses_in_float64_are_those_in_float32(loss):
    rng = np.random.default_rng(0)
    with tf.Graph().as_default(), tf.Session() as session:
        r = rng.normal(size=(8, 300))
        values = session.run([loss(*(tf.constant(array, kind) for array in (r, Y, W)))
                              for kind in (tf.float32, tf.float64)])
    assert values[1].dtype == np.float64
    np.testing.assert_allclose(*values, rtol=1e-5)


@needs_bfloat16
def test_embeddings_in_bfloat16_are_nearly_those_in_float32():
    graph = EncodingGraph(alexnet, 1, "/cpu:0")
    images, found = parity.images(parity.SEED + 8, 2), []
    for precision in PRECISIONS:
        with open_session(graph.graph, precision) as session:
            graph.initialize(session, parity.alexnet_weights(parity.SEED + 7))
            found.append(session.run(graph.outputs, {graph.images: images}))
    assert found[1].dtype == np.float32
    assert not np.array_equal(*found)
    assert cosines(*found).min() >= 0.998


def test_results_of_one_precision_do_not_pass_for_those_of_another(tmp_path, small, monkeypatch, capsys):
    root = make_tiny(tmp_path)

    def run(program, *arguments):
        return call(monkeypatch, capsys, program, *arguments)

    arguments = training(root, "--precision", "bfloat16", "--save-every", 1, iterations=1)[1:]
    code, output = run(train, *arguments)
    assert code == 0, output
    checkpoint = root / "checkpoints" / f"{EXPERIMENT}.npy"
    assert json.loads(checkpoint.with_suffix(".json").read_text())["options"]["precision"] == "bfloat16"
    code, output = run(train, *training(root, "--resume", iterations=2)[1:])
    assert code == 2
    assert "precision was bfloat16, now float32" in output

    arguments = ("tiny", checkpoint, "cpu", "--root", root, "--crops", 1)
    code, output = run(validation, *arguments, "--precision", "bfloat16")
    assert code == 0, output
    with h5py.File(checkpoint.with_name(f"{EXPERIMENT}_retrieval.h5")) as file:
        assert file.attrs["precision"] == "bfloat16"
    code, output = run(validation, *arguments)
    assert code == 0, output
    assert "was made with another precision" in output


def test_a_processor_without_bfloat16_is_told_from_one_with_it(tmp_path):
    for flags, expected in (("flags\t\t: fpu avx512f avx512_vnni", False),
                            ("flags\t\t: avx512f avx512_bf16 amx_tile", True),
                            ("Features\t: fp asimd i8mm bf16 dgh", True)):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
        assert has_bfloat16(tmp_path / "cpuinfo") == expected
