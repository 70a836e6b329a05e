"""Networks that turn an image into its embedding, one file each: found by name, or told by the layers of weights.

A backbone is a module with

    LAYERS   `{layer: shape of its kernel}`, in the order of the layers; the last is `layers.LAST`
    SIDE     pixels of the square crop that it sees
    embed    function of crops, uint8 (B, SIDE, SIDE, 3), BGR, of variables and of a dropout, that gives the embeddings
             r, float32 (B, D), and `{layer: output before its activation}`; the input's scale and mean are its own

A new one is a new file and an entry in BACKBONES.
"""
from backbones import alexnet

BACKBONES = {"alexnet": alexnet}


def find(name):
    """The backbone called `name`, a key of BACKBONES."""
    return BACKBONES[name]


def of_weights(weights):
    """The backbone that shares the most layers with `weights`, `{layer: [kernel, bias]}`."""
    return max(BACKBONES.values(), key=lambda backbone: len(backbone.LAYERS.keys() & weights.keys()))
