"""Image encoders in ONNX, written node by node with the `onnx` library."""
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from models import efficientnet_lite0 as lite0
from util import stream

OPSET = 17


class Writer:
    """Collects the nodes and weights of a graph; every method adds one and returns the name of its output."""

    def __init__(self):
        self.nodes, self.weights = [], []

    def stored(self, array):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, operator, *inputs, output=None, **options):
        output = output or f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **options))
        return output

    def convolution(self, x, kernel, bias, stride=1, groups=1):
        """SAME padding, as TensorFlow's: what is odd goes below and to the right. `kernel`: TensorFlow's layout."""
        return self.node("Conv", x, self.stored(kernel.transpose(3, 2, 0, 1)), self.stored(bias),
                         auto_pad="SAME_UPPER", strides=[stride, stride], group=groups)

    def relu6(self, x):
        return self.node("Clip", x, self.stored(np.float32(0)), self.stored(np.float32(6)))

    def write(self, path, shape, outputs=("features",), kind=TensorProto.FLOAT, inputs=("images",),
              result=TensorProto.FLOAT):
        """The graph as a model, whose inputs have this shape."""
        graph = helper.make_graph(
            self.nodes, "encoder", [helper.make_tensor_value_info(name, kind, shape) for name in inputs],
            [helper.make_tensor_value_info(name, result, None) for name in outputs], self.weights)
        path.write_bytes(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", OPSET)]
                                           ).SerializeToString())
        return path


def write_lite0(path, weights):
    """EfficientNet-Lite0 up to the mean over space. `weights`: `{layer: [kernel, bias]}`."""
    graph = Writer()
    x = graph.relu6(graph.convolution("images", *weights["stem"], stride=2))
    channels = lite0.STEM_CHANNELS
    for block, stride in lite0.STRIDES.items():
        inputs = x
        if f"{block}_expand" in weights:
            x = graph.relu6(graph.convolution(x, *weights[f"{block}_expand"]))
        kernel, bias = weights[f"{block}_depthwise"]
        x = graph.relu6(graph.convolution(x, kernel, bias, stride, groups=len(bias)))
        kernel, bias = weights[f"{block}_project"]
        x = graph.convolution(x, kernel, bias)
        if stride == 1 and len(bias) == channels:
            x = graph.node("Add", x, inputs)
        channels = len(bias)
    x = graph.relu6(graph.convolution(x, *weights["head"]))
    graph.node("GlobalAveragePool", x, output="features")  # (N, 1280, 1, 1)
    return graph.write(path, ["N", 3, 224, 224])


def tiny_graph(seed=0, channels_first=True, bgr=False, pooled=True):
    """A Writer that holds a convolution of 8×8 pixels and a ReLU, of which `features` is the mean.

    Without `pooled` the maps of features, which have the axes in the order of the images'.
    """
    rng, graph = stream(seed, "tiny encoder"), Writer()
    kernel = rng.normal(0, 0.2, (8, 8, 3, 12)).astype(np.float32)
    x = "images" if channels_first else graph.node("Transpose", "images", perm=[0, 3, 1, 2])
    x = graph.node("Relu", graph.convolution(x, kernel[:, :, ::-1] if bgr else kernel,
                                             rng.normal(size=12).astype(np.float32), stride=8))
    if pooled:
        graph.node("GlobalAveragePool", x, output="features")
    else:
        graph.node("Transpose", x, output="features", perm=[0, 1, 2, 3] if channels_first else [0, 2, 3, 1])
    return graph


def write_tiny(path, shape=("N", 3, 32, 32), **options):
    """The same as a model."""
    return tiny_graph(**options).write(path, list(shape))
