"""Layers as TensorFlow variables: making them, the last layer, and their first weights.

Weights are `{layer: [kernel, bias]}` of float32 arrays in TensorFlow's layouts, as in `alexnet.npy`.
"""
import numpy as np

from models import alexnet
from models.checkpoint import LAST
from models.session import open_session, tf
from util import DIMENSIONS, progress


def make_variables(layers, trainable):
    """`{layer: [kernel, bias]}` as variables, and the placeholders of their first values in the same form.

    Args:
        layers: `{layer: shape of the kernel}`.
        trainable: names of the layers that are trained.
    """
    variables, first_values = {}, {}
    for layer, shape in layers.items():
        first_values[layer] = [tf.placeholder(tf.float32, shape), tf.placeholder(tf.float32, shape[-1:])]
        variables[layer] = [tf.Variable(value, trainable=layer in trainable, name=f"{layer}/{part}")
                            for value, part in zip(first_values[layer], ("kernel", "bias"), strict=True)]
    return variables, first_values


def feed_weights(first_values, weights):
    """The feed that gives `weights` to the placeholders of `make_variables`."""
    return {placeholder: array for layer, placeholders in first_values.items()
            for placeholder, array in zip(placeholders, weights[layer], strict=True)}


class Head:
    """The last layer alone, as a network whose inputs are fixed features, `width` of them an image.

    Attributes:
        LAYERS, INPUT: as in models/alexnet.py.
    """

    def __init__(self, width):
        self.LAYERS = {LAST: (width, DIMENSIONS)}
        self.INPUT = tf.float32, (width,)

    def features(self, inputs, _variables, dropout=lambda x, index: x):
        """The inputs themselves, after dropout."""
        return dropout(inputs, 0), {}


def embed(network, inputs, variables, dropout=lambda x, index: x):
    """Embeddings r, float32 (B, D), and `{layer: output before its activation}`: the last layer on `network.features`.

    Args:
        network: the module `alexnet`, or a `Head`.
        inputs: (B, …), as `network.INPUT` says.
        variables: from `make_variables`.
        dropout: function of a tensor and its number.
    """
    features, before = network.features(inputs, variables, dropout)
    kernel, bias = variables[LAST]
    before[LAST] = tf.nn.bias_add(tf.matmul(features, kernel), bias)
    return tf.tanh(before[LAST]), before


# ---------------------------------------------------------------- first weights

def fresh_last_layer(width, rng):
    """[kernel, bias] of the last layer before the first step: N(0, 0.01²), float32 (width, D), and zeros."""
    return [rng.normal(0, 0.01, (width, DIMENSIONS)).astype(np.float32), np.zeros(DIMENSIONS, np.float32)]


def lsuv_weights(images, rng, device):
    """Random weights of AlexNet by layer-sequential unit variance: each layer's output on `images` has variance 1.

    He initialisation alone collapses to one embedding for all images when Adam starts from it.

    Args:
        images: uint8 (B, 227, 227, 3).
    """
    shapes = alexnet.LAYERS
    weights = {layer: [rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32),
                       np.zeros(shape[-1], np.float32)] for layer, shape in shapes.items()}
    weights[LAST] = fresh_last_layer(shapes[LAST][0], rng)
    graph = tf.Graph()
    with graph.as_default(), tf.device(device):
        variables, first_values = make_variables(shapes, trainable=())
        batch = tf.placeholder(tf.uint8, [None, *images.shape[1:]])
        _, before = embed(alexnet, batch, variables)
        variances = {layer: tf.math.reduce_variance(output) for layer, output in before.items()}
        graph.finalize()
    with open_session(graph) as session:
        for layer in progress(list(before)[:-1], desc="unit variance", leave=False):
            load = [variable.initializer for variable in variables[layer]]
            session.run(load, feed_weights({layer: first_values[layer]}, weights))
            weights[layer][0] /= np.float32(np.sqrt(session.run(variances[layer], {batch: images})))
            session.run(load, feed_weights({layer: first_values[layer]}, weights))
    return weights
