"""The backbone: EfficientNet-Lite0 with a 300-d tanh embedding on top.

EfficientNet (Tan and Le 2019) without squeeze-and-excitation and with ReLU6. Batch normalisation is folded into the
kernels and biases, as prepare/efficientnet.py writes them.

Weights are `{layer: [kernel, bias]}` of float32 arrays in TensorFlow's layouts, as in `efficientnet_lite0.npy`.
"""
from models.layers import LAST
from models.session import tf
from storage.images import IMAGE_SIDE, resize_evenly
from util import DIMENSIONS

SIDE = 224  # pixels of the crop that it sees
INPUT = tf.uint8, (SIDE, SIDE, 3)
CROPS, CROPS_AT_ONCE = 1, 16
CENTRE, SCALE = 127, 128  # of pixel values
STEM, HEAD = "stem", "head"
STEM_CHANNELS, FEATURES = 32, 1280
STAGES = (  # repeats, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320))
STRIDES = {f"block{number}": stride for number, stride in enumerate(
    (stride if repeat == 0 else 1 for repeats, _, stride, _, _ in STAGES for repeat in range(repeats)), 1)}


def layer_shapes():
    """`{layer: shape of its kernel}`: height, width, input channels of one group, filters; or inputs, outputs.

    A depthwise kernel has one input channel in each group, and as many groups as filters.
    """
    shapes, inputs, number = {STEM: (3, 3, 3, STEM_CHANNELS)}, STEM_CHANNELS, 0
    for repeats, size, _, expansion, outputs in STAGES:
        for _ in range(repeats):
            number, expanded = number + 1, inputs * expansion
            if expansion > 1:
                shapes[f"block{number}_expand"] = (1, 1, inputs, expanded)
            shapes[f"block{number}_depthwise"] = (size, size, 1, expanded)
            shapes[f"block{number}_project"] = (1, 1, expanded, outputs)
            inputs = outputs
    return {**shapes, HEAD: (1, 1, inputs, FEATURES), LAST: (FEATURES, DIMENSIONS)}


LAYERS = layer_shapes()


# ---------------------------------------------------------------- images

def resize(image):
    """A decoded image as this backbone wants it, uint8 (h, w, 3) to uint8 (256, 256, 3), channels in the same order."""
    return resize_evenly(image, IMAGE_SIDE)


# ---------------------------------------------------------------- the network

def features(images, variables, dropout=lambda x, index: x):
    """What the last layer sees, float32 (B, 1280), and `{layer: output before its activation}` of the layers below.

    Args:
        images: uint8 (B, 224, 224, 3), BGR.
        variables: `{layer: [kernel, bias]}`.
        dropout: function of a tensor and its number (0, of the features).
    """
    before = {}

    def convolve(x, layer, stride=1):
        kernel, bias = variables[layer]
        before[layer] = tf.nn.bias_add(tf.nn.conv2d(x, kernel, stride, "SAME"), bias)
        return before[layer]

    def convolve_depthwise(x, layer, stride):
        kernel, bias = variables[layer]
        size, _, _, channels = LAYERS[layer]
        filters = tf.reshape(kernel, (size, size, channels, 1))  # TensorFlow's axes of a depthwise kernel
        before[layer] = tf.nn.bias_add(
            tf.nn.depthwise_conv2d(x, filters, (1, stride, stride, 1), "SAME"), bias)
        return before[layer]

    x = (tf.cast(tf.reverse(images, [3]), tf.float32) - CENTRE) / SCALE  # (B, 224, 224, 3), RGB
    x = tf.nn.relu6(convolve(x, STEM, 2))  # (B, 112, 112, 32)
    for block, stride in STRIDES.items():
        inputs = x
        if f"{block}_expand" in LAYERS:
            x = tf.nn.relu6(convolve(x, f"{block}_expand"))
        x = tf.nn.relu6(convolve_depthwise(x, f"{block}_depthwise", stride))
        x = convolve(x, f"{block}_project")
        if stride == 1 and x.shape[3] == inputs.shape[3]:
            x += inputs
    x = tf.nn.relu6(convolve(x, HEAD))  # (B, 7, 7, 1280)
    return dropout(tf.reduce_mean(x, (1, 2)), 0), before
