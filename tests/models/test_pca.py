"""The last layer for photos without tags: principal components of their features."""
import numpy as np
import pytest

from models import pca
from models.encoder import embed
from util import DIMENSIONS


@pytest.mark.parametrize("images", [1, 2, 50, 400])
def test_coordinates_are_those_of_pca(images):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(images, 500)).astype(np.float32) * np.geomspace(3, 0.01, 500) + 5
    found = embed(features[:, None], pca.last_layer(features), unit=False)
    centred = features - features.mean(0, dtype=np.float64)
    u, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    wanted = (u * lengths)[:, :DIMENSIONS]
    wanted = wanted @ wanted.T  # inner products have no signs of directions to agree on
    scale = pca.SMALL / max(np.abs(u * lengths).max(), 1e-9)
    np.testing.assert_allclose(found @ found.T, wanted * scale**2, atol=2e-2 * pca.SMALL**2 * DIMENSIONS**0.5)
    assert found.shape == (images, DIMENSIONS)


def test_images_that_are_all_alike_get_zeros():
    features = np.ones((5, 500), np.float32)
    assert not embed(features[:, None], pca.last_layer(features), unit=True).any()
