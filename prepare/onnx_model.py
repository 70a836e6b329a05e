"""Reads AlexNet weights from an ONNX model, and runs the model itself up to fc7 where ONNX Runtime is there."""
from itertools import pairwise

import numpy as np
from google.protobuf.message import DecodeError

from prepare.weights_layout import SHAPES, Layer, Source, match, same
from util import UserError, one_line

try:
    import onnx
except ImportError as error:
    raise UserError("onnx is not installed; pip install -r requirements-convert.txt") from error
try:
    import onnxruntime
except ImportError:
    onnxruntime = None

KIND = "an ONNX model"
# operators that are layers, and those that change nothing here
KINDS = {"Conv": "convolution", "LRN": "normalisation", "MaxPool": "pooling", "Gemm": "inner product"}
PASSED_OVER = {"Relu", "Reshape", "Flatten", "Dropout", "Identity"}


def read_source(path):
    """The Source in an ONNX file. No other file is opened, whatever this one names."""
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except DecodeError:
        raise UserError(f"{path}: expected an ONNX model, found a damaged or truncated file") from None
    return Source("onnx", *match(path, graph_layers(path, model.graph)), model)


def graph_layers(path, graph):
    """Yield the Layers of an ONNX graph, which must be a plain chain of known operators."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in chain(path, graph):
        if node.op_type in KINDS:
            try:
                options = {option.name: onnx.helper.get_attribute_value(option) for option in node.attribute}
            except ValueError as error:
                raise UserError(f"{path}: expected whole settings of {node.op_type}, found {str(error)!r}") from error
            arrays = [stored_array(path, stored, name) for name in node.input[1:]]
            if node.op_type == "Gemm" and not options.get("transB", 0):
                arrays[:1] = [array.T for array in arrays[:1]]
            yield Layer(KINDS[node.op_type], node.output[0], node_settings(node.op_type, options), arrays)


def chain(path, graph):
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


def stored_array(path, stored, name):
    """The float32 or float64 values that an ONNX file holds under a name."""
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


def node_settings(operator, options):
    """`{name: value}` of a node in the words of `layout.network`."""
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
        unread: rows and columns at the end that may be padded. The zoo's files pad one before they pool, which no
            window reaches when the image is 227×227.
    """
    automatic, pads = options.get("auto_pad", b"NOTSET"), options.get("pads", [0])
    if automatic not in (b"NOTSET", b"VALID"):
        return str(automatic)
    return 0 if pads == [0, 0, unread, unread] else same(pads)


# ---------------------------------------------------------------- running it

def runtime_fc7(path, source, inputs, normalises_first):
    """fc7 before its ReLU as ONNX Runtime computes it with the source's own nodes, float32 (B, 4096).

    Args:
        inputs: float32 (B, 227, 227, 3). The zoo's files say 224×224, and nothing in them but that depends on it.
        normalises_first: whether to; where the source does otherwise, its nodes change places.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        model = until_fc7_model(path, source, normalises_first).SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, {session.get_inputs()[0].name: x.transpose(2, 0, 1)[None]})[0]
                               for x in inputs])
    except Exception as error:  # ONNX Runtime's errors have no class in common
        raise UserError(f"{path}: ONNX Runtime does not run this model ({one_line(error)}); --no-check "
                        "converts it without") from error


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
    """The nodes with each MaxPool and the LRN beside it in each other's place; the nodes are changed."""
    nodes = list(nodes)
    for i, (first, second) in enumerate(pairwise(nodes)):
        if {first.op_type, second.op_type} == {"LRN", "MaxPool"}:
            first.input[0], second.input[0] = second.input[0], first.input[0]
            first.output[0], second.output[0] = second.output[0], first.output[0]
            nodes[i], nodes[i + 1] = second, first
    return nodes
