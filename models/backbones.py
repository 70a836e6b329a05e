"""Networks that turn an image into its embedding, one file each: found by name, or told by the layers of weights.

A backbone is a module with

    LAYERS         `{layer: shape of its kernel}`, in the order of the layers; the last is `layers.LAST`
    SIDE           pixels of the square crop that it sees
    INPUT          type and shape of one input: uint8 (SIDE, SIDE, 3), BGR; scale and mean are the network's own
    FEATURES       how many numbers its last layer sees
    CROPS          crops of an image that are embedded unless told otherwise, as of `encoder.crops_of`
    CROPS_AT_ONCE  crops a run of the graph on a CPU, where it is fastest so
    resize         function of a decoded image, uint8 (h, w, 3), that gives the image it crops, uint8 (256, 256, 3)
    features       function of inputs (B, …), of variables and of a dropout: what the last layer sees, float32
                   (B, FEATURES), and `{layer: output before its activation}`

A new one is a new file and an entry in BACKBONES. `head.Head` is the last layer alone, a network on fixed features.
"""
from models import alexnet, efficientnet_lite0
from models.layers import LAST
from storage.arrays import ENTRIES

BACKBONES = {"alexnet": alexnet, "efficientnet_lite0": efficientnet_lite0}


def find(name):
    """The backbone called `name`, a key of BACKBONES."""
    return BACKBONES[name]


def name_of(backbone):
    """The name that finds it."""
    return next(name for name, module in BACKBONES.items() if module is backbone)


def of_weights(weights):
    """The backbone that shares the most layers with `weights`, `{layer: [kernel, bias]}`; None if these are the last
    layer alone, as of a training on features from elsewhere."""
    if weights.keys() - ENTRIES == {LAST}:
        return None
    return max(BACKBONES.values(), key=lambda backbone: len(backbone.LAYERS.keys() & weights.keys()))
