"""EfficientNet-Lite0 as a graph in ONNX, from the tensors in PyTorch's file.

EfficientNet (Tan and Le 2019) without squeeze-and-excitation and with ReLU6, up to the mean over height and width after
the head; the classifier is left out. Batch normalisation is folded into the convolution before it, and the exchange of
red and blue into the stem's kernel. PyTorch and ONNX both keep kernels as (O, I, H, W), with I the channels of one
group, which is 1 in a depthwise convolution.
"""
import numpy as np

from util import UserError

try:
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise UserError("writing an encoder needs the package onnx: pip install -e '.[encoders]'") from error

INPUT, OUTPUT = "images", "features"
SIDE = 224  # pixels of the images
CENTRE, SCALE = 127, 128  # of pixel values
EPSILON = 1e-3  # of batch normalisation, as EfficientNet was trained
STEM_CHANNELS, FEATURES = 32, 1280
STAGES = (  # repeats, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320))
STRIDES = {f"block{number}": stride for number, stride in enumerate(
    (stride if repeat == 0 else 1 for repeats, _, stride, _, _ in STAGES for repeat in range(repeats)), 1)}
OPSET, IR_VERSION = 17, 8


def layer_shapes():
    """`{layer: shape of its kernel}`, in the order of the network."""
    shapes, inputs, number = {"stem": (STEM_CHANNELS, 3, 3, 3)}, STEM_CHANNELS, 0
    for repeats, size, _, expansion, outputs in STAGES:
        for _ in range(repeats):
            number, expanded = number + 1, inputs * expansion
            if expansion > 1:
                shapes[f"block{number}_expand"] = (expanded, inputs, 1, 1)
            shapes[f"block{number}_depthwise"] = (expanded, 1, size, size)
            shapes[f"block{number}_project"] = (outputs, expanded, 1, 1)
            inputs = outputs
    return {**shapes, "head": (FEATURES, inputs, 1, 1)}


LAYERS = layer_shapes()


# ---------------------------------------------------------------- weights

def torch_names(layer):
    """The names in PyTorch's file of a layer's convolution and of the batch normalisation after it."""
    if layer in ("stem", "head"):
        return {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}[layer]
    block, kind = layer.split("_")
    normalisation = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[kind]
    prefix = f"_blocks.{int(block.removeprefix('block')) - 1}."
    return f"{prefix}_{kind}_conv", prefix + normalisation


def convert(path, tensors):
    """`{layer: [kernel, bias]}`, float32, with batch normalisation folded in; the stem takes BGR. Raises UserError.

    Args:
        path: where the tensors are from, for messages.
        tensors: `{PyTorch's name: array}`.
    """
    weights = {}
    for layer, shape in LAYERS.items():
        convolution, normalisation = torch_names(layer)
        kernel = take(path, tensors, f"{convolution}.weight", shape)
        scale, offset, mean, variance = (take(path, tensors, f"{normalisation}.{part}", shape[:1])
                                         for part in ("weight", "bias", "running_mean", "running_var"))
        with np.errstate(all="ignore"):  # what comes out of odd values is refused below
            factor = scale / np.sqrt(variance + EPSILON)  # (O,)
            folded = [np.float32(kernel * factor[:, None, None, None]), np.float32(offset - mean * factor)]
        if not all(np.isfinite(array).all() for array in folded):
            raise UserError(f"{path}: {convolution} and {normalisation} make weights that are NaN or infinite")
        weights[layer] = folded
    weights["stem"][0] = weights["stem"][0][:, ::-1]
    return weights


def take(path, tensors, name, shape):
    """The tensor of a name as float64, of this shape. Raises UserError."""
    tensor = tensors.get(name)
    if tensor is None or tensor.shape != shape or tensor.dtype.kind != "f":
        found = "none" if tensor is None else f"{tensor.dtype} of shape {tensor.shape}"
        raise UserError(f"{path}: expected EfficientNet-Lite0's {name}, floats of shape {shape}, found {found}")
    return tensor.astype(np.float64)


# ---------------------------------------------------------------- the graph

def encoder(weights):
    """The network as a ModelProto: `images`, uint8 (N, 224, 224, 3), BGR → `features`, float32 (N, 1280).

    Its nodes are plain (Conv, Clip, Add, GlobalAveragePool) with weights as initializers, so that ONNX Runtime can
    quantize it. A layer's output before its activation has the layer's name.
    """
    graph = Graph(weights)
    x = graph.add("Cast", INPUT, to=TensorProto.FLOAT)
    x = graph.add("Sub", x, graph.store("centre", np.float32(CENTRE)))
    x = graph.add("Div", x, graph.store("scale", np.float32(SCALE)))
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])  # (N, 3, 224, 224)
    x = graph.relu6(graph.convolve(x, "stem", stride=2))  # (N, 32, 112, 112)
    channels = STEM_CHANNELS
    for block, stride in STRIDES.items():
        inputs = x
        if f"{block}_expand" in LAYERS:
            x = graph.relu6(graph.convolve(x, f"{block}_expand"))
        x = graph.relu6(graph.convolve(x, f"{block}_depthwise", stride))
        x = graph.convolve(x, f"{block}_project")
        if stride == 1 and LAYERS[f"{block}_project"][0] == channels:
            x = graph.add("Add", x, inputs, output=block)
        channels = LAYERS[f"{block}_project"][0]
    x = graph.relu6(graph.convolve(x, "head"))  # (N, 1280, 7, 7)
    x = graph.add("GlobalAveragePool", x)  # (N, 1280, 1, 1)
    graph.add("Flatten", x, output=OUTPUT)
    return graph.model(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", SIDE, SIDE, 3]),
                       helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", FEATURES]))


class Graph:
    """Collects the nodes and initializers of a graph. Methods return the name of the output that they add.

    Args:
        weights: `{layer: [kernel, bias]}`, float32.
    """

    def __init__(self, weights):
        self._weights = weights
        self._nodes, self._stored = [], []
        self._six = [self.store("zero", np.float32(0)), self.store("six", np.float32(6))]

    def store(self, name, array):
        self._stored.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def add(self, operator, *inputs, output=None, **attributes):
        output = output or f"{operator.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def relu6(self, x):
        return self.add("Clip", x, *self._six)

    def convolve(self, x, layer, stride=1):
        """A layer with SAME padding as in TensorFlow: with stride 2 the odd row and column are at the end.

        With stride 2 every map here has an even size, so k − 2 rows are added, otherwise k − 1.
        """
        kernel, bias = self._weights[layer]
        size, rows = kernel.shape[2], kernel.shape[2] - stride
        before = rows // 2
        return self.add("Conv", x, self.store(f"{layer}_kernel", kernel), self.store(f"{layer}_bias", bias),
                        output=layer, kernel_shape=[size, size], strides=[stride, stride],
                        pads=[before, before, rows - before, rows - before],
                        group=len(kernel) if layer.endswith("_depthwise") else 1)

    def model(self, inputs, outputs):
        graph = helper.make_graph(self._nodes, "efficientnet_lite0", [inputs], [outputs], self._stored)
        return helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)],
                                 producer_name="wsdhq")
