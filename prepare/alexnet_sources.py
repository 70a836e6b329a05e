"""Reads public AlexNet weights: a TensorFlow `.npy` file, a Caffe model or an ONNX model becomes a Source.

The layers of a file must be AlexNet's up to fc7, in their order and with their settings; fc8 and what follows are not
read. Files come from strangers: every size is checked, and no other file is opened, whatever a model names.

Caffe models are read without Caffe. Field numbers and defaults are those of Caffe's published file format, as far as
AlexNet needs it; other fields are skipped. Both generations are read: `layers` with numbered types, as in
bvlc_alexnet.caffemodel, and `layer` with named types; blobs with a shape, and with num, channels, height and width.
"""
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from storage.arrays import read_weights
from util import UserError

try:
    import onnx
except ImportError:  # optional: pip install -e '.[convert]'
    onnx = None

FORMATS = {"npy": "a TensorFlow .npy file", "caffe": "a Caffe model", "onnx": "an ONNX model"}
CAFFE_STARTS = (b"\x0a", b"\x12", b"\x1a", b"\x20", b"\xa2\x06")  # tags of the fields a NetParameter can begin with
# layer: shape of its kernel in Caffe and ONNX, (O, I, H, W) or (O, I)
SHAPES = {"conv1": (96, 3, 11, 11), "conv2": (256, 48, 5, 5), "conv3": (384, 256, 3, 3), "conv4": (384, 192, 3, 3),
          "conv5": (256, 192, 3, 3), "fc6": (4096, 9216), "fc7": (4096, 4096)}
POOLING = {"kind": "max", "size": 3, "stride": 2, "pad": 0}
NORMALISATION = {"across": "channels", "size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1}  # alpha is divided by size


@dataclass(frozen=True)
class Source:
    """Weights as their file holds them.

    format: npy, caffe or onnx; weights: `{layer: [kernel, bias]}` of float32 in the layout of the format;
    normalises_first: whether it normalises before it pools, None if the file does not say; model: the ONNX model, or
    None; has_fc8: whether an `.npy` file has fc8, which the public one has and a converted one lacks.
    """
    format: str
    weights: dict
    normalises_first: bool | None
    model: Any = None
    has_fc8: bool = True


def read_source(path):
    """The Source in a file of any of the three formats. Raises UserError."""
    source_format = format_of(path)
    if source_format == "npy":
        return read_npy_source(path)
    if source_format == "caffe":
        return Source("caffe", *match(path, caffe_layers(path)))
    model = read_onnx(path)
    return Source("onnx", *match(path, onnx_layers(path, model.graph)), model)


def format_of(path):
    """npy, caffe or onnx, by the first bytes of a file. Raises UserError for any other."""
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"\x93NUMPY"):
        return "npy"
    if start.startswith(b"\x08"):
        return "onnx"
    if start.startswith(CAFFE_STARTS):
        return "caffe"
    raise UserError(f"{path}: expected {', '.join(FORMATS.values())}, found none of the three")


# ---------------------------------------------------------------- the layers of a model and those of AlexNet

class Layer(NamedTuple):
    """A layer that has weights or settings, from a Caffe or an ONNX model.

    kind: convolution, normalisation, pooling or inner product; settings: named as in `network`; arrays: kernel
    (O, I, H, W) or (O, I), and bias (O,).
    """
    kind: str
    name: str
    settings: dict
    arrays: list


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
    """Match the Layers of a file, in its order, with AlexNet's. Raises UserError.

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


def until_fc7(layers):
    """The layers up to the second inner product."""
    taken = []
    for layer in layers:
        taken.append(layer)
        if [layer.kind for layer in taken].count("inner product") == 2:
            break
    return taken


def agree(found, value):
    """Whether a setting is the network's; float32 has fewer digits than its 1e-4."""
    return found == value or (isinstance(found, float) and math.isclose(found, value, rel_tol=1e-6))


def sound_arrays(path, name, arrays):
    """Kernel and bias of a layer in the shapes of SHAPES. In old Caffe files they have leading axes of length 1."""
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


def same(values):
    """The number that all values of a list are equal to; anything else is returned as it is."""
    return values[0] if isinstance(values, list) and len(set(values)) == 1 else values


# ---------------------------------------------------------------- TensorFlow

def read_npy_source(path):
    """The Source in a pickled dict of layers such as bvlc_alexnet.npy. Raises UserError."""
    weights = read_weights(path)
    if "C" in weights:
        raise UserError(f"{path}: expected public weights, found a checkpoint of WSDHQ, which train.py --weights takes "
                        "as it is")
    for name, shape in SHAPES.items():
        kernel_shape = tuple(shape[axis] for axis in ((2, 3, 1, 0) if len(shape) == 4 else (1, 0)))
        expected, found = [kernel_shape, shape[:1]], [array.shape for array in weights.get(name, [])]
        if found != expected:
            raise UserError(f"{path}: expected {name} with shapes {expected}, found {found or 'none'}")
    return Source("npy", {name: weights[name] for name in SHAPES}, None, has_fc8="fc8" in weights)


# ---------------------------------------------------------------- Caffe

# message: {field: (number, type, value where it is missing)}; a list marks a repeated field
CAFFE_MESSAGES = {
    "BlobShape": {"dim": (1, ["int64"], None)},
    # packed floats and raw bytes look alike in the file; as bytes, NumPy takes 60 million of them at once
    "Blob": {"num": (1, "int64", 0), "channels": (2, "int64", 0), "height": (3, "int64", 0), "width": (4, "int64", 0),
             "data": (5, ["bytes"], None), "shape": (7, "BlobShape", None), "double_data": (8, ["bytes"], None)},
    "Convolution": {"pad": (3, ["uint32"], None), "group": (5, "uint32", 1), "stride": (6, ["uint32"], None),
                    "pad_h": (9, "uint32", 0), "pad_w": (10, "uint32", 0), "stride_h": (13, "uint32", 1),
                    "stride_w": (14, "uint32", 1), "dilation": (18, ["uint32"], None)},
    "Pooling": {"pool": (1, "int32", 0), "kernel_size": (2, "uint32", 0), "stride": (3, "uint32", 1),
                "pad": (4, "uint32", 0)},
    "LRN": {"local_size": (1, "uint32", 5), "alpha": (2, "float", 1), "beta": (3, "float", 0.75),
            "norm_region": (4, "int32", 0), "k": (5, "float", 1)},
    "InnerProduct": {"transpose": (6, "bool", "false")},
    "OldLayer": {"name": (4, "bytes", None), "type": (5, "int32", 0), "blobs": (6, ["Blob"], None),
                 "convolution_param": (10, "Convolution", None), "inner_product_param": (17, "InnerProduct", None),
                 "lrn_param": (18, "LRN", None), "pooling_param": (19, "Pooling", None)},
    "NewLayer": {"name": (1, "bytes", None), "type": (2, "bytes", None), "blobs": (7, ["Blob"], None),
                 "convolution_param": (106, "Convolution", None), "inner_product_param": (117, "InnerProduct", None),
                 "lrn_param": (118, "LRN", None), "pooling_param": (121, "Pooling", None)},
    "Net": {"layers": (2, ["OldLayer"], None), "layer": (100, ["NewLayer"], None)},
}
CAFFE_KINDS = {4: "convolution", 14: "inner product", 15: "normalisation", 17: "pooling",
               b"Convolution": "convolution", b"InnerProduct": "inner product", b"LRN": "normalisation",
               b"Pooling": "pooling"}


def caffe_layers(path):
    """Yield the Layers of a Caffe model in the order of the file. Raises UserError."""
    net = caffe_message("Net")()
    try:
        net.ParseFromString(path.read_bytes())
    except DecodeError:
        raise UserError(f"{path}: expected a Caffe model, found a damaged or truncated file, or one that is neither "
                        "a TensorFlow .npy file nor a Caffe nor an ONNX model") from None
    for layer in net.layers or net.layer:
        kind = CAFFE_KINDS.get(layer.type)
        if kind is not None:
            name = layer.name.decode(errors="replace")
            arrays = [blob_array(path, name, blob) for blob in layer.blobs]
            if kind == "inner product" and layer.inner_product_param.transpose:
                arrays[:1] = [array.reshape(array.shape[-2:]).T for array in arrays[:1]]
            yield Layer(kind, name, caffe_settings(kind, layer), arrays)


def caffe_message(name):
    """The Python class of a message in CAFFE_MESSAGES."""
    file = descriptor_pb2.FileDescriptorProto(name="caffemodel", package="caffemodel", syntax="proto2")
    for message, fields in CAFFE_MESSAGES.items():
        described = file.message_type.add(name=message)
        for field, (number, kind, default) in fields.items():
            add_field(described, field, number, kind, default)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffemodel.{name}"))


def add_field(message, name, number, kind, default):
    """Describe a field of a message; arguments as in CAFFE_MESSAGES."""
    field = message.field.add(name=name, number=number)
    field.label = field.LABEL_REPEATED if isinstance(kind, list) else field.LABEL_OPTIONAL
    kind = kind[0] if isinstance(kind, list) else kind
    if kind in CAFFE_MESSAGES:
        field.type, field.type_name = field.TYPE_MESSAGE, f".caffemodel.{kind}"
    else:
        field.type = getattr(field, f"TYPE_{kind.upper()}")
    if default is not None:
        field.default_value = str(default)


def blob_array(path, name, blob):
    """A blob as float32 or float64 in the shape that the file gives it. Raises UserError."""
    old_shape = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else old_shape
    data = b"".join(blob.data) or b"".join(blob.double_data)
    dtype = np.dtype("<f4" if blob.data else "<f8")
    if min(shape, default=0) < 0 or len(data) != math.prod(shape) * dtype.itemsize:
        raise UserError(f"{path}: expected {shape} packed float32 or float64 values in {name!r}, found "
                        f"{len(data) // dtype.itemsize:,} (half-precision and quantised models are not read)")
    return np.frombuffer(data, dtype).reshape(shape)


def caffe_settings(kind, layer):
    """`{name: value}` of a layer, named as in `network`."""
    if kind == "convolution":
        values = layer.convolution_param
        return {"stride": same(list(values.stride) or [values.stride_h, values.stride_w]),
                "pad": same(list(values.pad) or [values.pad_h, values.pad_w]), "groups": values.group,
                "dilation": same(list(values.dilation) or [1])}
    if kind == "pooling":
        values = layer.pooling_param
        return {"kind": "max" if values.pool == 0 else "not max", "size": values.kernel_size, "stride": values.stride,
                "pad": values.pad}
    if kind == "normalisation":
        values = layer.lrn_param
        return {"across": "channels" if values.norm_region == 0 else "places", "size": values.local_size,
                "alpha": values.alpha, "beta": values.beta, "bias": values.k}
    return {"factors": [1, 1]}


# ---------------------------------------------------------------- ONNX

# operators that are layers, and operators that change nothing here
ONNX_KINDS = {"Conv": "convolution", "LRN": "normalisation", "MaxPool": "pooling", "Gemm": "inner product"}
PASSED_OVER = {"Relu", "Reshape", "Flatten", "Dropout", "Identity"}


def read_onnx(path):
    """The ModelProto in an ONNX file. Raises UserError."""
    if onnx is None:
        raise UserError("onnx is not installed: pip install -e '.[convert]'")
    try:
        return onnx.load_model_from_string(path.read_bytes())
    except DecodeError:
        raise UserError(f"{path}: expected an ONNX model, found a damaged or truncated file") from None


def onnx_layers(path, graph):
    """Yield the Layers of an ONNX graph, which must be a plain chain of known operators. Raises UserError."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in chain(path, graph):
        if node.op_type in ONNX_KINDS:
            try:
                options = {option.name: onnx.helper.get_attribute_value(option) for option in node.attribute}
            except ValueError as error:
                raise UserError(f"{path}: expected whole settings of {node.op_type}, found {str(error)!r}") from error
            arrays = [stored_array(path, stored, name) for name in node.input[1:]]
            if node.op_type == "Gemm" and not options.get("transB", 0):
                arrays[:1] = [array.T for array in arrays[:1]]
            yield Layer(ONNX_KINDS[node.op_type], node.output[0], onnx_settings(node.op_type, options), arrays)


def chain(path, graph):
    """Yield the nodes of a graph from its input on; each must read what the one before it wrote."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in stored]
    before = inputs[0] if inputs else None
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        if node.op_type not in ONNX_KINDS.keys() | PASSED_OVER:
            raise UserError(f"{path}: expected AlexNet of {', '.join([*ONNX_KINDS, *sorted(PASSED_OVER)])}, found the "
                            f"operator {node.op_type!r}")
        if not (node.output and list(node.input[:1]) == [before]):
            raise UserError(f"{path}: expected a plain chain of layers, found {node.op_type} {node.name!r} outside it")
        yield node
        before = node.output[0]


def stored_array(path, stored, name):
    """The float32 or float64 values that an ONNX file holds under a name. Raises UserError."""
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
    """`{name: value}` of a node, named as in `network`."""
    if operator == "Conv":
        return {"stride": same(options.get("strides", [1])), "pad": padding(options),
                "groups": options.get("group", 1), "dilation": same(options.get("dilations", [1]))}
    if operator == "MaxPool":
        return {"kind": "max", "size": same(options.get("kernel_shape", [0])),
                "stride": same(options.get("strides", [1])), "pad": padding(options, unread=1)}
    if operator == "LRN":
        return {"across": "channels", "size": options.get("size"), "alpha": options.get("alpha", 1e-4),
                "beta": options.get("beta", 0.75), "bias": options.get("bias", 1)}
    return {"factors": [options.get("alpha", 1), options.get("beta", 1)]}


def padding(options, unread=0):
    """The padding on all sides: a number, or else a word or a list that no layer of AlexNet has.

    Args:
        unread: rows and columns at the end that may be padded. The model zoo's files pad one before they pool, which
            no window reaches when the image is 227×227.
    """
    automatic, pads = options.get("auto_pad", b"NOTSET"), options.get("pads", [0])
    if automatic not in (b"NOTSET", b"VALID"):
        return str(automatic)
    return 0 if pads == [0, 0, unread, unread] else same(pads)
