"""Image encoders in ONNX, written node by node, and their records."""
import numpy as np
from onnx import TensorProto, helper

from models.encoder import ImageEncoder
from models.make_encoder import IR_VERSION, OPSET, GraphWriter
from storage.files import fingerprint, write_json
from util import stream

SEEN = {"size": 32, "resize": 40, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}  # of a photo by the tiny encoder
SHAPE = ("N", 3, 32, 32)
WIDTH = 12  # features of the tiny encoder


class Writer(GraphWriter):
    """A graph that is written with inputs and outputs of any kind."""

    def write(self, path, shape=SHAPE, outputs=("features",), kind=TensorProto.FLOAT, inputs=("images",),
              result=TensorProto.FLOAT):
        """The graph as a model, whose inputs have this shape."""
        graph = helper.make_graph(
            self.nodes, "encoder", [helper.make_tensor_value_info(name, kind, list(shape)) for name in inputs],
            [helper.make_tensor_value_info(name, result, None) for name in outputs], self.weights)
        path.write_bytes(helper.make_model(graph, ir_version=IR_VERSION,
                                           opset_imports=[helper.make_opsetid("", OPSET)]).SerializeToString())
        return path


def tiny_graph(seed=0, channels_first=True, bgr=False, pooled=True):
    """A Writer that holds a convolution of 8×8 pixels and a ReLU, of which `features` is the mean.

    Without `pooled` the maps of features, which have the axes in the order of the images'.
    """
    rng, graph = stream(seed, "tiny encoder"), Writer()
    kernel = rng.normal(0, 0.2, (WIDTH, 3, 8, 8)).astype(np.float32)
    x = "images" if channels_first else graph.node("Transpose", "images", perm=[0, 3, 1, 2])
    x = graph.node("Relu", graph.convolution(x, kernel[:, ::-1] if bgr else kernel,
                                             rng.normal(size=WIDTH).astype(np.float32), stride=8))
    if pooled:
        graph.node("GlobalAveragePool", x, output="features")
    else:
        graph.node("Transpose", x, output="features", perm=[0, 1, 2, 3] if channels_first else [0, 2, 3, 1])
    return graph


def write_tiny(path, shape=SHAPE, **options):
    """The same as a model."""
    return tiny_graph(**options).write(path, shape)


def describe(path, **record):
    """Write the record of an encoder in the file `path`, and return the path."""
    write_json(path.with_suffix(".json"), {**SEEN, **record, "sha256": {path.name: fingerprint(path)}})
    return path


def tiny_encoder(path, seed=0):
    """The tiny encoder, written to `path`, as an ImageEncoder."""
    return ImageEncoder(describe(write_tiny(path, seed=seed)))
