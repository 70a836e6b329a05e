"""Checkpoints: what is read, what is refused, and what the record beside one tells."""
import numpy as np
import pytest

from models.checkpoint import FIT, check_trained_with, default_crops, read_checkpoint, trained_on_features
from quantization import quantizer
from storage.arrays import write_weights
from storage.files import fingerprint
from util import UserError, stream


def head(width):
    rng = stream(0, "head", width)
    return {"fc8": [rng.normal(size=(width, 300)).astype(np.float32), np.zeros(300, np.float32)],
            "C": rng.normal(size=(512, 300)).astype(np.float32)}


def test_codes_of_fitted_codebooks_are_found_in_their_own_distance_and_others_in_that_of_the_tags(tmp_path):
    path, tags = tmp_path / "x.npy", stream(0, "tags").normal(size=(9, 300)).astype(np.float32)
    factor = stream(1, "factor").normal(size=(300, 300)).astype(np.float32)
    for entry, fitted, expected in (({}, False, quantizer.semantic_factor(tags)), ({FIT: factor}, True, factor),
                                    ({FIT: np.ones(1, np.float32)}, True, None)):  # of older files
        write_weights(path, head(7) | entry)
        found = read_checkpoint(path)
        assert (found.fitted, found.codebooks.shape) == (fitted, (2, 256, 300))
        np.testing.assert_array_equal(found.weights["fc8"][0], head(7)["fc8"][0])
        if expected is None:
            assert found.factor(tags) is None
        else:
            np.testing.assert_array_equal(found.factor(tags), expected)
    write_weights(path, head(7) | {FIT: factor[:9]})
    with pytest.raises(UserError, match=r"expected fit with shape \(300, 300\), found \(9, 300\)"):
        read_checkpoint(path)


def test_a_last_layer_that_gives_no_embedding_is_refused(tmp_path):
    write_weights(tmp_path / "x.npy", head(7) | {"fc8": [np.zeros((7, 200), np.float32), np.zeros(200, np.float32)]})
    with pytest.raises(UserError, match=r"expected fc8 with shapes \(F, 300\) and \(300,\), found \(7, 200\)"):
        read_checkpoint(tmp_path / "x.npy")


@pytest.mark.parametrize(("options", "crops", "on_features"), [
    (None, 10, False), ({}, 10, False), ({"backbone": "efficientnet_lite0", "crops": "random"}, 1, False),
    ({"backbone": "efficientnet_lite0", "crops": "fixed", "views": 2}, 2, True)])
def test_the_record_tells_how_many_crops_an_embedding_is_the_mean_of(tmp_path, options, crops, on_features):
    if options is not None:
        write_weights(tmp_path / "x.npy", head(7), {"options": options})
    assert default_crops(tmp_path / "x.npy") == crops
    assert trained_on_features(tmp_path / "x.npy") == on_features


@pytest.mark.parametrize(("stacked", "sentence"), [
    (None, "with codebooks under 'C'"),
    (np.zeros((100, 300)), r"expected C with shape .* found \(100, 300\)"),
    (np.zeros((9 * 256, 300)), "for M from 1 to 8"),
    (np.zeros((256, 200)), r"found \(256, 200\)"),
    (np.zeros((256, 300)), "expected conv1 with shapes"),
])
def test_a_checkpoint_without_fitting_codebooks_is_refused(tmp_path, stacked, sentence):
    path = tmp_path / "x.npy"
    weights = {layer: [np.zeros((4096, 300)), np.zeros(300)] for layer in ("fc7", "fc8")}
    write_weights(path, weights if stacked is None else {**weights, "C": stacked})
    with pytest.raises(UserError, match=sentence):
        read_checkpoint(path)


def test_a_checkpoint_that_was_trained_with_other_tags_is_refused_with_both_checksums(tmp_path):
    checkpoint, embeddings = tmp_path / "x.npy", tmp_path / "FinalTagEmbs.txt"
    embeddings.write_text("1 2 3\n")
    check_trained_with(checkpoint, embeddings)  # a release's checkpoint tells nothing
    for trained in (fingerprint(embeddings), "0123456789abcdef"):
        write_weights(checkpoint, {}, {"fingerprints": {"FinalTagEmbs.txt": trained}})
        if trained == fingerprint(embeddings):
            check_trained_with(checkpoint, embeddings)
        else:
            with pytest.raises(UserError, match=f"0123456789ab…, and .* has {fingerprint(embeddings)[:12]}…"):
                check_trained_with(checkpoint, embeddings)
