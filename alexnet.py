"""The backbone: AlexNet with a 300-d tanh embedding on top (section 5 of the method).

Weights are `{layer: [kernel, bias]}` of float32 arrays in TensorFlow's layouts, as in `alexnet.npy`.
"""
import numpy as np

from session import first_device, open_session, tf
from util import DIMENSIONS, UserError, progress

# layer: shape of its kernel (height, width, channels of one group, filters), or (inputs, outputs)
LAYERS = {
    "conv1": (11, 11, 3, 96), "conv2": (5, 5, 48, 256), "conv3": (3, 3, 256, 384),
    "conv4": (3, 3, 192, 384), "conv5": (3, 3, 192, 256),
    "fc6": (9216, 4096), "fc7": (4096, 4096), "fc8": (4096, DIMENSIONS),
}
# The mean of ImageNet's blue, green and red, which the release takes off red, green and blue: its checkpoints need it.
MEAN = (103.939, 116.779, 123.68)
LAST = "fc8"


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


def embed(images, variables, dropout=lambda x, index: x):
    """Embeddings r, float32 (B, 300), and `{layer: output before its activation}`.

    Args:
        images: uint8 (B, 227, 227, 3), BGR.
        variables: from `make_variables`.
        dropout: function of a tensor and its number (0 after fc6, 1 after fc7).
    """
    before = {}

    def convolve(x, layer, stride=1, padding="SAME", groups=1):
        kernel, bias = variables[layer]
        parts = [tf.nn.conv2d(part, filters, strides=stride, padding=padding)
                 for part, filters in zip(tf.split(x, groups, 3), tf.split(kernel, groups, 3), strict=True)]
        before[layer] = tf.nn.bias_add(tf.concat(parts, 3), bias)
        return tf.nn.relu(before[layer])

    def connect(x, layer):
        kernel, bias = variables[layer]
        before[layer] = tf.nn.bias_add(tf.matmul(x, kernel), bias)
        return before[layer]

    def pool(x):
        return tf.nn.max_pool2d(x, ksize=3, strides=2, padding="VALID")

    def normalise(x):
        return tf.nn.local_response_normalization(x, depth_radius=2, alpha=2e-5, beta=0.75, bias=1)

    x = tf.reverse(tf.cast(images, tf.float32), [3]) - MEAN  # (B, 227, 227, 3), RGB
    x = normalise(pool(convolve(x, "conv1", stride=4, padding="VALID")))  # (B, 27, 27, 96)
    x = normalise(pool(convolve(x, "conv2", groups=2)))  # (B, 13, 13, 256)
    x = convolve(x, "conv3")
    x = convolve(x, "conv4", groups=2)
    x = pool(convolve(x, "conv5", groups=2))  # (B, 6, 6, 256)
    x = tf.reshape(x, [-1, LAYERS["fc6"][0]])
    x = dropout(tf.nn.relu(connect(x, "fc6")), 0)
    x = dropout(tf.nn.relu(connect(x, "fc7")), 1)
    return tf.tanh(connect(x, LAST)), before


# ---------------------------------------------------------------- first weights

def fresh_last_layer(layers, rng):
    """fc8 as a training begins with it: N(0, 0.01²) and zeros."""
    shape = layers[LAST]
    return [rng.normal(0, 0.01, shape).astype(np.float32), np.zeros(shape[-1], np.float32)]


def check_weights(weights, layers, path):
    """`weights` without an fc8 of another shape and without unknown entries. Raises UserError if a layer is amiss."""
    kept = {}
    for layer, shape in layers.items():
        shapes = [array.shape for array in weights.get(layer, [])]
        if shapes == [shape, shape[-1:]]:
            kept[layer] = weights[layer]
        elif layer != LAST:
            raise UserError(f"{path}: expected {layer} with shapes {[shape, shape[-1:]]}, found {shapes or 'none'}")
    return kept


def lsuv_weights(images, rng, device):
    """Random weights by layer-sequential unit variance: each layer's output on `images` has variance 1.

    He initialisation alone collapses to one embedding for all images when Adam starts from it.

    Args:
        images: uint8 (B, 227, 227, 3).
    """
    weights = {layer: [rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32),
                       np.zeros(shape[-1], np.float32)] for layer, shape in LAYERS.items()}
    weights[LAST] = fresh_last_layer(LAYERS, rng)
    graph = tf.Graph()
    with graph.as_default(), tf.device(first_device(device)):
        variables, first_values = make_variables(LAYERS, trainable=())
        batch = tf.placeholder(tf.uint8, [None, *images.shape[1:]])
        _, before = embed(batch, variables)
        variances = {layer: tf.math.reduce_variance(output) for layer, output in before.items()}
        graph.finalize()
    with open_session(graph) as session:
        for layer in progress(list(before)[:-1], desc="unit variance", leave=False):
            load = [variable.initializer for variable in variables[layer]]
            session.run(load, feed_weights({layer: first_values[layer]}, weights))
            weights[layer][0] /= np.float32(np.sqrt(session.run(variances[layer], {batch: images})))
            session.run(load, feed_weights({layer: first_values[layer]}, weights))
    return weights
