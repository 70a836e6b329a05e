"""AlexNet as the public weights lay it out: its layers, what a file says of them, and holding one against the other.

What belongs here: what the readers of all formats share. The shapes are those of Caffe and ONNX.
"""
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from util import UserError

# layer: shape of its kernel in Caffe and ONNX
SHAPES = {"conv1": (96, 3, 11, 11), "conv2": (256, 48, 5, 5), "conv3": (384, 256, 3, 3), "conv4": (384, 192, 3, 3),
          "conv5": (256, 192, 3, 3), "fc6": (4096, 9216), "fc7": (4096, 4096)}
FC6_MAP = (256, 6, 6)  # what fc6 reads: channels, rows, columns
POOLING = {"kind": "max", "size": 3, "stride": 2, "pad": 0}
NORMALISATION = {"across": "channels", "size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1}  # alpha is divided by size


class Layer(NamedTuple):
    """A layer that matters, from any format. arrays: kernel (O, I, H, W) or (O, I) and bias (O,)."""
    kind: str  # convolution, normalisation, pooling or inner product
    name: str
    settings: dict  # in the words of `network`
    arrays: list


@dataclass(frozen=True)
class Source:
    """Weights as their file holds them.

    format: npy, caffe or onnx; weights: `{layer: [kernel, bias]}` of float32 in the layout of the format;
    normalises_first: before it pools, None if the file does not say; model: the ONNX model; has_fc8: the public files
    have one, what was converted already has none.
    """
    format: str
    weights: dict
    normalises_first: bool | None
    model: Any = None
    has_fc8: bool = True


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
    """Match the layers of a file with the network's.

    Args:
        layers: Layers in the order of the file.
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
    """The layers up to the second inner product; what follows is not read."""
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


def same(values):
    """The number that all values of a list are equal to; anything else is returned as it is."""
    return values[0] if isinstance(values, list) and len(set(values)) == 1 else values
