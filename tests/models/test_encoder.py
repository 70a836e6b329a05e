"""The crops of an image, the released ten-crop embeddings, and embedding many files."""
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import parity_inputs as parity
from models import alexnet, efficientnet_lite0, layers, tf_encoder
from models.session import open_session, tf
from util import UserError, stream


def test_ten_crop_embeddings_are_the_released_ones():
    graph = tf_encoder.EncodingGraph(alexnet, 10, "/cpu:0")
    with open_session(graph.graph) as session:
        graph.initialize(session, parity.alexnet_weights(parity.SEED + 7))
        found = session.run(graph.outputs, {graph.images: parity.images(parity.SEED + 8, 4)})
    np.testing.assert_allclose(found, parity.CASES["alexnet/ten_crop_embeddings"], atol=1e-4)


def _corner_pixels(images, _variables, _dropout=None):
    """A backbone that shows which crop it was given: the first blue pixel of each."""
    return tf.cast(images[:, 0, 0, :1], tf.float32) / 1000, {}


CORNER = SimpleNamespace(LAYERS={"fc8": (1, 300)}, SIDE=227, FEATURES=1, CROPS_AT_ONCE=40, features=_corner_pixels,
                         resize=lambda image: image)
SHOWN = {"fc8": [np.ones((1, 300), np.float32), np.zeros(300, np.float32)]}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Paths of seven photos of 256×256 pixels, and what is in them, uint8 (7, 256, 256, 3)."""
    images = stream(0, "crop test").integers(0, 256, (7, 256, 256, 3), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{row}.png" for row in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        assert cv2.imwrite(str(path), image)
    return paths, images


def corners(images, crops):
    """The first blue pixel of each crop, (V, N)."""
    offsets = {10: (0, 28, 14), 5: (0, 28, 14), 2: (14,), 1: (14,)}[crops]
    places = [(top, left) for top in offsets for left in offsets if (top == 14) == (left == 14)]
    return [view[:, top, left, 0] / 1000 for view in ((images, images[:, :, ::-1]) if crops in (10, 2) else (images,))
            for top, left in places]


@pytest.mark.parametrize("crops", [10, 5, 2, 1])
def test_embeddings_are_the_mean_over_the_crops_and_cover_each_image_once(crops, photos, monkeypatch):
    monkeypatch.setattr(tf_encoder, "of_weights", lambda weights: CORNER)
    paths, images = photos
    found = tf_encoder.Encoder(SHOWN, crops, "/cpu:0").embed(paths)
    expected = np.mean(np.tanh(corners(images, crops)), axis=0)
    np.testing.assert_allclose(found, expected[:, None].repeat(300, 1), rtol=1e-5)


def test_embeddings_of_fitted_codebooks_have_length_1(photos, monkeypatch):
    monkeypatch.setattr(tf_encoder, "of_weights", lambda weights: CORNER)
    found = tf_encoder.Encoder(SHOWN, 2, "/cpu:0", unit=True).embed(photos[0])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("crops", [5, 2, 1])
def test_features_are_those_of_each_crop(crops, photos, monkeypatch):
    monkeypatch.setattr(tf_encoder, "of_weights", lambda weights: CORNER)
    found = tf_encoder.FeatureExtractor(SHOWN, crops, "/cpu:0").embed(photos[0])
    expected = np.sort(np.transpose(corners(photos[1], crops)), axis=1)
    np.testing.assert_allclose(np.sort(found[:, :, 0], axis=1), expected, rtol=1e-5)


def test_the_last_layer_on_the_features_of_a_backbone_is_its_embedding(photos):
    rng = stream(0, "features and embedding")
    weights = {layer: [rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32),
                       np.zeros(shape[-1], np.float32)] for layer, shape in efficientnet_lite0.LAYERS.items()}
    embeddings = tf_encoder.Encoder(weights, 2, "/cpu:0").embed(photos[0][:2])
    features = tf_encoder.FeatureExtractor(weights, 2, "/cpu:0").embed(photos[0][:2])
    kernel, bias = weights[layers.LAST]
    np.testing.assert_allclose(np.tanh(features @ kernel + bias).mean(1), embeddings, atol=1e-4)


@pytest.mark.parametrize("cores", [1, 3])
def test_a_processor_runs_as_many_batches_side_by_side_as_it_has_cores(cores, photos, monkeypatch):
    monkeypatch.setattr(tf_encoder, "of_weights", lambda weights: CORNER)
    monkeypatch.setattr(tf_encoder, "cores", lambda: cores)
    network = tf_encoder.Encoder(SHOWN, 10, "/cpu:0")  # four photos a run
    outputs, running, most = network.outputs, [], []

    def counted(images):
        running.append(images)
        most.append(len(running))
        time.sleep(0.05)
        found = outputs(images)
        running.pop()
        return found
    monkeypatch.setattr(network, "outputs", counted)
    found = network.embed(photos[0] * 4)  # seven runs
    assert max(most) == cores
    expected = np.mean(np.tanh(corners(photos[1], 10)), axis=0)
    np.testing.assert_allclose(found, np.tile(expected, 4)[:, None].repeat(300, 1), rtol=1e-5)


def test_a_last_layer_alone_embeds_no_photo():
    with pytest.raises(UserError, match="no network of its own"):
        tf_encoder.Encoder({"fc8": [np.ones((5, 300)), np.zeros(300)], "C": np.ones((256, 300))}, 1, "/cpu:0")


def test_a_photo_that_the_network_makes_nan_of_is_named(photos, monkeypatch):
    monkeypatch.setattr(tf_encoder, "of_weights", lambda weights: CORNER)
    network = tf_encoder.Encoder({"fc8": [SHOWN["fc8"][0], np.full(300, np.nan, np.float32)]}, 1, "/cpu:0")
    for photo, name in ((photos[0][3], r"/3\.png"), (photos[1][3], "an image")):
        with pytest.raises(UserError, match=f"NaN or infinite embeddings of 1 images: .*{name}"):
            network.embed([photo])
