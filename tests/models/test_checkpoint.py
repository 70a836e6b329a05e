"""Checkpoints: what is read, what is refused, what the record says, and the encoder next to one."""
import shutil
from dataclasses import fields

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from models.checkpoint import (
    ALEXNET,
    Checkpoint,
    check_trained_with,
    embedder_of,
    fit_entries,
    is_last_layer_alone,
    read_checkpoint,
    read_checkpoint_record,
)
from models.encoder import embed, encoder_next_to
from onnx_writer import WIDTH, tiny_encoder
from quantization import quantizer
from storage.arrays import FIT, NEIGHBOURS, write_weights
from storage.files import fingerprint
from util import UserError, stream


def last_layer(width):
    rng = stream(0, "head", width)
    return {"fc8": [rng.normal(size=(width, 300)).astype(np.float32), np.zeros(300, np.float32)],
            "C": rng.normal(size=(512, 300)).astype(np.float32)}


def fit():
    rng = stream(1, "fit")
    return {FIT: rng.normal(size=(300, 300)).astype(np.float32),
            NEIGHBOURS: [rng.normal(size=(9, 300)).astype(np.float32), np.ones(1, np.float32)]}


# ---------------------------------------------------------------- the file

def test_a_checkpoint_is_its_layers_codebooks_and_fit(tmp_path):
    path, tags = tmp_path / "x.npy", stream(0, "tags").normal(size=(9, 300)).astype(np.float32)
    assert [field.name for field in fields(Checkpoint)] == [
        "weights", "codebooks", "fit_factor", "neighbours", "sha256"]
    for entries, fitted, factor in (({}, False, quantizer.semantic_factor(tags)), (fit(), True, fit()[FIT])):
        write_weights(path, last_layer(7) | entries)
        found = read_checkpoint(path)
        assert (found.fitted, found.is_alexnet, found.codebooks.shape) == (fitted, False, (2, 256, 300))
        assert found.weights.keys() == {"fc8"}
        np.testing.assert_array_equal(found.weights["fc8"][0], last_layer(7)["fc8"][0])
        np.testing.assert_array_equal(found.factor(tags), factor)  # in whose distance codes are found
    for array, expected in zip(found.neighbours, fit()[NEIGHBOURS], strict=True):
        np.testing.assert_array_equal(array, expected)


def test_what_is_written_of_a_fit_is_what_is_read(tmp_path):
    codebooks = stream(0, "fitted").normal(size=(3, 256, 300)).astype(np.float32)
    write_weights(tmp_path / "x.npy", last_layer(7) | fit_entries(codebooks, *fit().values()))
    found = read_checkpoint(tmp_path / "x.npy")
    np.testing.assert_array_equal(found.codebooks, codebooks)
    np.testing.assert_array_equal(found.fit_factor, fit()[FIT])


def test_fitted_codebooks_give_codes_of_averages_in_their_own_distance(tmp_path):
    write_weights(tmp_path / "x.npy", last_layer(7) | fit())
    checkpoint = read_checkpoint(tmp_path / "x.npy")
    embeddings = stream(0, "to encode").normal(size=(20, 300)).astype(np.float32)
    codes = checkpoint.encode(embeddings, checkpoint.factor(None), stream(0, "encode"))
    assert (codes.shape, codes.dtype) == ((20, 2), np.uint8)
    np.testing.assert_array_equal(codes, checkpoint.encode(embeddings, checkpoint.fit_factor, stream(0, "encode")))


@pytest.mark.parametrize(("entries", "sentence"), [
    ({FIT: fit()[FIT][:9], NEIGHBOURS: fit()[NEIGHBOURS]},
     r"expected fit with shape \(300, 300\) and neighbours .*, found \(9, 300\), \(9, 300\) and \(1,\)"),
    ({FIT: fit()[FIT]}, r"expected fit with shape"),
    ({NEIGHBOURS: fit()[NEIGHBOURS]}, r"expected fit with shape"),
    ({FIT: fit()[FIT], NEIGHBOURS: [np.zeros((9, 200)), np.ones(1)]}, r"found .*\(9, 200\)"),
    ({FIT: fit()[FIT], NEIGHBOURS: [np.zeros((9, 300)), np.ones(2)]}, r"found .*\(2,\)"),
    ({"fc8": [np.zeros((7, 200)), np.zeros(200)]}, r"expected fc8 with shapes \(F, 300\) and \(300,\), found \(7, 200"),
    ({"fc8": [np.zeros((7, 300, 1)), np.zeros(300)]}, r"found \(7, 300, 1\)"),
])
def test_entries_of_other_shapes_are_refused(tmp_path, entries, sentence):
    write_weights(tmp_path / "x.npy", last_layer(7) | entries)
    with pytest.raises(UserError, match=sentence):
        read_checkpoint(tmp_path / "x.npy")


@pytest.mark.parametrize(("stacked", "sentence"), [
    (None, "with codebooks under 'C'"),
    (np.zeros((100, 300)), r"expected C with shape .* found \(100, 300\)"),
    (np.zeros((9 * 256, 300)), "for M from 1 to 8"),
    (np.zeros((256, 200)), r"found \(256, 200\)"),
    (np.zeros((256, 300)), "expected conv1 with shapes"),
])
def test_a_checkpoint_without_fitting_codebooks_or_layers_is_refused(tmp_path, stacked, sentence):
    path = tmp_path / "x.npy"
    weights = {layer: [np.zeros((4096, 300)), np.zeros(300)] for layer in ("fc7", "fc8")}
    write_weights(path, weights if stacked is None else {**weights, "C": stacked})
    with pytest.raises(UserError, match=sentence):
        read_checkpoint(path)


def test_a_last_layer_alone_is_distinguished_from_alexnet():
    assert is_last_layer_alone({"fc8": [], "C": []})
    assert is_last_layer_alone({"fc8": [], "head": []})
    assert not is_last_layer_alone({"fc8": [], "conv1": []})
    assert not is_last_layer_alone({"C": []})


def test_a_checkpoint_without_a_checksum_is_read_with_a_note(tmp_path, capsys):
    write_weights(tmp_path / "x.npy", last_layer(7))
    read_checkpoint(tmp_path / "x.npy")
    assert capsys.readouterr().err == ""
    (tmp_path / "x.json").unlink()
    read_checkpoint(tmp_path / "x.npy")
    assert "has no checksum in a JSON file next to it" in capsys.readouterr().err


# ---------------------------------------------------------------- the record

def test_the_record_is_what_is_used_of_the_json_file(tmp_path):
    assert read_checkpoint_record(tmp_path / "x.npy").encoder is None
    write_weights(tmp_path / "x.npy", last_layer(7), {
        "options": {"lr": 1, "dataset": "mine"}, "fingerprints": {"a": "b"}, "encoder": "abc", "no_words": "None.",
        "versions": {}})
    record = read_checkpoint_record(tmp_path / "x.npy")
    assert (record.options.dataset, record.fingerprints, record.encoder, record.no_words) == (
        "mine", {"a": "b"}, "abc", "None.")


@pytest.mark.parametrize("entry", [{"encoder": 3}, {"fingerprints": ["a"]}, {"fingerprints": {"a": 3}},
                                   {"options": "all"}, {"options": {"dataset": 7}}, {"no_words": {}}])
def test_a_record_of_other_kinds_is_refused_by_name(tmp_path, entry):
    write_weights(tmp_path / "x.npy", last_layer(7), entry)
    with pytest.raises(UserError, match=r"x\.json: "):
        read_checkpoint_record(tmp_path / "x.npy")


def test_a_checkpoint_that_was_trained_with_other_tags_is_refused_with_both_checksums(tmp_path):
    checkpoint, embeddings = tmp_path / "x.npy", tmp_path / "FinalTagEmbs.txt"
    embeddings.write_text("1 2 3\n")
    check_trained_with(checkpoint, embeddings)  # a release's checkpoint has no record
    for trained in (fingerprint(embeddings), "0123456789abcdef"):
        write_weights(checkpoint, {}, {"fingerprints": {"FinalTagEmbs.txt": trained}})
        if trained == fingerprint(embeddings):
            check_trained_with(checkpoint, embeddings)
        else:
            with pytest.raises(UserError, match=f"0123456789ab…, and .* has {fingerprint(embeddings)[:12]}…"):
                check_trained_with(checkpoint, embeddings)


# ---------------------------------------------------------------- the encoder next to it

@pytest.fixture
def complete(tmp_path):
    """A checkpoint of a last layer with its encoder next to it."""
    path = tmp_path / "x.npy"
    encoder = tiny_encoder(encoder_next_to(path))
    write_weights(path, last_layer(WIDTH) | fit(), {"encoder": encoder.sha256})
    return path


def test_photos_are_embedded_by_the_encoder_next_to_the_checkpoint(complete):
    image = stream(0, "photo").integers(0, 256, (50, 60, 3), dtype=np.uint8)
    checkpoint = read_checkpoint(complete)
    embedder = embedder_of(complete, checkpoint)
    features = embedder._encoder.features(embedder.resize(image)[None], 1)
    np.testing.assert_allclose(embedder.embed([image]), embed(features, checkpoint.weights["fc8"], unit=True))
    moved = complete.parent / "moved" / "y.npy"
    moved.parent.mkdir()
    for suffix in (".npy", ".json"):
        shutil.copy(complete.with_suffix(suffix), moved.with_suffix(suffix))
    with pytest.raises(UserError, match=r"y\.npy cannot embed photos without y_encoder\.onnx next to it; training wr"):
        embedder_of(moved, checkpoint)


def test_a_checkpoint_cannot_embed_photos_without_its_own_encoder(complete):
    tiny_encoder(encoder_next_to(complete), seed=1)
    with pytest.raises(UserError, match=r"x_encoder\.onnx is not the encoder of x\.npy, but of another checkpoint"):
        embedder_of(complete, read_checkpoint(complete))
    write_weights(complete, last_layer(WIDTH))
    with pytest.raises(UserError, match=r"cannot embed photos: it was trained on features from elsewhere"):
        embedder_of(complete, read_checkpoint(complete))


def test_a_checkpoint_with_alexnet_says_how_its_encoder_is_made(tmp_path, small):
    weights = {layer: [np.zeros(shape), np.zeros(shape[-1])] for layer, shape in ALEXNET.items()}
    write_weights(tmp_path / "x.npy", {**weights, "C": np.zeros((256, 300))})
    checkpoint = read_checkpoint(tmp_path / "x.npy")
    assert checkpoint.is_alexnet
    with pytest.raises(UserError, match=r"without x_encoder\.onnx next to it; `python search\.py build .*x\.npy …` ex"):
        embedder_of(tmp_path / "x.npy", checkpoint)
