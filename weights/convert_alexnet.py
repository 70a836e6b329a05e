"""AlexNet weights that people can get become `alexnet.npy`: `python weights/convert_alexnet.py SOURCE alexnet.npy`.

What belongs here: the layers of the network and how other programs lay them out, reading TensorFlow's `.npy` and ONNX
(Caffe's files have `caffemodel.py`), the conversion, and the check of the result against the source.

Layouts. Caffe and ONNX keep kernels as (O, I, H, W) and (O, I) and flatten a map channel by channel; this network wants
(H, W, I, O) and (I, O) and flattens row, column, channel, so fc6's rows change places. Groups need nothing: both sides
cut inputs and outputs into halves in the same order. `bvlc_alexnet.npy` has TensorFlow's layouts already.

Channels. The public weights, in all three formats, learned from Caffe's images: B, G, R, less ImageNet's mean of each.
The release turns its images, which are BGR as OpenCV reads them, round to RGB and then takes off (103.939, 116.779,
123.68), which is the mean in the order B, G, R. Whoever wrote that meant to feed BGR: the file it was written for has
Caffe's BGR kernels, and in the release the blue kernels look at red. `--channels keep` leaves that as it is: the
conditions of the release's figures, and for an `.npy` the same as using it unconverted. `--channels reverse`, the
default, turns conv1's input channels round and moves the difference of the means into its bias. conv1 pads nothing, so
that is exact: the network then computes from this project's input what the source computes from B, G, R less
ImageNet's mean.

Order of layers. bvlc_alexnet normalises before it pools; the release's network, and so this one, pools first, as
CaffeNet (bvlc_reference_caffenet) does. Weights cannot make up for that: those of CaffeNet fit exactly, those of
bvlc_alexnet nearly, and the difference is measured and printed.
"""
import argparse
import importlib
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from storage.arrays import read_weights, write_weights
from storage.safe_files import fingerprint
from util import UserError, one_line, run_program, stream

# layer: shape of its kernel in Caffe and ONNX
SHAPES = {"conv1": (96, 3, 11, 11), "conv2": (256, 48, 5, 5), "conv3": (384, 256, 3, 3), "conv4": (384, 192, 3, 3),
          "conv5": (256, 192, 3, 3), "fc6": (4096, 9216), "fc7": (4096, 4096)}
FC6_MAP = (256, 6, 6)  # what fc6 reads: channels, rows, columns
POOLING = {"kind": "max", "size": 3, "stride": 2, "pad": 0}
NORMALISATION = {"across": "channels", "size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1}  # alpha is divided by size
# ImageNet's mean of blue, green and red as Caffe subtracts it (the mean of ilsvrc_2012_mean.npy)
CAFFE_MEAN = (104.00698793, 116.66876762, 122.67891434)

CHECK_IMAGES = 2
LARGEST_DIFFERENCE = 1e-3  # between source and network, in parts of the largest value of fc7
FORMATS = {"npy": "a TensorFlow .npy file", "caffe": "a Caffe model", "onnx": "an ONNX model"}
CAFFE_STARTS = (b"\x0a", b"\x12", b"\x1a", b"\x20", b"\xa2\x06")  # tags of the fields a NetParameter can begin with

# ONNX: operators that are layers, and those that change nothing here
KINDS = {"Conv": "convolution", "LRN": "normalisation", "MaxPool": "pooling", "Gemm": "inner product"}
PASSED_OVER = {"Relu", "Reshape", "Flatten", "Dropout", "Identity"}


@dataclass(frozen=True)
class Source:
    """Weights as their file holds them.

    format: a key of FORMATS; weights: `{layer: [kernel, bias]}` of float32 in the layout of the format;
    normalises_first: before it pools, None if the file does not say; model: the ONNX model; has_fc8: the public files
    have one, what was converted already has none.
    """
    format: str
    weights: dict
    normalises_first: bool | None
    model: Any = None
    has_fc8: bool = True


def main():
    args = parse_args()
    check_target(args.source, args.target, args.force)
    source = read_source(args.source)
    print(f"read {args.source}, {FORMATS[source.format]}, SHA-256 {fingerprint(args.source)}")
    channels = chosen_channels(args.source, source, args.channels)
    weights = convert(source, channels)
    report_conversion(source, channels)
    if args.check:
        check(args.source, source, weights, channels)
    elif source.normalises_first is not False:
        print(f"warning: {order_of(source)}")
    write_weights(args.target, weights, {"source": args.source.name, "source_sha256": fingerprint(args.source),
                                         "format": source.format, "channels": channels})
    print(f"wrote {args.target}, SHA-256 {fingerprint(args.target)}")


def parse_args():
    parser = argparse.ArgumentParser(
        description="Turn public AlexNet weights into alexnet.npy, from which train.py starts: bvlc_alexnet.npy of "
                    "TensorFlow, a .caffemodel or an ONNX model.")
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the weights; the format is told by the content")
    parser.add_argument("target", metavar="TARGET", type=Path, help="the file to write, alexnet.npy")
    parser.add_argument("--channels", choices=("reverse", "keep"),
                        help="reverse: conv1's BGR kernels are turned round and the means adjusted, so that they see "
                             "what they learned from; keep: they stay, and see red in place of blue as in the release "
                             "(default reverse)")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True,
                        help="hold the converted network against the source on two images (default: do)")
    parser.add_argument("--force", action="store_true", help="replace TARGET if it is there")
    return parser.parse_args()


def check_target(source, target, force):
    """Refuse a target that is there already, before the source is read."""
    if target.is_dir():
        raise UserError(f"{target}: expected the name of a file to write, found a folder")
    if target.exists() and not force:
        raise UserError(f"{target} is already there; --force replaces it")
    if not source.is_file():
        raise UserError(f"{source}: no such file")


# ---------------------------------------------------------------- the network

def network(normalises_first):
    """The layers up to fc7 in their order, as (name, kind, settings)."""
    def convolution(number, stride=1, pad=0, groups=1):
        return f"conv{number}", "convolution", {"stride": stride, "pad": pad, "groups": groups, "dilation": 1}

    def between(number):
        pair = (f"pool{number}", "pooling", POOLING), (f"norm{number}", "normalisation", NORMALISATION)
        return pair[::-1] if normalises_first else pair

    return [
        convolution(1, stride=4), *between(1),
        convolution(2, pad=2, groups=2), *between(2),
        convolution(3, pad=1),
        convolution(4, pad=1, groups=2),
        convolution(5, pad=1, groups=2), ("pool5", "pooling", POOLING),
        ("fc6", "inner product", {"factors": [1, 1]}),
        ("fc7", "inner product", {"factors": [1, 1]}),
    ]


def match(path, layers):
    """Hold the layers of a file against the network's.

    Args:
        layers: `caffemodel.Layer`s in the order of the file.
    Returns:
        weights and normalises_first of a Source.
    """
    layers = until_fc7(layers)
    kinds = [layer.kind for layer in layers]
    orders = [first for first in (False, True) if kinds == [kind for _, kind, _ in network(first)]]
    if not orders:
        names = " ".join(name for name, _, _ in network(True))
        found = repr(" ".join(layer.name or layer.kind for layer in layers)[:200]) if layers else "none"
        raise UserError(f"{path}: expected AlexNet's layers {names} (or pool before norm), found {found}")
    weights = {}
    for layer, (name, _, settings) in zip(layers, network(orders[0]), strict=True):
        for setting, value in settings.items():
            found = layer.settings[setting]
            if not agree(found, value):
                raise UserError(f"{path}: expected {name} with {setting} {value}, found {found}")
        if name in SHAPES:
            weights[name] = [np.asarray(array, np.float32) for array in sound_arrays(path, name, layer.arrays)]
    return weights, orders[0]


def agree(found, value):
    """Whether a setting is the network's; float32 has fewer digits than its 1e-4."""
    return found == value or (isinstance(found, float) and math.isclose(found, value, rel_tol=1e-6))


def until_fc7(layers):
    """The layers up to the second inner product; what follows is not even looked at."""
    taken = []
    for layer in layers:
        taken.append(layer)
        if [layer.kind for layer in taken].count("inner product") == 2:
            break
    return taken


def sound_arrays(path, name, arrays):
    """Kernel and bias of a layer in the shapes of SHAPES. Caffe's old files have leading axes of 1."""
    shapes, found = [SHAPES[name], SHAPES[name][:1]], [tuple(array.shape) for array in arrays]
    if [drop_leading_ones(shape) for shape in found] != shapes:
        raise UserError(f"{path}: expected {name} with a kernel and a bias of shapes {shapes}, found {found or 'none'}")
    for array in arrays:
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} holds NaN or infinite values")
    return [array.reshape(shape) for array, shape in zip(arrays, shapes, strict=True)]


def drop_leading_ones(shape):
    while shape[:1] == (1,):
        shape = shape[1:]
    return shape


# ---------------------------------------------------------------- reading

def read_source(path):
    """The Source in a file of any of the three formats. Raises UserError."""
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"\x93NUMPY"):
        return read_tensorflow(path)
    if start.startswith(b"\x08"):
        return read_onnx(path)
    if start.startswith(CAFFE_STARTS):
        from weights import caffemodel
        return Source("caffe", *match(path, caffemodel.read_layers(path)))
    raise UserError(f"{path}: expected {', '.join(FORMATS.values())}, found none of the three")


def read_tensorflow(path):
    """The Source in a pickled dict of layers."""
    weights = read_weights(path)
    if "C" in weights:
        raise UserError(f"{path}: expected public weights, found a checkpoint of WSDHQ, which train.py --weights takes "
                        "as it is")
    shapes = {name: [network_shape(shape), shape[:1]] for name, shape in SHAPES.items()}
    for name, expected in shapes.items():
        found = [array.shape for array in weights.get(name, [])]
        if found != expected:
            raise UserError(f"{path}: expected {name} with shapes {expected}, found {found or 'none'}")
    return Source("npy", {name: weights[name] for name in SHAPES}, None, has_fc8="fc8" in weights)


def network_shape(shape):
    """The shape a kernel of Caffe's has in this network."""
    return tuple(shape[axis] for axis in ((2, 3, 1, 0) if len(shape) == 4 else (1, 0)))


def read_onnx(path):
    """The Source in an ONNX file. No other file is opened, whatever this one names."""
    onnx = optional("onnx")
    from google.protobuf.message import DecodeError
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except DecodeError:
        raise UserError(f"{path}: expected an ONNX model, found a damaged or truncated file") from None
    return Source("onnx", *match(path, onnx_layers(path, model.graph)), model)


def onnx_layers(path, graph):
    """Yield the `caffemodel.Layer`s of an ONNX graph, which must be a plain chain of known operators."""
    from weights.caffemodel import Layer
    onnx = optional("onnx")
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in onnx_chain(path, graph):
        if node.op_type in KINDS:
            try:
                options = {option.name: onnx.helper.get_attribute_value(option) for option in node.attribute}
            except ValueError as error:
                raise UserError(f"{path}: expected whole settings of {node.op_type}, found {str(error)!r}") from error
            arrays = [onnx_array(path, stored, name) for name in node.input[1:]]
            if node.op_type == "Gemm" and not options.get("transB", 0):
                arrays[:1] = [array.T for array in arrays[:1]]
            yield Layer(KINDS[node.op_type], node.output[0], onnx_settings(node.op_type, options), arrays)


def onnx_chain(path, graph):
    """Yield the nodes of a graph from its input on; each must read what the one before it wrote."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in stored]
    before = inputs[0] if inputs else None
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        if node.op_type not in KINDS.keys() | PASSED_OVER:
            raise UserError(f"{path}: expected AlexNet of {', '.join([*KINDS, *sorted(PASSED_OVER)])}, found the "
                            f"operator {node.op_type!r}")
        if not (node.output and list(node.input[:1]) == [before]):
            raise UserError(f"{path}: expected a plain chain of layers, found {node.op_type} {node.name!r} beside it")
        yield node
        before = node.output[0]


def onnx_array(path, stored, name):
    """The float32 or float64 values that an ONNX file holds under a name."""
    onnx = optional("onnx")
    if name not in stored:
        raise UserError(f"{path}: expected the values of {name!r} in the file, found none")
    tensor = stored[name]
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise UserError(f"{path}: expected all values in this one file, found {name!r} as external data in another")
    if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        found = {number: word for word, number in onnx.TensorProto.DataType.items()}.get(tensor.data_type, "others")
        raise UserError(f"{path}: expected float32 or float64 values in {name!r}, found {found}")
    try:
        return onnx.numpy_helper.to_array(tensor)
    except ValueError as error:
        raise UserError(f"{path}: expected {tuple(tensor.dims)} values in {name!r}, found a damaged file") from error


def onnx_settings(operator, options):
    """`{name: value}` of a node in the words of `network`."""
    if operator == "Conv":
        return {"stride": same(options.get("strides", [1])), "pad": onnx_pad(options),
                "groups": options.get("group", 1), "dilation": same(options.get("dilations", [1]))}
    if operator == "MaxPool":
        return {"kind": "max", "size": same(options.get("kernel_shape", [0])),
                "stride": same(options.get("strides", [1])), "pad": onnx_pad(options, unread=1)}
    if operator == "LRN":
        return {"across": "channels", "size": options.get("size"), "alpha": options.get("alpha", 1e-4),
                "beta": options.get("beta", 0.75), "bias": options.get("bias", 1)}
    return {"factors": [options.get("alpha", 1), options.get("beta", 1)]}


def onnx_pad(options, unread=0):
    """The padding on all sides: a number, or else a word or a list that no layer of AlexNet has.

    Args:
        unread: rows and columns at the end that may be padded. The zoo's files pad one before they pool, which no
            window reaches when the image is 227×227.
    """
    automatic, pads = options.get("auto_pad", b"NOTSET"), options.get("pads", [0])
    if automatic not in (b"NOTSET", b"VALID"):
        return str(automatic)
    return 0 if pads == [0, 0, unread, unread] else same(pads)


def same(values):
    """The number that all `values` are, or what there is in place of such numbers."""
    return values[0] if isinstance(values, list) and len(set(values)) == 1 else values


def optional(package):
    """Import a package of requirements-convert.txt."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{package} is not installed; pip install -r requirements-convert.txt") from None


# ---------------------------------------------------------------- conversion

def chosen_channels(path, source, channels):
    """`--channels` or its default, which must not turn round what was turned round before."""
    if channels is None and not source.has_fc8:
        raise UserError(f"{path}: expected bvlc_alexnet.npy with its fc8, found a file without, which may have been "
                        "converted already; --channels keep or --channels reverse says what to do")
    return channels or "reverse"


def convert(source, channels):
    """`{layer: [kernel, bias]}` for this network."""
    from backbones.alexnet import LAYERS, MEAN
    from backbones.layers import check_weights
    weights = {name: [network_kernel(source.format, name, kernel), bias]
               for name, (kernel, bias) in source.weights.items()}
    if channels == "reverse":
        kernel, bias = weights["conv1"]
        kernel = kernel[:, :, ::-1]  # now R, G, B
        shift = np.array(MEAN) - np.array(CAFFE_MEAN[::-1])  # what the network takes off too much
        weights["conv1"] = [kernel, bias + np.einsum("hwio,i->o", kernel.astype(np.float64), shift)]
    weights = {name: [np.ascontiguousarray(array, np.float32) for array in pair] for name, pair in weights.items()}
    return check_weights(weights, LAYERS, "the conversion")


def network_kernel(source_format, name, kernel):
    """A kernel in this network's layout."""
    if source_format == "npy":
        return kernel
    if kernel.ndim == 4:
        return kernel.transpose(2, 3, 1, 0)
    if name == "fc6":
        kernel = kernel.reshape(-1, *FC6_MAP).transpose(0, 2, 3, 1).reshape(kernel.shape)
    return kernel.T


def report_conversion(source, channels):
    """Print what was done to the layers."""
    layout = "layouts were TensorFlow's already" if source.format == "npy" else (
        "kernels from (O, I, H, W) to (H, W, I, O), fc6's rows from channel, row, column to row, column, channel")
    conv1 = ("conv1's BGR kernels reversed to RGB, the difference of the means moved into its bias"
             if channels == "reverse" else "conv1's channels kept: BGR kernels see RGB, as in the release")
    print(f"{layout}; {conv1}; fc8 left out, training starts it afresh")


# ---------------------------------------------------------------- the check

@np.errstate(all="ignore")  # what overflows is a difference, and refused as one
def check(path, source, weights, channels):
    """Compare fc7 of the converted network with the source's on seeded images. Raises UserError if they differ."""
    images = seeded_images()
    inputs = source_inputs(images, channels)
    evaluator, evaluate = source_evaluator(path, source)
    expected = evaluate(inputs, False)
    difference = relative_difference(network_fc7(images, weights), expected)
    if not difference <= LARGEST_DIFFERENCE:
        raise UserError(f"{path}: expected the converted network's fc7 to be the source's as {evaluator} computes it, "
                        f"found a difference of {difference:.2g} of the largest value; nothing was written")
    print(f"check: fc7 of {CHECK_IMAGES} images as {evaluator} computes it from the source's weights in this network's "
          f"order of layers; largest difference {difference:.1e} of the largest value")
    if source.normalises_first is not False:
        order = relative_difference(expected, evaluate(inputs, True))
        print(f"warning: {order_of(source)}; on the check's images that moves fc7 by up to {order:.1%} of the largest "
              "value")


def order_of(source):
    """What to tell of a source that normalises before it pools, or that may."""
    if source.normalises_first:
        return "the source normalises before it pools, this network afterwards"
    return ("an .npy file does not tell the order of its layers; bvlc_alexnet normalises before it pools, this network "
            "afterwards")


def seeded_images():
    """Blocks of colour under noise, uint8 (CHECK_IMAGES, 227, 227, 3), BGR."""
    rng = stream(0, "images of the check")
    blocks = rng.integers(0, 256, (CHECK_IMAGES, 8, 8, 3)).repeat(29, 1).repeat(29, 2)[:, :227, :227]
    return np.clip(blocks + rng.integers(-20, 21, blocks.shape), 0, 255).astype(np.uint8)


def source_inputs(images, channels):
    """What conv1 of the source reads for BGR images, float32 (B, 227, 227, 3): as in Caffe, or as in the release."""
    from backbones.alexnet import MEAN
    if channels == "reverse":
        return images.astype(np.float32) - np.float32(CAFFE_MEAN)
    return images[..., ::-1].astype(np.float32) - np.float32(MEAN)


def relative_difference(found, expected):
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def network_fc7(images, weights):
    """fc7 before its ReLU as this project's network computes it, float32 (B, 4096)."""
    from backbones.alexnet import LAST, LAYERS, embed
    from backbones.layers import feed_weights, make_variables
    from session import open_session, tf
    weights = {**weights, LAST: [np.zeros(LAYERS[LAST], np.float32), np.zeros(LAYERS[LAST][-1], np.float32)]}
    with tf.Graph().as_default() as graph, open_session(graph) as session, tf.device("/cpu:0"):
        variables, first_values = make_variables(LAYERS, ())
        _, before = embed(tf.constant(images), variables)
        session.run(tf.global_variables_initializer(), feed_weights(first_values, weights))
        return session.run(before["fc7"])


def source_evaluator(path, source):
    """What evaluates a source, in words, and the function (inputs, normalises_first) -> fc7 that does."""
    if source.format == "onnx":
        try:
            runtime = optional("onnxruntime")
        except UserError:
            print("note: onnxruntime is not installed, NumPy evaluates the source in its place")
        else:
            return "ONNX Runtime", lambda inputs, first: onnx_fc7(path, runtime, source, inputs, first)
    return "NumPy", lambda inputs, first: np.stack([plain_fc7(source, x, first) for x in inputs])


def onnx_fc7(path, runtime, source, inputs, normalises_first):
    """fc7 before its ReLU as ONNX Runtime computes it with the source's own nodes, float32 (B, 4096).

    Args:
        inputs: float32 (B, 227, 227, 3). The zoo's files say 224×224, and nothing in them but that depends on it.
        normalises_first: whether to; where the source does otherwise, its nodes change places.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        model = onnx_until_fc7(path, source, normalises_first).SerializeToString()
        session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, {session.get_inputs()[0].name: x.transpose(2, 0, 1)[None]})[0]
                               for x in inputs])
    except Exception as error:  # ONNX Runtime's errors have no class in common
        raise UserError(f"{path}: ONNX Runtime does not run this model ({one_line(error)}); --no-check "
                        "converts it without") from error


def onnx_until_fc7(path, source, normalises_first):
    """A copy of the model for one 227×227 image that ends with fc7, in the order of layers that is asked for."""
    onnx, graph = optional("onnx"), source.model.graph
    nodes = []
    for node in onnx_chain(path, graph):
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
        [onnx.helper.make_tensor_value_info(nodes[-1].output[0], tensor, [1, 4096])], stored)
    return onnx.helper.make_model(short, ir_version=source.model.ir_version, opset_imports=source.model.opset_import)


def swap_pooling_and_normalisation(nodes):
    """The nodes with each MaxPool and the LRN beside it in each other's place; they are written to."""
    nodes = list(nodes)
    for i, (first, second) in enumerate(pairwise(nodes)):
        if {first.op_type, second.op_type} == {"LRN", "MaxPool"}:
            first.input[0], second.input[0] = second.input[0], first.input[0]
            first.output[0], second.output[0] = second.output[0], first.output[0]
            nodes[i], nodes[i + 1] = second, first
    return nodes


# ---------------------------------------------------------------- the network in plain NumPy, from the source's layout

def plain_fc7(source, x, normalises_first):
    """fc7 before its ReLU, float32 (4096,), in the source's own layouts.

    Args:
        x: float32 (227, 227, 3), channels as conv1 of the source reads them.
    """
    channels_first = source.format != "npy"
    for name, kind, settings in network(normalises_first):
        if kind == "pooling":
            x = windows(x, settings["size"], settings["stride"]).max((3, 4))
        elif kind == "normalisation":
            x = plain_normalisation(x, **settings)
        elif kind == "convolution":
            x = np.maximum(plain_convolution(x, *source.weights[name], settings, channels_first), 0)
        else:
            kernel, bias = source.weights[name]
            x = x.transpose(2, 0, 1) if x.ndim == 3 and channels_first else x
            x = x.reshape(-1) @ (kernel.T if channels_first else kernel) + bias
            x = np.maximum(x, 0) if name == "fc6" else x
    return x


def windows(x, size, stride):
    """Views of all size×size windows of a map (H, W, C): (rows, columns, C, size, size)."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))[::stride, ::stride]


def plain_normalisation(x, across, size, alpha, beta, bias):
    """Local response normalisation across channels of a map (H, W, C)."""
    squares = np.pad(np.square(x), ((0, 0), (0, 0), (size // 2, size // 2)))
    sums = np.lib.stride_tricks.sliding_window_view(squares, size, 2).sum(3)
    return x / (bias + alpha / size * sums) ** np.float32(beta)


def plain_convolution(x, kernel, bias, settings, channels_first):
    """A convolution of a map (H, W, C) with a kernel (O, I, H, W) if `channels_first`, else (H, W, I, O)."""
    pad, groups = settings["pad"], settings["groups"]
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    parts = []
    for part, filters in zip(np.split(x, groups, 2), np.split(kernel, groups, 0 if channels_first else 3), strict=True):
        size = filters.shape[-1] if channels_first else filters.shape[0]
        patches = windows(part, size, settings["stride"])  # (rows, columns, I, H, W)
        if not channels_first:
            patches = patches.transpose(0, 1, 3, 4, 2)
        flat = patches.reshape(*patches.shape[:2], -1)
        parts.append(flat @ (filters.reshape(len(filters), -1).T if channels_first else
                             filters.reshape(-1, filters.shape[-1])))
    return np.concatenate(parts, 2) + bias


if __name__ == "__main__":
    run_program(main)
