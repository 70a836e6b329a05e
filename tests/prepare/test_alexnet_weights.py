"""prepare/alexnet_weights.py on files in their real formats, written with onnx, protobuf and NumPy.

The expected values come from ONNX Runtime on a graph that is built here, and from this project's network on the
converted file. All formats hold the same seeded weights; fc6 and fc7 have fewer outputs than AlexNet's, for speed.
"""
import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import parity_inputs as parity
from models import alexnet, layers
from models.checkpoint import LAST
from models.session import open_session, tf
from pickle_writer import python2
from prepare import alexnet_conversion, alexnet_sources, alexnet_weights
from prepare.alexnet_sources import read_source
from storage.arrays import read_weights
from storage.files import fingerprint
from util import UserError, stream

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

REPO = Path(__file__).resolve().parents[2]
CAFFE_MEAN = np.float32([104.00698793, 116.66876762, 122.67891434])  # of blue, green, red
# layer: shape of its kernel, stride, padding, groups
CONVOLUTIONS = {"conv1": ((96, 3, 11, 11), 4, 0, 1), "conv2": ((256, 48, 5, 5), 1, 2, 2),
                "conv3": ((384, 256, 3, 3), 1, 1, 1), "conv4": ((384, 192, 3, 3), 1, 1, 2),
                "conv5": ((256, 192, 3, 3), 1, 1, 2)}
WIDTH = 64  # of fc6 and fc7, in place of 4096
PRODUCTS = {"fc6": (WIDTH, 9216), "fc7": (WIDTH, WIDTH), "fc8": (10, WIDTH)}
TAIL = ["conv3", "conv4", "conv5", "pool5", "fc6", "fc7", "fc8"]
POOL_FIRST = ["conv1", "pool1", "norm1", "conv2", "pool2", "norm2", *TAIL]
NORM_FIRST = ["conv1", "norm1", "pool1", "conv2", "norm2", "pool2", *TAIL]


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """This project's network and the formats' with fc6 and fc7 of WIDTH outputs."""
    with pytest.MonkeyPatch.context() as patch:
        for layer in ("fc6", "fc7"):
            patch.setitem(alexnet_sources.SHAPES, layer, PRODUCTS[layer])
            patch.setitem(alexnet.LAYERS, layer, PRODUCTS[layer][::-1])
        patch.setitem(alexnet.LAYERS, LAST, (WIDTH, 300))
        yield


@pytest.fixture(scope="module")
def weights():
    """`{layer: [kernel, bias]}` in the layout of Caffe and ONNX."""
    rng, found = stream(0, "weights to convert"), {}
    for name, shape in {**{name: shape for name, (shape, *_) in CONVOLUTIONS.items()}, **PRODUCTS}.items():
        kernel = rng.standard_normal(shape, np.float32)
        kernel *= np.float32(np.sqrt(2 / np.prod(shape[1:])))
        found[name] = [kernel, rng.standard_normal(shape[0], np.float32)]
    return found


@pytest.fixture(scope="module")
def small():
    """As `weights`, of wrong shapes but for conv1's: enough for what is refused before arrays are read."""
    return {name: [np.ones((96, 3, 11, 11) if name == "conv1" else (2, 2), np.float32),
                   np.ones(96 if name == "conv1" else 2, np.float32)] for name in (*CONVOLUTIONS, *PRODUCTS)}


@pytest.fixture(scope="module")
def images():
    return parity.images(parity.SEED + 9, 2)[:, 14:241, 14:241]


@pytest.fixture(scope="module")
def expected(weights, images):
    """fc7 of the source that pools first, on what Caffe feeds it: B, G, R less their means."""
    return run_onnx(onnx_model(weights, POOL_FIRST), images - CAFFE_MEAN)


@pytest.fixture(scope="module")
def converted(weights, tmp_path_factory):
    """`read_weights` of the converted ONNX file, and what the program printed."""
    folder = tmp_path_factory.mktemp("onnx")
    source = write(folder / "model", onnx_model(weights, POOL_FIRST).SerializeToString())
    write(folder / "alexnet.npy", b"old")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        convert(source, folder / "alexnet.npy", "--force")
    assert fingerprint(source) in printed.getvalue()
    assert fingerprint(folder / "alexnet.npy") in printed.getvalue()
    source.unlink()
    found = read_weights(folder / "alexnet.npy")
    (folder / "alexnet.npy").unlink()
    return found, printed.getvalue()


# ---------------------------------------------------------------- ONNX files

def onnx_model(weights, order, *, drop=(), opset=12, ir_version=7):
    """AlexNet as the model zoo's file spells it: Conv, Relu, LRN, MaxPool, Reshape, Gemm, Dropout, Softmax."""
    nodes, stored, last = [], [], "data_0"

    def add(operator, name, *inputs, **options):
        nonlocal last
        nodes.append(helper.make_node(operator, [last, *inputs], [name], name="", **options))
        last = name

    def store(name, array):
        stored.append(numpy_helper.from_array(array, name))
        return name

    for name in order:
        if name in drop:
            continue
        arrays = [store(f"{name}_{part}_0", array) for part, array in zip("wb", weights.get(name, ()), strict=False)]
        if name in CONVOLUTIONS:
            shape, stride, pad, groups = CONVOLUTIONS[name]
            add("Conv", f"{name}_1", *arrays, kernel_shape=shape[2:], strides=[stride] * 2,
                pads=[pad] * 4, group=groups)
            add("Relu", f"{name}_2")
        elif name in PRODUCTS:
            if name == "fc6":
                add("Reshape", "flat", store("flat_shape", np.array([1, 9216])))
            add("Gemm", f"{name}_1", *arrays, transB=1, alpha=1.0, beta=1.0)
            if name != "fc8":
                add("Relu", f"{name}_2")
                add("Dropout", f"{name}_3")
        elif name.startswith("norm"):
            add("LRN", f"{name}_1", size=5, alpha=1e-4, beta=0.75, bias=1.0)
        else:
            add("MaxPool", f"{name}_1", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    add("Softmax", "prob_1", axis=1)
    number = onnx.TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("data_0", number, [1, 3, 224, 224])]
    outputs = [helper.make_tensor_value_info("prob_1", number, [1, 10])]
    graph = helper.make_graph(nodes, "bvlc_alexnet", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def run_onnx(model, inputs):
    """fc7 before its ReLU for inputs (B, 227, 227, 3)."""
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 227
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 227
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("fc7_1", onnx.TensorProto.FLOAT, [1, WIDTH]))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"data_0": np.float32(x.transpose(2, 0, 1)[None])})[0] for x in inputs])


# ---------------------------------------------------------------- Caffe files

def caffe_class():
    """NetParameter with the types of Caffe's published caffe.proto, as far as AlexNet goes."""
    messages = {
        "BlobShape": ["int64 dim 1 packed"],
        "BlobProto": ["BlobShape shape 7", "float data 5 packed", "float diff 6 packed", "double double_data 8 packed",
                      "int32 num 1", "int32 channels 2", "int32 height 3", "int32 width 4"],
        "ConvolutionParameter": ["uint32 num_output 1", "uint32 pad 3 repeated", "uint32 kernel_size 4 repeated",
                                 "uint32 group 5", "uint32 stride 6 repeated"],
        "LRNParameter": ["uint32 local_size 1", "float alpha 2", "float beta 3"],
        "PoolingParameter": ["int32 pool 1", "uint32 kernel_size 2", "uint32 stride 3"],
        "InnerProductParameter": ["uint32 num_output 1", "bool transpose 6"],
        "V1LayerParameter": ["string bottom 2 repeated", "string top 3 repeated", "string name 4", "int32 type 5",
                             "BlobProto blobs 6 repeated", "float blobs_lr 7 repeated",
                             "ConvolutionParameter convolution_param 10", "LRNParameter lrn_param 18",
                             "InnerProductParameter inner_product_param 17", "PoolingParameter pooling_param 19"],
        "LayerParameter": ["string name 1", "string type 2", "string bottom 3 repeated", "string top 4 repeated",
                           "BlobProto blobs 7 repeated", "ConvolutionParameter convolution_param 106",
                           "InnerProductParameter inner_product_param 117", "LRNParameter lrn_param 118",
                           "PoolingParameter pooling_param 121"],
        "NetParameter": ["string name 1", "V1LayerParameter layers 2 repeated", "LayerParameter layer 100 repeated"],
    }
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message, fields in messages.items():
        described = file.message_type.add(name=message)
        for kind, name, number, *label in map(str.split, fields):
            field = described.field.add(name=name, number=int(number))
            field.label = field.LABEL_REPEATED if label else field.LABEL_OPTIONAL
            if label == ["packed"]:
                field.options.packed = True
            if kind in messages:
                field.type, field.type_name = field.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))


def caffe_model(weights, order, *, old, doubles=(), drop=()):
    """A NetParameter of AlexNet; `old`: `layers` with numbered types and blobs of four dimensions."""
    net = caffe_class()(name="AlexNet")
    layers = net.layers if old else net.layer
    layers.add(name="data", type=5 if old else "Data", top=["data"])
    for name in order:
        if name in drop:
            continue
        number, word = next(kind for start, kind in CAFFE_TYPES.items() if name.startswith(start))
        layer = layers.add(name=name, type=number if old else word)
        if name in CONVOLUTIONS:
            _, stride, pad, groups = CONVOLUTIONS[name]
            layer.convolution_param.stride.append(stride)
            layer.convolution_param.pad.append(pad)
            layer.convolution_param.group = groups
        elif name.startswith("pool"):
            layer.pooling_param.kernel_size, layer.pooling_param.stride = 3, 2
        elif name.startswith("norm"):
            layer.lrn_param.local_size, layer.lrn_param.alpha = 5, 1e-4
        for array in weights.get(name, ()):
            add_blob(layer.blobs.add(), array, old, name in doubles)
        if name not in ("norm1", "norm2", "pool1", "pool2"):
            layers.add(name=f"relu_{name}", type=18 if old else "ReLU")
    return net


CAFFE_TYPES = {"conv": (4, "Convolution"), "fc": (14, "InnerProduct"), "norm": (15, "LRN"), "pool": (17, "Pooling")}


def add_blob(blob, array, old, doubles):
    if old:
        blob.num, blob.channels, blob.height, blob.width = (1, 1, 1, *array.shape)[-4:]
    else:
        blob.shape.dim.extend(array.shape)
    (blob.double_data if doubles else blob.data).extend(array.ravel().tolist())


# ---------------------------------------------------------------- TensorFlow files

def tensorflow_file(weights):
    """An `.npy` file as NumPy 1 under Python 2 wrote it, like bvlc_alexnet.npy."""
    file = io.BytesIO()
    np.save(file, np.array(0))
    header, pickled = file.getvalue()[:-8], python2(np.array(weights, object))
    return header.replace(b"'<i8'", b"'|O' ") + pickled.replace(b"numpy._core.", b"numpy.core.")


# ---------------------------------------------------------------- running

def write(path, content):
    path.write_bytes(content)
    return path


def convert(*arguments):
    """Run the program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["alexnet_weights.py", *map(str, arguments)])
        alexnet_weights.main()


def read(path, content):
    """The Source in a file of this content. The file is removed."""
    source = read_source(write(path, content))
    path.unlink()
    return source


def network_fc7(images, weights):
    fc8 = {"fc8": [np.zeros((WIDTH, 300), np.float32), np.zeros(300, np.float32)]}
    with tf.Graph().as_default() as graph, open_session(graph) as session:
        variables, first_values = layers.make_variables(alexnet.LAYERS, ())
        _, before = layers.embed(alexnet, tf.constant(images), variables)
        session.run(tf.global_variables_initializer(), layers.feed_weights(first_values, {**weights, **fc8}))
        return session.run(before["fc7"])


def assert_same(found, expected):
    assert list(found) == list(expected) == list(alexnet_sources.SHAPES)
    for name, pair in expected.items():
        for array, other in zip(found[name], pair, strict=True):
            assert np.array_equal(array, other), name


# ---------------------------------------------------------------- conversions

def test_a_converted_onnx_model_computes_what_the_source_computes(converted, images, expected):
    found, printed = converted
    assert {name: pair[0].shape for name, pair in found.items()} == {
        name: shape for name, shape in alexnet.LAYERS.items() if name != "fc8"}
    assert np.abs(network_fc7(images, found) - expected).max() < 1e-4 * np.abs(expected).max()
    assert "ONNX Runtime" in printed
    assert "warning" not in printed


def test_the_zoos_order_of_layers_is_named_and_measured(weights, converted, tmp_path, capsys):
    source = write(tmp_path / "bvlcalexnet-12.onnx", onnx_model(weights, NORM_FIRST).SerializeToString())
    convert(source, tmp_path / "alexnet.npy")
    assert_same(read_weights(tmp_path / "alexnet.npy"), converted[0])
    printed = capsys.readouterr().out
    assert "compared with ONNX Runtime" in printed
    moved = re.search(r"warning: the source normalises before it pools, .* moves fc7 by up to ([\d.]+)%", printed)
    assert float(moved[1]) > 1


def test_a_caffe_model_of_the_old_format_is_the_same_network(weights, converted, tmp_path, capsys):
    net = caffe_model(weights, NORM_FIRST, old=True, drop=["fc8"])
    convert(write(tmp_path / "x", net.SerializeToString()), tmp_path / "alexnet.npy")
    assert_same(read_weights(tmp_path / "alexnet.npy"), converted[0])
    printed = capsys.readouterr().out
    assert "not compared: nothing here runs a Caffe model" in printed
    assert "warning: the source normalises before it pools" in printed


def test_a_caffe_model_of_the_new_format_and_doubles_is_the_same_network(weights, converted, tmp_path):
    net = caffe_model(weights, POOL_FIRST, old=False, doubles=["conv2", "conv3"], drop=["fc8"])
    source = read(tmp_path / "x", net.SerializeToString())
    assert source.normalises_first is False
    assert_same(alexnet_conversion.convert(source, "reverse"), converted[0])


def test_tensorflows_file_is_the_same_network(weights, converted, tmp_path):
    # as caffe-tensorflow lays it out
    weights = {name: [kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T, bias]
               for name, (kernel, bias) in weights.items()}
    weights["fc6"][0] = weights["fc6"][0].reshape(256, 6, 6, WIDTH).transpose(1, 2, 0, 3).reshape(9216, WIDTH)
    source = read(tmp_path / "bvlc_alexnet.npy", tensorflow_file(weights))
    assert source.has_fc8
    assert_same(alexnet_conversion.convert(source, "reverse"), converted[0])
    kept = alexnet_conversion.convert(source, "keep")
    assert_same(kept, {name: weights[name] for name in alexnet_sources.SHAPES})
    assert "does not record the order" in alexnet_weights.order_of(source)


def test_without_onnxruntime_a_source_is_not_compared_unnoticed(weights, converted, tmp_path, monkeypatch):
    monkeypatch.setattr(alexnet_conversion, "onnxruntime", None)
    source = read(tmp_path / "x", onnx_model(weights, POOL_FIRST).SerializeToString())
    with pytest.raises(UserError, match=r"needs ONNX Runtime: pip install -e '\.\[convert\]', or .* --no-check"):
        alexnet_conversion.compare("the file", source, converted[0], "reverse")


@pytest.mark.parametrize("channels", ["reverse", "keep"])
def test_either_choice_of_channels_passes_the_comparison(weights, tmp_path, channels):
    source = read(tmp_path / "x", onnx_model(weights, POOL_FIRST).SerializeToString())
    found = alexnet_conversion.compare("the file", source, alexnet_conversion.convert(source, channels), channels)
    assert found[0] < 1e-4
    assert found[1] == 0


@pytest.mark.parametrize("fault", ["channels", "rows", "halves"])
def test_the_comparison_refuses_a_wrong_conversion(weights, converted, tmp_path, fault):
    source = read(tmp_path / "x", onnx_model(weights, POOL_FIRST).SerializeToString())
    wrong = {name: list(pair) for name, pair in converted[0].items()}
    if fault == "channels":
        wrong["conv1"][0] = wrong["conv1"][0][:, :, ::-1]
    elif fault == "rows":
        wrong["fc6"][0] = wrong["fc6"][0].reshape(36, 256, WIDTH).swapaxes(0, 1).reshape(9216, WIDTH)
    else:
        wrong["conv4"][0] = np.roll(wrong["conv4"][0], 192, 3)
    with pytest.raises(UserError, match=r"found a difference of .* nothing was written"):
        alexnet_conversion.compare("the file", source, wrong, "reverse")


# ---------------------------------------------------------------- what is refused

def refused(path, content, match):
    with pytest.raises(UserError, match=match):
        read_source(write(path, content))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x80\x02}"])
def test_another_format_is_refused_and_the_three_are_named(tmp_path, content):
    refused(tmp_path / "x.onnx", content, r"a TensorFlow .npy file, a Caffe model, an ONNX model, found none")


@pytest.mark.parametrize("content", [b"\nhello", b"\x12\xff\xff\xff\xff\x7f", b"\x08\xff\xff"])
def test_what_only_begins_like_a_model_is_refused(tmp_path, content):
    refused(tmp_path / "x", content, r"found a damaged or truncated file")


def test_truncated_files_are_refused(tmp_path, small):
    for content in (caffe_model(small, POOL_FIRST, old=True), onnx_model(small, POOL_FIRST)):
        whole = content.SerializeToString()
        refused(tmp_path / "x", whole[:len(whole) // 2], "found a damaged or truncated file")
    refused(tmp_path / "x", tensorflow_file(small)[:5000], "this pickle was not read")


def test_models_without_a_layer_are_refused(tmp_path, small):
    expected = r"expected AlexNet's layers conv1 norm1 .*, found "
    refused(tmp_path / "x", caffe_model(small, NORM_FIRST, old=False, drop=["conv3"]).SerializeToString(),
            expected + "'conv1 norm1 pool1 conv2 norm2 pool2 conv4 ")
    refused(tmp_path / "x", onnx_model(small, NORM_FIRST, drop=["conv3"]).SerializeToString(),
            expected + "'conv1_1 norm1_1 ")
    refused(tmp_path / "x", caffe_class()(name="empty").SerializeToString(), expected + "none")
    empty = helper.make_model(helper.make_graph([], "x", [], []))
    refused(tmp_path / "x", empty.SerializeToString(), expected + "none")
    refused(tmp_path / "x", tensorflow_file({"conv1": [np.ones((11, 11, 3, 96), np.float32), np.ones(96, np.float32)]}),
            r"expected conv2 with shapes \[\(5, 5, 48, 256\), \(256,\)\], found none")


def test_wrong_shapes_are_refused_with_the_right_ones(tmp_path, small):
    sentence = r"expected conv2 with .* shapes \[\(256, 48, 5, 5\), \(256,\)\], found \[\(2, 2\), \(2,\)\]"
    refused(tmp_path / "x", caffe_model(small, POOL_FIRST, old=False).SerializeToString(), sentence)
    model = onnx_model({**small, "conv2": [np.ones((2, 2), np.float32), np.ones(2, np.float32)]}, POOL_FIRST)
    refused(tmp_path / "x", model.SerializeToString(), sentence)
    sentence = r"expected conv1 with shapes .*, found \[\(96, 3, 11, 11\), \(96,\)\]"
    refused(tmp_path / "x", tensorflow_file(small), sentence)


def test_values_that_are_no_numbers_are_refused(tmp_path, small):
    bad = {**small, "conv1": [small["conv1"][0] * np.nan, small["conv1"][1]]}
    for content in (caffe_model(bad, POOL_FIRST, old=True), onnx_model(bad, POOL_FIRST)):
        refused(tmp_path / "x", content.SerializeToString(), "conv1 holds NaN or infinite values")


def test_other_numbers_and_other_settings_are_refused(tmp_path, small):
    half = {**small, "conv1": [small["conv1"][0].astype(np.float16), small["conv1"][1]]}
    refused(tmp_path / "x", onnx_model(half, POOL_FIRST).SerializeToString(), "found FLOAT16")
    net = caffe_model(small, POOL_FIRST, old=False)
    net.layer[1].convolution_param.stride[0] = 2
    refused(tmp_path / "x", net.SerializeToString(), "expected conv1 with stride 4, found 2")
    net = caffe_model(small, POOL_FIRST, old=False)
    net.layer[1].blobs[0].ClearField("data")  # as where a file holds Caffe's half-precision blobs
    refused(tmp_path / "x", net.SerializeToString(), r"packed float32 or float64 values in 'conv1', found 0 \(half")
    model = onnx_model(small, POOL_FIRST)
    next(node for node in model.graph.node if node.op_type == "LRN").attribute[0].f = 1e-3
    refused(tmp_path / "x", model.SerializeToString(), "expected norm1 with alpha 0.0001, found 0.001")
    model.graph.node[1].op_type = "Sigmoid"
    refused(tmp_path / "x", model.SerializeToString(), "found the operator 'Sigmoid'")
    model.graph.node[1].CopyFrom(helper.make_node("Relu", ["data_0"], ["conv1_2"]))
    refused(tmp_path / "x", model.SerializeToString(), "expected a plain chain of layers, found Relu")


def test_external_data_is_refused_by_name(tmp_path, small):
    model = onnx_model(small, POOL_FIRST)
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "../../../etc/passwd")
    tensor.ClearField("raw_data")
    refused(tmp_path / "x", model.SerializeToString(), "found 'conv1_w_0' as external data")


def test_a_checkpoint_of_wsdhq_needs_no_conversion(tmp_path):
    refused(tmp_path / "x", tensorflow_file({"C": np.zeros((256, 300), np.float32)}), "found a checkpoint of WSDHQ")


def test_what_may_have_been_converted_already_is_not_reversed_unasked():
    for source_format, has_fc8, channels, chosen in (("npy", True, None, "reverse"), ("npy", False, "keep", "keep"),
                                                     ("onnx", True, None, "reverse"), ("onnx", True, "keep", "keep")):
        source = alexnet_sources.Source(source_format, {}, None, has_fc8=has_fc8)
        assert alexnet_weights.chosen_channels("x", source, channels) == chosen
    with pytest.raises(UserError, match="found a file without it, which may have been converted already"):
        alexnet_weights.chosen_channels("x", alexnet_sources.Source("npy", {}, None, has_fc8=False), None)


def test_bad_input_ends_in_one_sentence_and_an_existing_target_is_kept(tmp_path):
    source, target = write(tmp_path / "x", b"hello"), write(tmp_path / "alexnet.npy", b"old")

    def fails(*options):
        done = subprocess.run([sys.executable, "prepare/alexnet_weights.py", *options], cwd=REPO, capture_output=True,
                              text=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert target.read_bytes() == b"old"
        return done.stderr

    assert "--force replaces it" in fails(source, target)
    assert "found none of the three" in fails(source, target, "--force")
    assert "no such file" in fails(tmp_path / "y", target, "--force")
    assert "found a folder" in fails(source, tmp_path)


def test_an_onnx_model_without_onnx_is_refused_with_the_way_to_get_it(tmp_path):
    (tmp_path / "onnx.py").write_text("raise ImportError('not here')\n")
    write(tmp_path / "x.onnx", b"\x08\x07")
    done = subprocess.run([sys.executable, "prepare/alexnet_weights.py", tmp_path / "x.onnx", tmp_path / "alexnet.npy"],
                          cwd=REPO, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPO)])})
    assert done.returncode == 2
    assert done.stderr == "error: onnx is not installed: pip install -e '.[convert]'\n"
