"""Averages of neighbours against their oracle, how sharp they are, and checkpoints that hold them."""
import numpy as np
import pytest

import oracles
from models.checkpoint import read_checkpoint
from quantization import neighbourhoods
from storage.arrays import FIT, NEIGHBOURS, write_weights
from util import stream, unit_length


def embeddings(count, purpose, centres=12):
    """Unit embeddings in groups, float32 (N, 300)."""
    rng = stream(0, purpose)
    found = rng.normal(size=(centres, 300))[rng.integers(centres, size=count)] + 0.7 * rng.normal(size=(count, 300))
    return unit_length(found.astype(np.float32))


@pytest.mark.parametrize("sharpness", [2, 15])
def test_averages_are_those_of_the_formula(sharpness, monkeypatch):
    monkeypatch.setattr(neighbourhoods, "AVERAGED_AT_ONCE", 16)
    images, anchors = embeddings(50, "images"), embeddings(40, "anchors")
    found = neighbourhoods.averages(images, [anchors, np.array([sharpness], np.float32)])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, oracles.neighbour_averages(images, anchors, sharpness), atol=1e-5)


@pytest.mark.parametrize(("count", "share"), [(300, 0.6), (300, 0.9), (2000, 0.6), (7, 0.6)])
def test_half_of_the_training_images_have_the_share_of_their_own_averages(count, share):
    images = embeddings(count, "shares")
    anchors, (sharpness,) = neighbourhoods.neighbourhoods(images, stream(0, "anchors"), share)
    np.testing.assert_array_equal(anchors, images)
    own = [2 / (1 + sum(np.exp(sharpness * (float(image @ other) - 1)) for other in images)) for image in images[:200]]
    assert np.median(own) == pytest.approx(share, abs=0.03)


def test_equal_photos_are_no_trouble():
    images = np.repeat(embeddings(1, "equal"), 30, axis=0)
    neighbours = neighbourhoods.neighbourhoods(images, stream(0, "anchors"))
    np.testing.assert_allclose(neighbourhoods.averages(images, neighbours), images, atol=1e-5)
    assert neighbourhoods.averages(images[:0], neighbours).shape == (0, 300)


def test_of_many_images_a_sample_are_anchors(monkeypatch):
    monkeypatch.setattr(neighbourhoods, "MOST_ANCHORS", 20)
    images = embeddings(60, "sample")
    anchors, _ = neighbourhoods.neighbourhoods(images, stream(0, "anchors"))
    rows = [int(np.flatnonzero((images == anchor).all(1))[0]) for anchor in anchors]
    assert len(set(rows)) == 20
    assert rows == sorted(rows)


def test_codes_of_a_checkpoint_with_neighbours_are_those_of_averages(tmp_path):
    images = embeddings(256, "checkpoint")
    anchors, sharpness = neighbourhoods.neighbourhoods(images, stream(0, "anchors"))
    codebook = neighbourhoods.averages(images, [anchors, sharpness])
    entries = {"fc8": [np.zeros((5, 300), np.float32), np.zeros(300, np.float32)], "C": codebook,
               FIT: np.eye(300, dtype=np.float32)}
    write_weights(tmp_path / "x.npy", {**entries, NEIGHBOURS: [anchors, sharpness]})
    checkpoint = read_checkpoint(tmp_path / "x.npy")
    codes = checkpoint.encode(images, checkpoint.fit_factor, stream(0, "codes"))
    np.testing.assert_array_equal(codebook[codes[:, 0]], codebook)
