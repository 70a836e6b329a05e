"""Reads Caffe models (`.caffemodel`) without Caffe: what AlexNet needs of Caffe's protobuf messages, and no more.

Field numbers and defaults are those of Caffe's published file format. Both generations of it are read: `layers` with
numbered types (what bvlc_alexnet.caffemodel holds) and `layer` with named types; blobs with a shape of their own and
with the old num, channels, height, width. Fields that are not named here are skipped.
"""
import math

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from prepare.weights_layout import Layer, Source, match, same
from util import UserError

KIND = "a Caffe model"
# message: {field: (number, type, value where it is missing)}; a list says that it repeats
MESSAGES = {
    "BlobShape": {"dim": (1, ["int64"], None)},
    # packed floats and raw bytes look alike in the file; as bytes, NumPy takes 60 million of them at once
    "Blob": {"num": (1, "int64", 0), "channels": (2, "int64", 0), "height": (3, "int64", 0), "width": (4, "int64", 0),
             "data": (5, ["bytes"], None), "shape": (7, "BlobShape", None), "double_data": (8, ["bytes"], None)},
    "Convolution": {"pad": (3, ["uint32"], None), "group": (5, "uint32", 1), "stride": (6, ["uint32"], None),
                    "pad_h": (9, "uint32", 0), "pad_w": (10, "uint32", 0), "stride_h": (13, "uint32", 1),
                    "stride_w": (14, "uint32", 1), "dilation": (18, ["uint32"], None)},
    "Pooling": {"pool": (1, "int32", 0), "kernel_size": (2, "uint32", 0), "stride": (3, "uint32", 1),
                "pad": (4, "uint32", 0)},
    "LRN": {"local_size": (1, "uint32", 5), "alpha": (2, "float", 1), "beta": (3, "float", 0.75),
            "norm_region": (4, "int32", 0), "k": (5, "float", 1)},
    "InnerProduct": {"transpose": (6, "bool", "false")},
    "OldLayer": {"name": (4, "bytes", None), "type": (5, "int32", 0), "blobs": (6, ["Blob"], None),
                 "convolution_param": (10, "Convolution", None), "inner_product_param": (17, "InnerProduct", None),
                 "lrn_param": (18, "LRN", None), "pooling_param": (19, "Pooling", None)},
    "NewLayer": {"name": (1, "bytes", None), "type": (2, "bytes", None), "blobs": (7, ["Blob"], None),
                 "convolution_param": (106, "Convolution", None), "inner_product_param": (117, "InnerProduct", None),
                 "lrn_param": (118, "LRN", None), "pooling_param": (121, "Pooling", None)},
    "Net": {"layers": (2, ["OldLayer"], None), "layer": (100, ["NewLayer"], None)},
}
KINDS = {4: "convolution", 14: "inner product", 15: "normalisation", 17: "pooling",
         b"Convolution": "convolution", b"InnerProduct": "inner product", b"LRN": "normalisation",
         b"Pooling": "pooling"}


def read_source(path):
    """The Source in a Caffe model. Raises UserError."""
    return Source("caffe", *match(path, read_layers(path)))


def read_layers(path):
    """Yield the Layers of a Caffe model in the order of the file. Raises UserError."""
    net = parse(path)
    for layer in net.layers or net.layer:
        kind = KINDS.get(layer.type)
        if kind is not None:
            name = layer.name.decode(errors="replace")
            arrays = [blob_array(path, name, blob) for blob in layer.blobs]
            if kind == "inner product" and layer.inner_product_param.transpose:
                arrays[:1] = [array.reshape(array.shape[-2:]).T for array in arrays[:1]]
            yield Layer(kind, name, layer_settings(kind, layer), arrays)


def parse(path):
    """The Net in a file."""
    net = message_class("Net")()
    try:
        net.ParseFromString(path.read_bytes())
    except DecodeError:
        raise UserError(f"{path}: expected a Caffe model, found a damaged or truncated file, or one that is neither "
                        "a TensorFlow .npy file nor a Caffe nor an ONNX model") from None
    return net


def message_class(name):
    """The Python class of a message in MESSAGES."""
    file = descriptor_pb2.FileDescriptorProto(name="caffemodel", package="caffemodel", syntax="proto2")
    for message, fields in MESSAGES.items():
        described = file.message_type.add(name=message)
        for field, (number, kind, default) in fields.items():
            add_field(described, field, number, kind, default)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffemodel.{name}"))


def add_field(message, name, number, kind, default):
    """Describe a field of a message; arguments as in MESSAGES."""
    field = message.field.add(name=name, number=number)
    field.label = field.LABEL_REPEATED if isinstance(kind, list) else field.LABEL_OPTIONAL
    kind = kind[0] if isinstance(kind, list) else kind
    if kind in MESSAGES:
        field.type, field.type_name = field.TYPE_MESSAGE, f".caffemodel.{kind}"
    else:
        field.type = getattr(field, f"TYPE_{kind.upper()}")
    if default is not None:
        field.default_value = str(default)


def blob_array(path, name, blob):
    """A blob as float32 or float64 with the shape that the file gives it."""
    old_shape = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else old_shape
    data = b"".join(blob.data) or b"".join(blob.double_data)
    dtype = np.dtype("<f4" if blob.data else "<f8")
    if min(shape, default=0) < 0 or len(data) != math.prod(shape) * dtype.itemsize:
        raise UserError(f"{path}: expected {shape} packed float32 or float64 values in {name!r}, found "
                        f"{len(data) // dtype.itemsize:,} (half-precision and quantised models are not read)")
    return np.frombuffer(data, dtype).reshape(shape)


def layer_settings(kind, layer):
    """`{name: value}` of a layer, in the words of `layout.network`."""
    if kind == "convolution":
        values = layer.convolution_param
        return {"stride": same(list(values.stride) or [values.stride_h, values.stride_w]),
                "pad": same(list(values.pad) or [values.pad_h, values.pad_w]), "groups": values.group,
                "dilation": same(list(values.dilation) or [1])}
    if kind == "pooling":
        values = layer.pooling_param
        return {"kind": "max" if values.pool == 0 else "not max", "size": values.kernel_size, "stride": values.stride,
                "pad": values.pad}
    if kind == "normalisation":
        values = layer.lrn_param
        return {"across": "channels" if values.norm_region == 0 else "places", "size": values.local_size,
                "alpha": values.alpha, "beta": values.beta, "bias": values.k}
    return {"factors": [1, 1]}
