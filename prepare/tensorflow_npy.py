"""Reads AlexNet weights from a `.npy` file of TensorFlow's, such as bvlc_alexnet.npy: a pickled dict of layers."""
from prepare.weights_layout import SHAPES, Source
from storage.arrays import read_weights
from util import UserError

KIND = "a TensorFlow .npy file"


def read_source(path):
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
