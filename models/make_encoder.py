"""Image encoders that are made here: AlexNet's checkpoint in ONNX, and any encoder in eight bits.

This module needs the package `onnx`; the others of this folder do not.
"""
import msgspec
import numpy as np

from models.checkpoint import CROP_SIDE, CROPS, LRN, MEAN
from models.encoder import NEEDED, ImageEncoder, encoder_next_to, was_made_from
from storage.files import exclusive_lock, with_checksums
from storage.images import IMAGE_SIDE, map_photos
from util import UserError, cores, one_line, stream

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
except ImportError:  # optional: the extra `encoders`
    raise UserError(NEEDED) from None

OPSET, IR_VERSION = 17, 8
CALIBRATED_ON = 256  # photos by whose activations the eight bits are scaled


class GraphWriter:
    """Collects the nodes and weights of a graph; every method adds one and returns the name of its output."""

    def __init__(self):
        self.nodes, self.weights = [], []

    def stored(self, array):
        """A constant."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, operator, *inputs, output=None, **attributes):
        output = output or f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def pixels(self, images="images"):
        """Images, uint8 (N, side, side, 3), as floats with channels first."""
        return self.node("Transpose", self.node("Cast", images, to=TensorProto.FLOAT), perm=[0, 3, 1, 2])

    def convolution(self, x, kernel, bias, pads=(0, 0), stride=1, groups=1, output=None):
        """kernel: (filters, channels of a group, height, width); pads: before and after, of rows and columns alike."""
        return self.node("Conv", x, self.stored(kernel), self.stored(bias), output=output,
                         kernel_shape=list(kernel.shape[2:]), pads=[pads[0]] * 2 + [pads[1]] * 2,
                         strides=[stride, stride], group=groups)

    def model(self, side, width):
        """The graph from `images` to `features`, float32 (N, width)."""
        images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", side, side, 3])
        features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", width])
        graph = helper.make_graph(self.nodes, "encoder", [images], [features], self.weights)
        return helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])


def write_encoder(path, model, record):
    """Write an ONNX model and its record, without its SHA-256, next to it."""
    with with_checksums(path.with_suffix(".json"), record, path) as (temporary,):
        onnx.save(model, temporary)


# ---------------------------------------------------------------- AlexNet

def export_alexnet(path, checkpoint):
    """Write the encoder of a checkpoint with AlexNet next to it, unless it is there.

    Args:
        path: of the checkpoint's file.
        checkpoint: its Checkpoint.
    """
    target = encoder_next_to(path)
    if was_made_from(checkpoint.sha256, target):
        return
    write_encoder(target, alexnet_model(checkpoint.weights), {
        "size": CROP_SIDE, "resize": IMAGE_SIDE, "stretch": True, "bilinear": True, "bgr": True, "layer": "features",
        "crops": CROPS, "source": checkpoint.sha256})


def alexnet_model(weights):
    """AlexNet up to fc7 as an ONNX model, of `{layer: [kernel, bias]}` in TensorFlow's layouts."""
    graph = GraphWriter()

    def convolve(x, kernel, bias, pad=0, stride=1, groups=1):
        kernel = kernel.transpose(3, 2, 0, 1)  # from TensorFlow's layout
        return graph.node("Relu", graph.convolution(x, kernel, bias, (pad, pad), stride, groups))

    def pool(x):
        return graph.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])

    def normalise(x, maps):
        """x / (bias + alpha·Σ x²)^¾ over near maps; the sum is a convolution, far quicker than ONNX's LRN."""
        distance = np.abs(np.subtract.outer(np.arange(maps), np.arange(maps)))
        near = (distance <= LRN["radius"]) * np.float32(LRN["alpha"])  # (maps, maps)
        bias = np.full(maps, LRN["bias"], np.float32)
        total = graph.convolution(graph.node("Mul", x, x), near[..., None, None], bias)
        root = graph.node("Sqrt", total)
        return graph.node("Div", x, graph.node("Mul", root, graph.node("Sqrt", root)))

    def connect(x, kernel, bias, output=None):
        product = graph.node("Gemm", x, graph.stored(kernel), graph.stored(bias))
        return graph.node("Relu", product, output=output)

    conv1 = weights["conv1"][0][:, :, ::-1]  # photos come as BGR
    shift = np.einsum("hwcf,c->f", conv1, np.float32(MEAN[::-1]))  # the mean is taken off within the bias
    x = pool(convolve(graph.pixels(), conv1, weights["conv1"][1] - shift, stride=4))
    x = pool(convolve(normalise(x, conv1.shape[3]), *weights["conv2"], pad=2, groups=2))
    x = convolve(normalise(x, weights["conv2"][0].shape[3]), *weights["conv3"], pad=1)
    x = convolve(x, *weights["conv4"], pad=1, groups=2)
    x = pool(convolve(x, *weights["conv5"], pad=1, groups=2))
    x = graph.node("Flatten", x)  # by channel, row, column
    kernel, bias = weights["fc6"]
    maps = weights["conv5"][0].shape[3]
    side = round((len(kernel) / maps) ** 0.5)
    by_channel = kernel.reshape(side, side, maps, -1).transpose(2, 0, 1, 3)  # TensorFlow's is by row
    x = connect(x, by_channel.reshape(kernel.shape), bias)
    connect(x, *weights["fc7"], output="features")
    return graph.model(CROP_SIDE, weights["fc7"][1].shape[0])


# ---------------------------------------------------------------- eight bits

def is_convolutional(path):
    """Whether a model's work is mostly convolutions, and its numbers are not in eight bits already."""
    operators = [node.op_type for node in onnx.load(path).graph.node]
    products = sum(operators.count(name) for name in ("MatMul", "Gemm", "Attention", "MultiHeadAttention"))
    return operators.count("Conv") > products and "QuantizeLinear" not in operators


def training_encoder(path, eight_bit, photos, as_float, seed, gpu):
    """The ImageEncoder in the file `path`; a convolutional one in eight bits, in the file `eight_bit`, unless
    `as_float`. `photos`: N paths, on some of which it is calibrated. Raises UserError."""
    encoder = ImageEncoder(path, gpu)  # refuses any other file in a sentence
    if as_float or not is_convolutional(path):
        return encoder
    with exclusive_lock(eight_bit.with_name(f".{eight_bit.name}.lock"), f"{eight_bit}: another run calibrates it"):
        write_eight_bit(encoder, eight_bit, photos, seed)
    return ImageEncoder(eight_bit, gpu)


def write_eight_bit(encoder, target, photos, seed):
    """Write an ImageEncoder in eight bits, unless it is there: weights by output channel, activations in the range that
    they have on some of the photos.

    Args:
        target: ONNX file to write.
        photos: N paths.
    Raises UserError for photos that cannot be decoded.
    """
    if was_made_from(encoder.sha256, target):
        return
    rows = stream(seed, "calibration").permutation(len(photos))[:CALIBRATED_ON]
    record = {**msgspec.to_builtins(encoder.record), "source": encoder.sha256}
    with with_checksums(target.with_suffix(".json"), record, target) as (temporary,):
        prepared = temporary.with_suffix(".prepared")
        try:
            quant_pre_process(str(encoder.path), str(prepared), skip_symbolic_shape=True)
            quantize_static(str(prepared), str(temporary), Calibration(encoder, [photos[row] for row in rows]),
                            quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8,
                            activation_type=QuantType.QUInt8)
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no class in common
            raise UserError(f"{encoder.path}: ONNX Runtime does not make eight bits of this model ({one_line(error)}); "
                            "--float runs it as it is") from error
        finally:
            prepared.unlink(missing_ok=True)


class Calibration(CalibrationDataReader):
    """What an encoder sees of the centres of photos, in blocks, as the quantization asks for it."""

    def __init__(self, encoder, photos):
        self._blocks = ({encoder.input_name: block} for _, block, _ in map_photos(
            lambda images: encoder.inputs(images, 1), photos, encoder.resize, encoder.at_once(1), cores(),
            "calibrating the encoder"))

    def get_next(self):
        return next(self._blocks, None)
