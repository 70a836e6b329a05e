"""AlexNet with a 300-d tanh embedding on top (section 5 of the method).

Weights are `{layer: [kernel, bias]}` of float32 arrays in TensorFlow's layouts, as in `alexnet.npy`.
"""
from models.layers import LAST
from models.session import tf
from storage.images import resize_bilinearly
from util import DIMENSIONS

# layer: shape of its kernel (height, width, channels of one group, filters), or (inputs, outputs)
LAYERS = {
    "conv1": (11, 11, 3, 96), "conv2": (5, 5, 48, 256), "conv3": (3, 3, 256, 384),
    "conv4": (3, 3, 192, 384), "conv5": (3, 3, 192, 256),
    "fc6": (9216, 4096), "fc7": (4096, 4096), LAST: (4096, DIMENSIONS),
}
# The mean of ImageNet's blue, green and red, which the release takes off red, green and blue: its checkpoints need it.
MEAN = (103.939, 116.779, 123.68)
SIDE = 227  # pixels of the crop that it sees
INPUT = tf.uint8, (SIDE, SIDE, 3)
FEATURES = LAYERS[LAST][0]
CROPS, CROPS_AT_ONCE = 10, 40
resize = resize_bilinearly


def features(images, variables, dropout=lambda x, index: x):
    """What the last layer sees, float32 (B, 4096), and `{layer: output before its activation}` of the layers below.

    Args:
        images: uint8 (B, 227, 227, 3), BGR.
        variables: from `make_variables`.
        dropout: function of a tensor and its number (0 after fc6, 1 after fc7).
    """
    before = {}

    def convolve(x, layer, stride=1, padding="SAME", groups=1):
        kernel, bias = variables[layer]
        parts = [tf.nn.conv2d(part, filters, strides=stride, padding=padding)
                 for part, filters in zip(tf.split(x, groups, 3), tf.split(kernel, groups, 3), strict=True)]
        before[layer] = tf.nn.bias_add(tf.concat(parts, 3), bias)
        return tf.nn.relu(before[layer])

    def connect(x, layer):
        kernel, bias = variables[layer]
        before[layer] = tf.nn.bias_add(tf.matmul(x, kernel), bias)
        return before[layer]

    def pool(x):
        return tf.nn.max_pool2d(x, ksize=3, strides=2, padding="VALID")

    def normalise(x):
        return tf.nn.local_response_normalization(x, depth_radius=2, alpha=2e-5, beta=0.75, bias=1)

    x = tf.reverse(tf.cast(images, tf.float32), [3]) - MEAN  # (B, 227, 227, 3), RGB
    x = normalise(pool(convolve(x, "conv1", stride=4, padding="VALID")))  # (B, 27, 27, 96)
    x = normalise(pool(convolve(x, "conv2", groups=2)))  # (B, 13, 13, 256)
    x = convolve(x, "conv3")
    x = convolve(x, "conv4", groups=2)
    x = pool(convolve(x, "conv5", groups=2))  # (B, 6, 6, 256)
    x = tf.reshape(x, [-1, LAYERS["fc6"][0]])
    x = dropout(tf.nn.relu(connect(x, "fc6")), 0)
    return dropout(tf.nn.relu(connect(x, "fc7")), 1), before
