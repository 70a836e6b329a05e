"""EfficientNet-Lite0 as a graph in ONNX, from the tensors in PyTorch's file.

EfficientNet (Tan and Le 2019) without squeeze-and-excitation and with ReLU6, up to the mean over height and width after
the head; the classifier is left out. Batch normalisation is folded into the convolution before it, and the exchange of
red and blue into the stem's kernel. PyTorch and ONNX both keep kernels as (O, I, H, W), with I the channels of one
group, which is 1 in a depthwise convolution.
"""
import numpy as np

from models.make_encoder import GraphWriter
from util import UserError

OUTPUT = "features"
SIDE = 224  # pixels of the images
CENTRE, SCALE = 127, 128  # of pixel values
EPSILON = 1e-3  # of batch normalisation, as EfficientNet was trained
STEM_CHANNELS, FEATURES = 32, 1280
STAGES = (  # repeats, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320))
STRIDES = {f"block{number}": stride for number, stride in enumerate(
    (stride if repeat == 0 else 1 for repeats, _, stride, _, _ in STAGES for repeat in range(repeats)), 1)}


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

    Its nodes are plain (Conv, Clip, Add, GlobalAveragePool), so that ONNX Runtime can quantize it. A layer's output
    before its activation has the layer's name.
    """
    graph = GraphWriter()
    zero, six = graph.stored(np.float32(0)), graph.stored(np.float32(6))

    def convolve(x, layer, stride=1):
        """SAME padding as in TensorFlow: with stride 2, where every map has an even size, k − 2 rows are added, the odd
        one at the end, otherwise k − 1."""
        kernel, bias = weights[layer]
        rows = kernel.shape[2] - stride
        return graph.convolution(x, kernel, bias, (rows // 2, rows - rows // 2), stride,
                                 len(kernel) if layer.endswith("_depthwise") else 1, output=layer)

    def relu6(x):
        return graph.node("Clip", x, zero, six)

    border = graph.stored(np.array([0, 0, 0, 0, 0, 1, 1, 0], np.int64))  # a row and a column at the end
    x = graph.node("Pad", "images", border, graph.stored(np.uint8(CENTRE)))
    kernel, bias = weights["stem"]
    kernel = kernel / np.float32(SCALE)  # (x − CENTRE) / SCALE, taken into the kernel and the bias
    bias = bias - CENTRE * kernel.sum((1, 2, 3))
    x = relu6(graph.convolution(graph.pixels(x), kernel, bias, stride=2, output="stem"))  # (N, 32, 112, 112)
    channels = STEM_CHANNELS
    for block, stride in STRIDES.items():
        inputs = x
        if f"{block}_expand" in LAYERS:
            x = relu6(convolve(x, f"{block}_expand"))
        x = relu6(convolve(x, f"{block}_depthwise", stride))
        x = convolve(x, f"{block}_project")
        if stride == 1 and LAYERS[f"{block}_project"][0] == channels:
            x = graph.node("Add", x, inputs, output=block)
        channels = LAYERS[f"{block}_project"][0]
    x = relu6(convolve(x, "head"))  # (N, 1280, 7, 7)
    graph.node("Flatten", graph.node("GlobalAveragePool", x), output=OUTPUT)
    return graph.model(SIDE, FEATURES)
