"""The validation network: the released ten-crop embeddings, and embedding many files."""
import logging
from types import SimpleNamespace

import numpy as np
import pytest

import net_val
import parity_inputs as parity
from drawn_photos import write_photos
from models.checkpoint import ALEXNET
from models.session import open_session
from util import UserError, stream


def test_ten_crop_embeddings_are_the_released_ones():
    network = net_val.ValidationNetwork(10, "/cpu:0")
    with open_session(network.graph) as session:
        network.initialize(session, parity.alexnet_weights(parity.SEED + 7))
        found = session.run(network.embeddings, {network.images: parity.images(parity.SEED + 8, 4)})
    np.testing.assert_allclose(found, parity.CASES["alexnet/ten_crop_embeddings"], atol=1e-4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Paths of nine photos of 256×256 pixels, and what is in them, uint8 (9, 256, 256, 3)."""
    images = stream(0, "validation network test").integers(0, 256, (9, 256, 256, 3), dtype=np.uint8)
    return write_photos(tmp_path_factory.mktemp("photos"), images), images


def random_weights():
    rng = stream(0, "validation network weights")
    return {layer: [rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32) * np.float32(
        0.01 if layer == "conv1" else 1), np.zeros(shape[-1], np.float32)] for layer, shape in ALEXNET.items()}


@pytest.mark.parametrize("crops", [10, 2])
def test_many_files_are_embedded_in_their_order_by_several_runs_at_once(crops, photos, small):
    paths, images = photos
    weights, network = random_weights(), net_val.ValidationNetwork(crops, "/cpu:0")
    with open_session(network.graph) as session:
        network.initialize(session, weights)
        expected = session.run(network.embeddings, {network.images: images})
    assert expected.std(0).max() > 0.01
    np.testing.assert_allclose(network.embed_photos(weights, paths), expected, atol=1e-5)
    of_fitted = net_val.embed_split(weights, crops, None, True, logging)("test", SimpleNamespace(paths=paths))
    np.testing.assert_allclose(of_fitted, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_a_photo_of_which_the_network_makes_nan_is_named(photos, small):
    weights = random_weights()
    weights["fc8"][1][:] = np.nan
    with pytest.raises(UserError, match=r"NaN or infinite embeddings of 1 images: .*/3\.png"):
        net_val.ValidationNetwork(1, "/cpu:0").embed_photos(weights, photos[0][3:4])
