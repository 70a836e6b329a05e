"""What the layers of all backbones share: their variables, their first weights, and whether given weights fit them.

Weights are `{layer: [kernel, bias]}` of float32 arrays in TensorFlow's layouts, as in `alexnet.npy`.
"""
import numpy as np

from models.session import first_device, open_session, tf
from util import UserError, progress

LAST = "fc8"  # the embedding's layer, of every backbone; its kernel has D = 300 outputs


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


def embed(network, inputs, variables, dropout=lambda x, index: x):
    """Embeddings r, float32 (B, D), and `{layer: output before its activation}`: the last layer on `network.features`.

    Args:
        network: one of `backbones.BACKBONES`, or a `head.Head`.
        inputs: (B, …), as `network.INPUT` says.
        variables: of `make_variables`.
        dropout: function of a tensor and its number.
    """
    features, before = network.features(inputs, variables, dropout)
    kernel, bias = variables[LAST]
    before[LAST] = tf.nn.bias_add(tf.matmul(features, kernel), bias)
    return tf.tanh(before[LAST]), before


# ---------------------------------------------------------------- first weights

def fresh_last_layer(layers, rng):
    """[kernel, bias] of the last layer before the first step: N(0, 0.01²) and zeros."""
    shape = layers[LAST]
    return [rng.normal(0, 0.01, shape).astype(np.float32), np.zeros(shape[-1], np.float32)]


def check_weights(weights, layers, path):
    """The entries of `weights` that are `layers`, without a last one of another shape. Raises UserError if another
    layer is missing or of another shape."""
    kept = {}
    for layer, shape in layers.items():
        shapes = [array.shape for array in weights.get(layer, [])]
        if shapes == [shape, shape[-1:]]:
            kept[layer] = weights[layer]
        elif layer != LAST:
            raise UserError(f"{path}: expected {layer} with shapes {[shape, shape[-1:]]}, found {shapes or 'none'}")
    return kept


def lsuv_weights(backbone, images, rng, device):
    """Random weights by layer-sequential unit variance: each layer's output on `images` has variance 1.

    He initialisation alone collapses to one embedding for all images when Adam starts from it.

    Args:
        backbone: one of `backbones.BACKBONES`.
        images: uint8 (B, SIDE, SIDE, 3).
    """
    weights = {layer: [rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32),
                       np.zeros(shape[-1], np.float32)] for layer, shape in backbone.LAYERS.items()}
    weights[LAST] = fresh_last_layer(backbone.LAYERS, rng)
    graph = tf.Graph()
    with graph.as_default(), tf.device(first_device(device)):
        variables, first_values = make_variables(backbone.LAYERS, trainable=())
        batch = tf.placeholder(tf.uint8, [None, *images.shape[1:]])
        _, before = embed(backbone, batch, variables)
        variances = {layer: tf.math.reduce_variance(output) for layer, output in before.items()}
        graph.finalize()
    with open_session(graph) as session:
        for layer in progress(list(before)[:-1], desc="unit variance", leave=False):
            load = [variable.initializer for variable in variables[layer]]
            session.run(load, feed_weights({layer: first_values[layer]}, weights))
            weights[layer][0] /= np.float32(np.sqrt(session.run(variances[layer], {batch: images})))
            session.run(load, feed_weights({layer: first_values[layer]}, weights))
    return weights
