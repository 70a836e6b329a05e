"""AlexNet with a 300-d tanh embedding on top (section 5 of the method).

Weights are `{layer: [kernel, bias]}` of float32 arrays in TensorFlow's layouts, as in `alexnet.npy`.
"""
from models.checkpoint import ALEXNET, CROP_SIDE, LRN, MEAN
from models.session import tf

LAYERS = ALEXNET
INPUT = tf.uint8, (CROP_SIDE, CROP_SIDE, 3)


def features(images, variables, dropout=lambda x, index: x):
    """What the last layer sees, float32 (B, 4096), and `{layer: output before its activation}` of the layers below.

    Args:
        images: uint8 (B, 227, 227, 3), BGR.
        variables: from `layers.make_variables`.
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
        return tf.nn.local_response_normalization(x, LRN["radius"], LRN["bias"], LRN["alpha"], LRN["beta"])

    x = tf.reverse(tf.cast(images, tf.float32), [3]) - MEAN  # (B, 227, 227, 3), RGB
    x = normalise(pool(convolve(x, "conv1", stride=4, padding="VALID")))  # (B, 27, 27, 96)
    x = normalise(pool(convolve(x, "conv2", groups=2)))  # (B, 13, 13, 256)
    x = convolve(x, "conv3")
    x = convolve(x, "conv4", groups=2)
    x = pool(convolve(x, "conv5", groups=2))  # (B, 6, 6, 256)
    x = tf.reshape(x, [-1, LAYERS["fc6"][0]])
    x = dropout(tf.nn.relu(connect(x, "fc6")), 0)
    return dropout(tf.nn.relu(connect(x, "fc7")), 1), before
