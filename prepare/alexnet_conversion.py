"""Public AlexNet weights in this network's layouts and channels, compared with their source where it can be run.

Layouts. Caffe and ONNX keep kernels as (O, I, H, W) and (O, I) and flatten a map channel by channel; this network has
(H, W, I, O) and (I, O) and flattens row, column, channel, so fc6's rows are reordered. Groups need nothing: both sides
cut inputs and outputs into halves in the same order. `bvlc_alexnet.npy` already has TensorFlow's layouts.

Channels. The public weights, in all three formats, learned from Caffe's images: B, G, R, less ImageNet's mean of each.
The release reverses its images, which are BGR as OpenCV reads them, to RGB and then subtracts (103.939, 116.779,
123.68), which is the mean in the order B, G, R. It was evidently meant to feed BGR: the file it was written for has
Caffe's BGR kernels, and in the release the blue kernels see red. `--channels keep` leaves that as it is: the
conditions of the release's figures, and for an `.npy` the same as using it unconverted. `--channels reverse`, the
default, reverses conv1's input channels and moves the difference of the means into its bias. conv1 has no padding, so
that is exact: the network then computes from this project's input what the source computes from B, G, R less
ImageNet's mean.

Order of layers. bvlc_alexnet normalises before it pools; the release's network, and so this one, pools first, as
CaffeNet (bvlc_reference_caffenet) does. Weights cannot make up for that: those of CaffeNet fit exactly, those of
bvlc_alexnet nearly. For an ONNX source the difference is measured and printed.

What is compared. ONNX Runtime runs an ONNX source, and its fc7 must be that of the converted weights in this network.
Nothing here runs a Caffe model or an `.npy` file, so their conversion is not compared: of these, only the layers, their
settings, shapes and values are checked. Caffe's arrays have ONNX's layouts and take the same path.
"""
from itertools import pairwise

import numpy as np

from models import alexnet, layers
from models.checkpoint import LAST, checked_layers
from models.session import open_session, tf
from prepare.alexnet_sources import SHAPES, chain, onnx
from util import UserError, one_line, stream

try:
    import onnxruntime
except ImportError:  # optional: pip install -e '.[convert]'
    onnxruntime = None

FC6_MAP = (256, 6, 6)  # what fc6 reads: channels, rows, columns
# ImageNet's mean of blue, green and red as Caffe subtracts it (the mean of ilsvrc_2012_mean.npy)
CAFFE_MEAN = (104.00698793, 116.66876762, 122.67891434)
CHECK_IMAGES = 2
LARGEST_DIFFERENCE = 1e-3  # between source and network, in parts of the largest value of fc7


# ---------------------------------------------------------------- conversion

def convert(source, channels):
    """`{layer: [kernel, bias]}` for this network.

    Args:
        source: alexnet_sources.Source.
        channels: reverse or keep.
    """
    weights = {name: [network_kernel(source.format, name, kernel), bias]
               for name, (kernel, bias) in source.weights.items()}
    if channels == "reverse":
        kernel, bias = weights["conv1"]
        kernel = kernel[:, :, ::-1]  # now R, G, B
        shift = np.array(alexnet.MEAN) - np.array(CAFFE_MEAN[::-1])  # what the network subtracts too much
        weights["conv1"] = [kernel, bias + np.einsum("hwio,i->o", kernel.astype(np.float64), shift)]
    weights = {name: [np.ascontiguousarray(array, np.float32) for array in pair] for name, pair in weights.items()}
    return checked_layers(weights, alexnet.LAYERS, "the conversion")


def network_kernel(source_format, name, kernel):
    """A kernel in this network's layout."""
    if source_format == "npy":
        return kernel
    if kernel.ndim == 4:
        return kernel.transpose(2, 3, 1, 0)
    if name == "fc6":
        kernel = kernel.reshape(-1, *FC6_MAP).transpose(0, 2, 3, 1).reshape(kernel.shape)
    return kernel.T


# ---------------------------------------------------------------- comparison with the source

@np.errstate(all="ignore")  # what overflows is a difference, and refused as one
def compare(path, source, weights, channels):
    """Compare fc7 of the converted weights with that of an ONNX source on seeded images.

    Returns:
        the largest difference, in parts of the largest value, and how far fc7 moves with the source's own order of
        layers, in the same parts; the latter is 0 if it pools first, as this network does.
    Raises UserError if the difference is too large, or if ONNX Runtime cannot run the source.
    """
    images = seeded_images()
    inputs = source_inputs(images, channels)
    expected = source_fc7(path, source, inputs, normalises_first=False)
    difference = relative_difference(network_fc7(images, weights), expected)
    if not difference <= LARGEST_DIFFERENCE:
        raise UserError(f"{path}: expected the converted network's fc7 to be the source's as ONNX Runtime computes it, "
                        f"found a difference of {difference:.2g} of the largest value; nothing was written")
    if not source.normalises_first:
        return difference, 0.0
    return difference, relative_difference(expected, source_fc7(path, source, inputs, normalises_first=True))


def seeded_images():
    """Blocks of colour with noise, uint8 (CHECK_IMAGES, 227, 227, 3), BGR."""
    rng = stream(0, "images of the check")
    blocks = rng.integers(0, 256, (CHECK_IMAGES, 8, 8, 3)).repeat(29, 1).repeat(29, 2)[:, :227, :227]
    return np.clip(blocks + rng.integers(-20, 21, blocks.shape), 0, 255).astype(np.uint8)


def source_inputs(images, channels):
    """What conv1 of the source reads for BGR images, float32 (B, 227, 227, 3): as in Caffe, or as in the release."""
    if channels == "reverse":
        return images.astype(np.float32) - np.float32(CAFFE_MEAN)
    return images[..., ::-1].astype(np.float32) - np.float32(alexnet.MEAN)


def relative_difference(found, expected):
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def network_fc7(images, weights):
    """fc7 before its ReLU as this project's network computes it, float32 (B, 4096)."""
    last = alexnet.LAYERS[LAST]
    weights = {**weights, LAST: [np.zeros(last, np.float32), np.zeros(last[-1], np.float32)]}
    with tf.Graph().as_default() as graph, open_session(graph) as session, tf.device("/cpu:0"):
        variables, first_values = layers.make_variables(alexnet.LAYERS, ())
        _, before = layers.embed(alexnet, tf.constant(images), variables)
        session.run(tf.global_variables_initializer(), layers.feed_weights(first_values, weights))
        return session.run(before["fc7"])


def source_fc7(path, source, inputs, normalises_first):
    """fc7 before its ReLU as ONNX Runtime computes it with the source's own nodes, float32 (B, 4096).

    Args:
        inputs: float32 (B, 227, 227, 3). The model zoo's files declare 224×224, but nothing else in them depends on it.
        normalises_first: whether to normalise before pooling; where the source does otherwise, its nodes change places.
    Raises UserError.
    """
    if onnxruntime is None:
        raise UserError(f"comparing {path} with its conversion needs ONNX Runtime: pip install -e '.[convert]', or "
                        "convert without it by --no-check")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        model = until_fc7_model(path, source, normalises_first).SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, {session.get_inputs()[0].name: x.transpose(2, 0, 1)[None]})[0]
                               for x in inputs])
    except Exception as error:  # ONNX Runtime's errors have no class in common
        raise UserError(f"{path}: ONNX Runtime cannot run this model ({one_line(error)}); --no-check converts it "
                        "without comparing") from error


def until_fc7_model(path, source, normalises_first):
    """A copy of the model for one 227×227 image that ends with fc7, in the order of layers that is asked for."""
    graph = source.model.graph
    nodes = []
    for node in chain(path, graph):
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        if [node.op_type for node in nodes].count("Gemm") == 2:
            break
    if normalises_first != source.normalises_first:
        nodes = swap_pooling_and_normalisation(nodes)
    constants = [node for node in graph.node if node.op_type == "Constant"]
    used = {name for node in nodes for name in node.input}
    stored = [tensor for tensor in graph.initializer if tensor.name in used]
    tensor = onnx.TensorProto.FLOAT
    short = onnx.helper.make_graph(
        [*constants, *nodes], "alexnet",
        [onnx.helper.make_tensor_value_info(nodes[0].input[0], tensor, [1, 3, 227, 227])],
        [onnx.helper.make_tensor_value_info(nodes[-1].output[0], tensor, [1, SHAPES["fc7"][0]])], stored)
    return onnx.helper.make_model(short, ir_version=source.model.ir_version, opset_imports=source.model.opset_import)


def swap_pooling_and_normalisation(nodes):
    """The nodes with each MaxPool and the LRN next to it in each other's place; the nodes are changed."""
    nodes = list(nodes)
    for i, (first, second) in enumerate(pairwise(nodes)):
        if {first.op_type, second.op_type} == {"LRN", "MaxPool"}:
            first.input[0], second.input[0] = second.input[0], first.input[0]
            first.output[0], second.output[0] = second.output[0], first.output[0]
            nodes[i], nodes[i + 1] = second, first
    return nodes
