"""Several devices at once, here two logical CPUs: the same steps and embeddings as on one."""
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from backbones import efficientnet_lite0
from encoder import EncodingGraph
from losses import adaptive_margin_loss, wdht_loss
from session import configuration, device_name, tf
from test_net import PIXELS, SIDE, W, linear_graph, linear_weights
from util import stream

TWO = "/cpu:0,/cpu:1"
NO_SEEDS = np.zeros((2, 2))


def session_of_two(graph):
    config = configuration()
    config.device_count["CPU"] = 2
    return tf.Session(graph=graph, config=config)


def ops_of_devices(session, fetches, feed):
    """{device: types of the operations that ran there}."""
    told = tf.RunMetadata()
    session.run(fetches, feed, options=tf.RunOptions(output_partition_graphs=True), run_metadata=told)
    return {f"/{part.node[0].device.lower().split('device:')[1]}": [node.op for node in part.node]
            for part in told.partition_graphs}


def batch(size):
    rng = stream(0, "towers test", size)
    labels = (rng.random((size, len(W))) < 0.2).astype(np.uint8)
    return rng.integers(0, 256, (size, SIDE, SIDE, 3), dtype=np.uint8), labels, rng.normal(0, 0.1, (size, 300))


def train(device, loss, size):
    """Losses of three steps, embeddings and weights after them."""
    graph = linear_graph(loss, device=device)
    with session_of_two(graph.graph) as session:
        graph.initialize(session, linear_weights())
        reports = [graph.step(session, *batch(size), 1e-3, 1e-3, NO_SEEDS) for _ in range(3)]
        return [report[1:] for report in reports], reports[-1][0], session.run(graph.variables)["fc8"]


@pytest.mark.parametrize(("loss", "size"), [
    (adaptive_margin_loss, 8), (adaptive_margin_loss, 7), (adaptive_margin_loss, 1),
    (partial(adaptive_margin_loss, negative_sampling=True), 7), (wdht_loss, 7)],
    ids=["margin-8", "margin-7", "margin-1", "negative sampling-7", "WDHT-7"])
def test_two_towers_take_the_steps_of_one(loss, size):
    for one, two in zip(train("/cpu:0", loss, size), train(TWO, loss, size), strict=True):
        np.testing.assert_allclose(one[0], two[0], atol=1e-5)
        np.testing.assert_allclose(one[1:], two[1:], atol=1e-5)


def test_each_tower_runs_forward_and_backward_on_its_device_and_the_losses_run_once():
    graph = linear_graph(wdht_loss, device=TWO)
    images, labels, reconstructions = batch(7)
    with session_of_two(graph.graph) as session:
        graph.initialize(session, linear_weights())
        ops = ops_of_devices(session, graph.train_op, {
            graph.inputs: images, graph.tags: labels, graph.reconstructions: reconstructions,
            graph.learning_rate: 1e-3, graph.quantization_weight: 1e-3, graph.dropout_seeds: NO_SEEDS})
    assert set(ops) == {"/cpu:0", "/cpu:1"}
    products = {device: sum("MatMul" in op for op in found) for device, found in ops.items()}
    assert products["/cpu:1"] == 2  # forward, and backward to the kernel
    assert products["/cpu:0"] > 2 + 2
    assert sum(op == "ResourceApplyAdam" for op in ops["/cpu:0"]) == 2
    assert "ResourceApplyAdam" not in ops["/cpu:1"]


def test_towers_drop_different_units_and_the_first_the_same_as_one_alone():
    def features(images, _variables, dropout):
        return dropout(tf.ones([tf.shape(images)[0], 300]), 0), {}

    network = SimpleNamespace(LAYERS={"fc8": (300, 300)}, INPUT=PIXELS, features=features)
    found = {}
    for device, size in ((TWO, 8), ("/cpu:0", 4)):
        graph = linear_graph(network=network, dropout=0.5, device=device)
        with session_of_two(graph.graph) as session:
            graph.initialize(session, {"fc8": [np.eye(300), np.zeros(300)]})
            found[device] = session.run(graph.embeddings, {graph.inputs: batch(size)[0],
                                                           graph.dropout_seeds: [[1, 2], [3, 4]]})
    np.testing.assert_allclose(np.unique(found[TWO]), [0, np.tanh(2)], rtol=1e-6)
    np.testing.assert_array_equal(found[TWO][:4], found["/cpu:0"])
    assert 0.4 < (found[TWO][:4] != found[TWO][4:]).mean() < 0.6


@pytest.mark.parametrize("size", [5, 1])
def test_the_encoder_divides_its_images_too(size):
    def features(images, _variables, _dropout):
        return tf.cast(images[:, 0, 0], tf.float32) / 1000, {}

    backbone = SimpleNamespace(LAYERS={"fc8": (3, 300)}, SIDE=227, features=features)
    rng = stream(0, "towers test")
    images = rng.integers(0, 256, (size, 256, 256, 3), dtype=np.uint8)
    weights = {"fc8": [rng.normal(size=(3, 300)), np.zeros(300)]}
    found = []
    for device in ("/cpu:0", TWO):
        graph = EncodingGraph(backbone, 10, device)
        with session_of_two(graph.graph) as session:
            graph.initialize(session, weights)
            found.append(session.run(graph.outputs, {graph.images: images}))
            ops = ops_of_devices(session, graph.outputs, {graph.images: images})
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)
    assert all(sum("MatMul" in op for op in ops[device]) == 1 for device in ("/cpu:0", "/cpu:1"))


def test_two_devices_embed_with_the_whole_of_lite0_as_one():
    rng = stream(0, "towers of Lite0")
    weights = {layer: [rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape), np.zeros(shape[-1])]
               for layer, shape in efficientnet_lite0.LAYERS.items()}
    images = rng.integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    found = []
    for device in ("/cpu:0", TWO):
        graph = EncodingGraph(efficientnet_lite0, 1, device, unit=True)
        with session_of_two(graph.graph) as session:
            graph.initialize(session, weights)
            found.append(session.run(graph.outputs, {graph.images: images}))
            ops = ops_of_devices(session, graph.outputs, {graph.images: images})
    np.testing.assert_allclose(*found, atol=1e-4)
    convolutions = [sum("DepthwiseConv2d" in op for op in ops[device]) for device in ("/cpu:0", "/cpu:1")]
    assert convolutions == [16, 16]


def test_gpus_that_are_not_there_are_told_one_by_one():
    lines = []
    assert device_name([97, 98], lines.append) == "/cpu:0"
    assert lines == [f"GPU {gpu} was not found: the run goes on with the CPU" for gpu in (97, 98)]
    assert device_name(None, lines.append) == "/cpu:0"
    assert len(lines) == 2
