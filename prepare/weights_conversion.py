"""Public AlexNet weights become alexnet.npy: the layouts and channels are changed, and the result is checked.

Layouts. Caffe and ONNX keep kernels as (O, I, H, W) and (O, I) and flatten a map channel by channel; this network wants
(H, W, I, O) and (I, O) and flattens row, column, channel, so fc6's rows change places. Groups need nothing: both sides
cut inputs and outputs into halves in the same order. `bvlc_alexnet.npy` has TensorFlow's layouts already.

Channels. The public weights, in all three formats, learned from Caffe's images: B, G, R, less ImageNet's mean of each.
The release turns its images, which are BGR as OpenCV reads them, around to RGB and then subtracts (103.939, 116.779,
123.68), which is the mean in the order B, G, R. Whoever wrote that meant to feed BGR: the file it was written for has
Caffe's BGR kernels, and in the release the blue kernels look at red. `--channels keep` leaves that as it is: the
conditions of the release's figures, and for an `.npy` the same as using it unconverted. `--channels reverse`, the
default, reverses conv1's input channels and moves the difference of the means into its bias. conv1 pads nothing, so
that is exact: the network then computes from this project's input what the source computes from B, G, R less
ImageNet's mean.

Order of layers. bvlc_alexnet normalises before it pools; the release's network, and so this one, pools first, as
CaffeNet (bvlc_reference_caffenet) does. Weights cannot make up for that: those of CaffeNet fit exactly, those of
bvlc_alexnet nearly, and the difference is measured and printed.
"""
import numpy as np

from models import alexnet, layers
from models.session import open_session, tf
from prepare.plain_network import plain_fc7
from storage.arrays import write_weights
from storage.files import fingerprint
from util import UserError, stream

FC6_MAP = (256, 6, 6)  # what fc6 reads: channels, rows, columns
# ImageNet's mean of blue, green and red as Caffe subtracts it (the mean of ilsvrc_2012_mean.npy)
CAFFE_MEAN = (104.00698793, 116.66876762, 122.67891434)

CHECK_IMAGES = 2
LARGEST_DIFFERENCE = 1e-3  # between source and network, in parts of the largest value of fc7


def write_converted(args, reader):
    """Read the source, convert and check it, and write the target.

    `reader`: the module that reads the format: caffemodel, onnx_model or tensorflow_npy.
    """
    source = reader.read_source(args.source)
    print(f"read {args.source}, {reader.KIND}, SHA-256 {fingerprint(args.source)}")
    channels = chosen_channels(args.source, source, args.channels)
    weights = convert(source, channels)
    report_conversion(source, channels)
    if args.check:
        check(args.source, source, weights, channels, reader)
    elif source.normalises_first is not False:
        print(f"warning: {order_of(source)}")
    write_weights(args.target, weights, {"source": args.source.name, "source_sha256": fingerprint(args.source),
                                         "format": source.format, "channels": channels})
    print(f"wrote {args.target}, SHA-256 {fingerprint(args.target)}")


# ---------------------------------------------------------------- conversion

def chosen_channels(path, source, channels):
    """`--channels`, or its default, which must not reverse channels that were reversed before."""
    if channels is None and not source.has_fc8:
        raise UserError(f"{path}: expected bvlc_alexnet.npy with its fc8, found a file without, which may have been "
                        "converted already; --channels keep or --channels reverse says what to do")
    return channels or "reverse"


def convert(source, channels):
    """`{layer: [kernel, bias]}` for this network."""
    weights = {name: [network_kernel(source.format, name, kernel), bias]
               for name, (kernel, bias) in source.weights.items()}
    if channels == "reverse":
        kernel, bias = weights["conv1"]
        kernel = kernel[:, :, ::-1]  # now R, G, B
        shift = np.array(alexnet.MEAN) - np.array(CAFFE_MEAN[::-1])  # what the network subtracts too much
        weights["conv1"] = [kernel, bias + np.einsum("hwio,i->o", kernel.astype(np.float64), shift)]
    weights = {name: [np.ascontiguousarray(array, np.float32) for array in pair] for name, pair in weights.items()}
    return layers.check_weights(weights, alexnet.LAYERS, "the conversion")


def network_kernel(source_format, name, kernel):
    """A kernel in this network's layout."""
    if source_format == "npy":
        return kernel
    if kernel.ndim == 4:
        return kernel.transpose(2, 3, 1, 0)
    if name == "fc6":
        kernel = kernel.reshape(-1, *FC6_MAP).transpose(0, 2, 3, 1).reshape(kernel.shape)
    return kernel.T


def report_conversion(source, channels):
    """Print what was done to the layers."""
    layout = "layouts were TensorFlow's already" if source.format == "npy" else (
        "kernels from (O, I, H, W) to (H, W, I, O), fc6's rows from channel, row, column to row, column, channel")
    conv1 = ("conv1's BGR kernels reversed to RGB, the difference of the means moved into its bias"
             if channels == "reverse" else "conv1's channels kept: BGR kernels see RGB, as in the release")
    print(f"{layout}; {conv1}; fc8 left out, training starts it afresh")


# ---------------------------------------------------------------- the check

@np.errstate(all="ignore")  # what overflows is a difference, and refused as one
def check(path, source, weights, channels, reader):
    """Compare fc7 of the converted network with the source's on seeded images. Raises UserError if they differ."""
    images = seeded_images()
    inputs = source_inputs(images, channels)
    evaluator, evaluate = source_evaluator(path, source, reader)
    expected = evaluate(inputs, False)
    difference = relative_difference(network_fc7(images, weights), expected)
    if not difference <= LARGEST_DIFFERENCE:
        raise UserError(f"{path}: expected the converted network's fc7 to be the source's as {evaluator} computes it, "
                        f"found a difference of {difference:.2g} of the largest value; nothing was written")
    print(f"check: fc7 of {CHECK_IMAGES} images as {evaluator} computes it from the source's weights in this network's "
          f"order of layers; largest difference {difference:.1e} of the largest value")
    if source.normalises_first is not False:
        order = relative_difference(expected, evaluate(inputs, True))
        print(f"warning: {order_of(source)}; on the check's images that moves fc7 by up to {order:.1%} of the largest "
              "value")


def order_of(source):
    """A warning for a source that normalises, or may normalise, before it pools."""
    if source.normalises_first:
        return "the source normalises before it pools, this network afterwards"
    return ("an .npy file does not tell the order of its layers; bvlc_alexnet normalises before it pools, this network "
            "afterwards")


def seeded_images():
    """Blocks of colour under noise, uint8 (CHECK_IMAGES, 227, 227, 3), BGR."""
    rng = stream(0, "images of the check")
    blocks = rng.integers(0, 256, (CHECK_IMAGES, 8, 8, 3)).repeat(29, 1).repeat(29, 2)[:, :227, :227]
    return np.clip(blocks + rng.integers(-20, 21, blocks.shape), 0, 255).astype(np.uint8)


def source_inputs(images, channels):
    """What conv1 of the source reads for BGR images, float32 (B, 227, 227, 3): as in Caffe, or as in the release."""
    if channels == "reverse":
        return images.astype(np.float32) - np.float32(CAFFE_MEAN)
    return images[..., ::-1].astype(np.float32) - np.float32(alexnet.MEAN)


def relative_difference(found, expected):
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def network_fc7(images, weights):
    """fc7 before its ReLU as this project's network computes it, float32 (B, 4096)."""
    last = alexnet.LAYERS[alexnet.LAST]
    weights = {**weights, alexnet.LAST: [np.zeros(last, np.float32), np.zeros(last[-1], np.float32)]}
    with tf.Graph().as_default() as graph, open_session(graph) as session, tf.device("/cpu:0"):
        variables, first_values = layers.make_variables(alexnet.LAYERS, ())
        _, before = layers.embed(alexnet, tf.constant(images), variables)
        session.run(tf.global_variables_initializer(), layers.feed_weights(first_values, weights))
        return session.run(before["fc7"])


def source_evaluator(path, source, reader):
    """What evaluates a source, in words, and the function (inputs, normalises_first) -> fc7 that does."""
    if source.format == "onnx":
        if reader.onnxruntime:
            return "ONNX Runtime", lambda inputs, first: reader.runtime_fc7(path, source, inputs, first)
        print("note: onnxruntime is not installed, NumPy evaluates the source in its place")
    return "NumPy", lambda inputs, first: np.stack([plain_fc7(source, x, first) for x in inputs])
