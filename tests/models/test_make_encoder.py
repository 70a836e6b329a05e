"""Encoders that are made: AlexNet in ONNX agrees with TensorFlow, and eight bits agree with floats."""
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import parity_inputs as parity
from drawn_photos import write_photos
from models import make_encoder
from models.checkpoint import ALEXNET, embedder_of, read_checkpoint
from models.encoder import ImageEncoder, encoder_next_to
from net_val import ValidationNetwork
from onnx_writer import SHAPE, Writer, describe, write_tiny
from storage.arrays import write_weights
from util import UserError, stream


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Paths of twelve photos of one colour under noise, of different sizes."""
    rng = stream(0, "encoder photos")
    images = [rng.integers(0, 256, 3) + rng.integers(-40, 40, (60 + row, 80, 3)) for row in range(12)]
    return write_photos(tmp_path_factory.mktemp("photos"), [np.clip(image, 0, 255).astype("u1") for image in images])


# ---------------------------------------------------------------- AlexNet

def write_checkpoint(path, seed=0):
    """A checkpoint with the AlexNet that there is now, of random weights whose features differ from photo to photo."""
    rng = stream(seed, "exported network")
    weights = {layer: [rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32),
                       rng.uniform(-0.05, 0.05, shape[-1]).astype(np.float32)] for layer, shape in ALEXNET.items()}
    weights["conv1"][0] /= np.float32(20)
    write_weights(path, {**weights, "C": rng.normal(size=(256, 300)).astype(np.float32)})
    return path


@pytest.mark.slow
def test_the_whole_alexnet_in_onnx_gives_the_released_ten_crop_embeddings(tmp_path):
    path, images = tmp_path / "x.npy", parity.images(parity.SEED + 8, 4)
    write_weights(path, {**parity.alexnet_weights(parity.SEED + 7), "C": parity.codebooks(0, 1).reshape(-1, 300)})
    checkpoint = read_checkpoint(path)
    make_encoder.export_alexnet(path, checkpoint)
    found = embedder_of(path, checkpoint, 10).embed(list(images))
    np.testing.assert_allclose(found, parity.CASES["alexnet/ten_crop_embeddings"], atol=1e-4)


@pytest.mark.parametrize("crops", [1, 10])
def test_alexnet_in_onnx_gives_the_embeddings_of_tensorflow(crops, photos, tmp_path, small):
    path = write_checkpoint(tmp_path / "x.npy")
    checkpoint = read_checkpoint(path)
    make_encoder.export_alexnet(path, checkpoint)
    expected = ValidationNetwork(crops, "/cpu:0").embed_photos(checkpoint.weights, photos)
    assert expected.std(0).max() > 0.05
    np.testing.assert_allclose(embedder_of(path, checkpoint, crops).embed(photos), expected, atol=1e-4)
    if crops == 10:  # as many as of the paper, unless asked otherwise
        np.testing.assert_allclose(embedder_of(path, checkpoint).embed(photos), expected, atol=1e-4)


def test_a_checkpoint_is_exported_once_and_another_of_its_name_anew(tmp_path, small, monkeypatch):
    path, written = write_checkpoint(tmp_path / "x.npy"), []
    write = make_encoder.write_encoder
    monkeypatch.setattr(make_encoder, "write_encoder", lambda *arguments: written.append(1) or write(*arguments))

    def exported():
        make_encoder.export_alexnet(path, read_checkpoint(path))
        return len(written), ImageEncoder(encoder_next_to(path)).sha256
    count, first = exported()
    assert (count, exported()) == (1, (1, first))
    encoder_next_to(path).with_suffix(".json").unlink()  # as after a kill between the two files
    assert exported() == (2, first)
    write_checkpoint(path, seed=1)
    with pytest.raises(UserError, match=r"x_encoder\.onnx is not the encoder of x\.npy, but of another checkpoint"):
        embedder_of(path, read_checkpoint(path))
    count, second = exported()
    assert count == 3
    assert second != first


# ---------------------------------------------------------------- eight bits

def write_convolutional(path, seed=0):
    """An encoder of three convolutions and a mean, with its record."""
    rng, graph, x = stream(seed, "convolutional encoder"), Writer(), "images"
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        kernel = rng.normal(0, np.sqrt(2 / (9 * inputs)), (outputs, inputs, 3, 3)).astype(np.float32)
        bias = rng.normal(0, 0.1, outputs).astype(np.float32)
        x = graph.node("Relu", graph.convolution(x, kernel, bias, (1, 1), stride=2))
    graph.node("GlobalAveragePool", x, output="features")
    return describe(graph.write(path))


def write_transformer_like(path):
    """An encoder whose work is products of matrices after a convolution of patches, with its record."""
    rng, graph = stream(0, "transformer"), Writer()
    x = graph.convolution("images", rng.normal(0, 0.1, (8, 3, 8, 8)).astype(np.float32), np.zeros(8, np.float32),
                          stride=8)
    x = graph.node("Flatten", x)
    for inputs, outputs in ((128, 16), (16, 10)):
        weights = rng.normal(0, 0.1, (inputs, outputs)).astype(np.float32)
        x = graph.node("MatMul", x, graph.stored(weights), output="features" if outputs == 10 else None)
    return describe(graph.write(path))


def features_of(encoder, photos):
    return np.concatenate(list(encoder.photo_features(photos, "computing")))


def test_features_in_eight_bits_are_those_in_floats_but_for_what_is_rounded(photos, tmp_path, capfd):
    path = write_convolutional(tmp_path / "m.onnx")
    plain = make_encoder.training_encoder(path, tmp_path / "q.onnx", photos, True, 0, None)
    assert plain.path == path
    assert not (tmp_path / "q.onnx").exists()
    quantized = make_encoder.training_encoder(path, tmp_path / "q.onnx", photos, False, 0, None)
    assert (quantized.path, quantized.record.source) == (tmp_path / "q.onnx", plain.sha256)
    expected, found = features_of(plain, photos), features_of(quantized, photos)
    cosines = (expected * found).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(found, axis=1)
    assert cosines.min() > 0.95
    spread, rounded = expected - expected.mean(0), found - found.mean(0)  # what they differ in
    assert (spread * rounded).sum() / np.linalg.norm(spread) / np.linalg.norm(rounded) > 0.95
    assert not np.array_equal(expected, found)
    assert (tmp_path / "q.onnx").stat().st_size < 0.6 * path.stat().st_size
    assert {file.name for file in tmp_path.glob("[!.]*")} == {"m.onnx", "m.json", "q.onnx", "q.json"}
    assert capfd.readouterr() == ("", "")


def test_eight_bits_are_calibrated_once_by_photos_that_a_seed_draws(photos, tmp_path, monkeypatch):
    path = write_convolutional(tmp_path / "m.onnx")
    monkeypatch.setattr(make_encoder, "CALIBRATED_ON", 1)

    def calibrated(name, seed, encoder=path):
        return make_encoder.training_encoder(encoder, tmp_path / name, photos, False, seed, None).sha256
    first = calibrated("a.onnx", 0)
    assert calibrated("b.onnx", 0) == first
    assert calibrated("c.onnx", 1) != first
    with monkeypatch.context() as patch:
        patch.setattr(make_encoder, "quantize_static", None)
        assert calibrated("a.onnx", 0) == first
    other = calibrated("a.onnx", 0, write_convolutional(tmp_path / "other.onnx", seed=1))
    assert other != first
    assert ImageEncoder(tmp_path / "a.onnx").sha256 == other


def test_an_encoder_of_eight_bits_or_of_matrix_products_stays_as_it_is(photos, tmp_path):
    quantized = make_encoder.training_encoder(write_convolutional(tmp_path / "m.onnx"), tmp_path / "q.onnx", photos,
                                              False, 0, None)
    for path in (quantized.path, write_transformer_like(tmp_path / "t.onnx")):
        found = make_encoder.training_encoder(path, tmp_path / "again.onnx", photos, False, 0, None)
        assert found.path == path
    assert not (tmp_path / "again.onnx").exists()


def test_a_photo_that_cannot_be_decoded_ends_the_calibration_and_leaves_nothing(photos, tmp_path):
    path = write_convolutional(tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"gone\.jpg is missing"):
        make_encoder.training_encoder(path, tmp_path / "q.onnx", [*photos, tmp_path / "gone.jpg"], False, 0, None)
    assert {file.name for file in tmp_path.glob("[!.]*")} == {"m.onnx", "m.json"}


@pytest.mark.parametrize("as_float", [True, False])
def test_a_file_that_is_no_model_is_refused_in_a_sentence(as_float, photos, tmp_path):
    path = tmp_path / "m.onnx"
    for content, sentence in ((None, "no such file"), (b"no model", "ONNX Runtime does not run this model")):
        if content:
            path.write_bytes(content)
            describe(path)
        with pytest.raises(UserError, match=rf"m\.onnx: {sentence}"):
            make_encoder.training_encoder(path, tmp_path / "q.onnx", photos, as_float, 0, None)


def test_a_model_that_takes_one_image_a_run_is_calibrated_too(photos, tmp_path):
    path = describe(write_tiny(tmp_path / "m.onnx", (1, *SHAPE[1:])))
    found = make_encoder.training_encoder(path, tmp_path / "q.onnx", photos, False, 0, None)
    assert features_of(found, photos).shape == (len(photos), found.width)


def test_a_model_of_which_no_eight_bits_can_be_made_is_refused_with_the_way_out(photos, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no such operator")
    monkeypatch.setattr(make_encoder, "quantize_static", fail)
    path = write_convolutional(tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"m\.onnx: .*no such operator.*--float runs it as it is"):
        make_encoder.training_encoder(path, tmp_path / "q.onnx", photos, False, 0, None)
