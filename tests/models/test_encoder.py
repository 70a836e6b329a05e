"""Image encoders in ONNX: what they see of a photo, embeddings by them, and what is refused."""
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, numpy_helper

from drawn_photos import write_photos
from models import encoder
from models.encoder import ImageEncoder, PhotoEmbedder, crops_of, embed
from onnx_writer import SEEN, WIDTH, Writer, describe, tiny_encoder, tiny_graph, write_tiny
from storage.files import fingerprint, read_json, write_json
from util import UserError, stream


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Paths of seven photos of 256×256 pixels, and what is in them, uint8 (7, 256, 256, 3)."""
    images = stream(0, "crop test").integers(0, 256, (7, 256, 256, 3), dtype=np.uint8)
    return write_photos(tmp_path_factory.mktemp("photos"), images), images


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Paths of five photos of 80×60 pixels, as they are decoded."""
    images = stream(0, "wide photos").integers(0, 256, (5, 60, 80, 3), dtype=np.uint8)
    return write_photos(tmp_path_factory.mktemp("wide"), images)


# ---------------------------------------------------------------- crops

def corner_encoder(folder):
    """An encoder that shows which crop it was given: its one feature is the first blue pixel, in thousandths."""
    graph, bounds = Writer(), [np.array(numbers) for numbers in ([0, 0, 0], [1, 1, 1], [1, 2, 3])]
    pixel = graph.node("Slice", graph.node("Cast", "images", to=TensorProto.FLOAT), *map(graph.stored, bounds))
    graph.node("Flatten", graph.node("Div", pixel, graph.stored(np.float32(1000))), output="features")
    path = graph.write(folder / "corner.onnx", ("N", 227, 227, 3), kind=TensorProto.UINT8)
    return ImageEncoder(describe(path, size=227, resize=256, bgr=True))


SHOWN = [np.ones((1, 300), np.float32), np.zeros(300, np.float32)]


def corners(images, crops):
    """The first blue pixel of each crop, in thousandths, (V, N)."""
    offsets = {10: (0, 28, 14), 5: (0, 28, 14), 2: (14,), 1: (14,)}[crops]
    places = [(top, left) for top in offsets for left in offsets if (top == 14) == (left == 14)]
    return [view[:, top, left, 0] / 1000 for view in ((images, images[:, :, ::-1]) if crops in (10, 2) else (images,))
            for top, left in places]


@pytest.mark.parametrize("crops", [10, 5, 2, 1])
def test_embeddings_are_the_mean_over_the_crops_and_cover_each_image_once(crops, photos, tmp_path):
    paths, images = photos
    corner, expected = corner_encoder(tmp_path), np.transpose(corners(images, crops))  # (N, V)
    np.testing.assert_allclose(np.sort(corner.features(images, crops)[:, :, 0], axis=1), np.sort(expected), rtol=1e-5)
    found = PhotoEmbedder(corner, SHOWN, False, crops).embed(paths)
    np.testing.assert_allclose(found, np.tanh(expected).mean(1, keepdims=True).repeat(300, 1), rtol=1e-5)


def test_one_crop_is_the_plain_centre_and_ten_are_all_inside():
    assert crops_of(1, 32, 40) == [((4, 4), False)]
    assert len(set(crops_of(10, 227, 256))) == 10
    assert all(0 <= start <= 256 - 227 for place, _ in crops_of(10, 227, 256) for start in place)


def test_embeddings_of_fitted_codebooks_have_length_1(photos, tmp_path):
    found = PhotoEmbedder(corner_encoder(tmp_path), SHOWN, True, 2).embed(photos[0])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("cores", [1, 3])
def test_a_processor_runs_as_many_batches_side_by_side_as_it_has_cores(cores, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "cores", lambda: cores)
    corner, running, most = corner_encoder(tmp_path), [], []
    features = corner.features

    def counted(images, crops):
        running.append(images)
        most.append(len(running))
        time.sleep(0.05)
        found = features(images, crops)
        running.pop()
        return found
    monkeypatch.setattr(corner, "features", counted)
    found = PhotoEmbedder(corner, SHOWN, False, 10).embed(photos[0] * 4)  # seven runs of four photos
    assert (max(most), len(most)) == (cores, 7)
    expected = np.mean(np.tanh(corners(photos[1], 10)), axis=0)
    np.testing.assert_allclose(found, np.tile(expected, 4)[:, None].repeat(300, 1), rtol=1e-5)


def test_many_threads_share_an_embedder(photos, tmp_path):
    shared = PhotoEmbedder(corner_encoder(tmp_path), SHOWN, False, 1)
    expected = shared.embed(photos[0])
    with ThreadPoolExecutor(8) as pool:
        for row, found in enumerate(pool.map(shared.embed, [[path] for path in photos[0] * 6])):
            np.testing.assert_array_equal(found[0], expected[row % len(expected)])


def test_a_photo_that_the_network_makes_nan_of_is_named(photos, tmp_path):
    shared = PhotoEmbedder(corner_encoder(tmp_path), [SHOWN[0], np.full(300, np.nan, np.float32)], False, 1)
    for photo, name in ((photos[0][3], r"/3\.png"), (photos[1][3], "an image")):
        with pytest.raises(UserError, match=f"NaN or infinite embeddings of 1 images: .*{name}"):
            shared.embed([photo])


# ---------------------------------------------------------------- features

def expected_features(paths):
    """The features of the tiny encoder by hand: the middle square, 40×40, of it 32×32, four by four windows of 8×8."""
    kernel, bias = (numpy_helper.to_array(tensor) for tensor in tiny_graph().weights)  # (12, 3, 8, 8), (12,)
    made = []
    for path in paths:
        image = cv2.imread(str(path))[:, 10:70, ::-1]  # 60×60, RGB
        image = cv2.resize(image, (40, 40), interpolation=cv2.INTER_AREA)[4:36, 4:36]
        windows = ((image / 255 - SEEN["mean"]) / SEEN["std"]).reshape(4, 8, 4, 8, 3)
        maps = np.einsum("ahbwc,fchw->abf", windows, kernel.astype(float)) + bias
        made.append(np.maximum(maps, 0).mean((0, 1)))
    return np.array(made)


def features_of(path, photos):
    return np.concatenate(list(ImageEncoder(path).photo_features(photos, "computing")))


@pytest.mark.parametrize(("shape", "options", "record"), [
    (("N", 3, 32, 32), {}, {}),
    (("N", 32, 32, 3), {"channels_first": False}, {}),
    (("N", 3, 32, 32), {"bgr": True}, {"bgr": True, "layer": "features"}),
    (("N", 32, 32, 3), {"channels_first": False, "pooled": False}, {}),
    (("batch", "channels", "height", "width"), {"pooled": False}, {}),
    ((1, 3, 32, 32), {}, {}),
], ids=["channels first", "channels last", "BGR", "maps, channels last", "maps of features", "one image a run"])
def test_features_are_the_means_of_what_the_model_gives_of_the_middle_square(shape, options, record, wide, tmp_path):
    path = describe(write_tiny(tmp_path / "m.onnx", shape, **options), **record)
    assert ImageEncoder(path).width == WIDTH
    np.testing.assert_allclose(features_of(path, wide * 3), np.tile(expected_features(wide), (3, 1)),
                               rtol=1e-4, atol=1e-4)


def means_of_colours(path, kind, result):
    """An encoder whose features are the means of the three channels."""
    graph = Writer()
    pixels = "images" if kind == result else graph.node("Cast", "images", to=result)
    graph.node("Flatten", graph.node("ReduceMean", pixels, axes=[2, 3]), output="features")
    return graph.write(path, kind=kind, result=result)


def test_a_model_of_float16_or_of_bytes_is_fed_so(wide, tmp_path):
    path = describe(means_of_colours(tmp_path / "half.onnx", TensorProto.FLOAT16, TensorProto.FLOAT16))
    half = features_of(path, wide)
    path = describe(means_of_colours(tmp_path / "bytes.onnx", TensorProto.UINT8, TensorProto.FLOAT))
    whole = features_of(path, wide)  # which sees the pixels as they are
    assert half.dtype == whole.dtype == np.float32
    np.testing.assert_allclose(half, (whole / 255 - SEEN["mean"]) / SEEN["std"], atol=0.02)


def test_a_photo_may_be_stretched_and_resized_bilinearly(wide, tmp_path):
    path = means_of_colours(tmp_path / "m.onnx", TensorProto.UINT8, TensorProto.FLOAT)
    found = features_of(describe(path, stretch=True, bilinear=True, bgr=True), wide)
    expected = [cv2.resize(cv2.imread(str(photo)), (40, 40))[4:36, 4:36].mean((0, 1)) for photo in wide]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# ---------------------------------------------------------------- embeddings

def last_layer(width):
    rng = stream(0, "last layer", width)
    return [rng.normal(0, 0.3, (width, 300)).astype(np.float32), rng.normal(0, 0.1, 300).astype(np.float32)]


def test_embeddings_of_photos_are_those_of_their_features(wide, tmp_path):
    tiny = tiny_encoder(tmp_path / "m.onnx")
    shared = PhotoEmbedder(tiny, last_layer(WIDTH), True, 1)
    expected = embed(expected_features(wide)[:, None], last_layer(WIDTH), unit=True)
    np.testing.assert_allclose(shared.embed(wide), expected, atol=1e-5)
    decoded = [cv2.imread(str(path)) for path in wide]
    np.testing.assert_allclose(shared.embed(decoded), expected, atol=1e-5)
    np.testing.assert_allclose(shared.embed([shared.resize(image) for image in decoded]), expected, atol=1e-5)
    assert shared.embed([]).shape == (0, 300)


def test_embeddings_that_overlap_leave_numpy_its_threads():
    def threads():
        return {pool["num_threads"] for pool in ThreadpoolController().select(user_api="blas").info()}
    with ThreadpoolController().limit(limits=3):
        first, second = contextlib.ExitStack(), contextlib.ExitStack()
        first.enter_context(encoder.ONE_THREAD.hold())
        second.enter_context(encoder.ONE_THREAD.hold())
        first.close()
        assert threads() == {1}
        second.close()
        assert threads() == {3}


def test_photos_that_cannot_be_decoded_are_reported_by_row_and_the_others_embedded(wide, tmp_path):
    shared, done = PhotoEmbedder(tiny_encoder(tmp_path / "m.onnx"), last_layer(WIDTH), True, 1), []
    paths = [wide[0], tmp_path / "gone.jpg", *wide * 3]
    embeddings, faults = shared.embed_sound(paths, done.append)
    np.testing.assert_allclose(embeddings, shared.embed([wide[0], *wide * 3]), atol=1e-6)
    assert faults == {1: "is missing"}
    assert sum(done) == len(paths)
    assert shared.embed_sound([tmp_path / "gone.jpg"], done.append)[0].shape == (0, 300)
    with pytest.raises(UserError, match=r"gone\.jpg is missing"):
        shared.embed(paths)


def test_a_last_layer_of_another_width_than_the_features_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected 11 features an image, as the last layer has, found 12"):
        PhotoEmbedder(tiny_encoder(tmp_path / "m.onnx"), last_layer(11), True, 1)


def test_many_features_are_embedded_in_parts(monkeypatch):
    monkeypatch.setattr(encoder, "EMBEDDED_AT_ONCE", 3)
    features, (kernel, bias) = stream(0, "parts").normal(size=(8, 2, 5)).astype(np.float16), last_layer(5)
    expected = np.tanh(features.astype(np.float32) @ kernel + bias).mean(1)
    np.testing.assert_allclose(embed(features, [kernel, bias], unit=False), expected, atol=1e-6)


# ---------------------------------------------------------------- what is refused

def two_outputs():
    graph = tiny_graph()
    graph.node("Identity", "features", output="other")
    return graph


def after(operator, *inputs, **options):
    """A tiny graph whose features another node changes."""
    graph = tiny_graph()
    graph.nodes[-1].output[0] = "before"
    graph.node(operator, "before", *inputs, output="features", **options)
    return graph


def flattening():
    graph = Writer()
    graph.node("Flatten", "images", output="features")
    return graph


def of_another_file():
    graph = tiny_graph()
    tensor = graph.weights[1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("length", "48")):
        tensor.external_data.add(key=key, value=value)
    return graph


BAD = {
    "no ONNX": (lambda path: path.write_bytes(b"no model"), "ONNX Runtime does not run this model"),
    "empty": (lambda path: path.write_bytes(b""), "ONNX Runtime does not run this model"),
    "cut": (lambda path: path.write_bytes(write_tiny(path).read_bytes()[:500]), "ONNX Runtime does not run this model"),
    "two inputs": (lambda path: tiny_graph().write(path, inputs=("images", "words")),
                   "expected an image encoder, whose one input is images, found the inputs 'images', 'words'"),
    "four channels": (lambda path: write_tiny(path, ("N", 4, 32, 32)), r"found tensor\(float\) \['N', 4, 32, 32\]"),
    "another size": (lambda path: write_tiny(path, ("N", 3, 64, 64)), "expected an input of floats or uint8, N×3×32"),
    "seven images": (lambda path: write_tiny(path, (7, 3, 32, 32)), "N any number or 1, found"),
    "three axes": (lambda path: flattening().write(path, [3, 32, 32]), "N any number or 1, found"),
    "bytes": (lambda path: tiny_graph().write(path, kind=TensorProto.UINT8), "does not run this model"),
    "words": (lambda path: flattening().write(path, kind=TensorProto.STRING, result=TensorProto.STRING),
              r"found tensor\(string\)"),
    "two outputs": (lambda path: two_outputs().write(path, outputs=("features", "other")),
                    "has the outputs 'features', 'other': --layer of prepare/encoder.py names the one"),
    "whole numbers": (lambda path: after("Cast", to=TensorProto.INT64).write(path, result=TensorProto.INT64),
                      r"in the output 'features', found int64 \(1, 12, 1, 1\)"),
    "one axis": (lambda path: after("Squeeze").write(path), r"found float32 \(12,\)"),
    "a name that is no text": (
        lambda path: path.write_bytes(write_tiny(path).read_bytes().replace(b"images", b"ima\xce\xceg")),
        "ONNX Runtime does not run this model"),
    "weights elsewhere": (lambda path: of_another_file().write(path), "keeps its weights in another file"),
}


@pytest.mark.parametrize(("write", "sentence"), BAD.values(), ids=BAD)
def test_a_model_that_is_no_image_encoder_is_refused_in_a_sentence(write, sentence, tmp_path):
    write(tmp_path / "m.onnx")
    with pytest.raises(UserError, match=rf"m\.onnx.*{sentence}"):
        ImageEncoder(describe(tmp_path / "m.onnx"))


def test_an_output_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(UserError, match="expected an output 'pooled', found 'features'"):
        ImageEncoder(describe(write_tiny(tmp_path / "m.onnx"), layer="pooled"))


def test_a_model_without_a_record_or_a_file_is_refused(tmp_path):
    path = write_tiny(tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"m\.json: no such file: `python prepare/encoder.py m.onnx --size …` writes"):
        ImageEncoder(path)
    describe(path)
    path.unlink()
    with pytest.raises(UserError, match=r"m\.onnx: no such file"):
        ImageEncoder(path)
    path.mkdir()
    with pytest.raises(UserError, match=r"m\.onnx: no such file"):
        ImageEncoder(path)


def test_another_model_in_its_place_is_refused(tmp_path):
    path = describe(write_tiny(tmp_path / "m.onnx"))
    write_tiny(path, seed=1)
    with pytest.raises(UserError, match=r"m\.onnx was altered since it was written"):
        ImageEncoder(path)


@pytest.mark.parametrize("change", [
    {"size": 41}, {"size": "32"}, {"size": 0}, {"mean": [0, 0]}, {"std": [1, 1, 0]}, {"std": [1, 1, -1]},
    {"resize": 10**9}, {"layer": 3}, {"crops": 3}, {"bgr": "yes"}, {"sha256": {"other.onnx": "0"}}, {"sha256": None},
    {"size": None}])
def test_a_record_that_describes_no_encoder_is_refused_by_name(change, tmp_path):
    path = describe(write_tiny(tmp_path / "m.onnx"))
    record = {**read_json(tmp_path / "m.json"), **change}
    write_json(tmp_path / "m.json", record)
    with pytest.raises(UserError, match=r"m\.json: "):
        ImageEncoder(path)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_a_record_of_numbers_that_are_not_finite_is_refused(text, tmp_path):
    path = write_tiny(tmp_path / "m.onnx")
    (tmp_path / "m.json").write_text(f'{{"size": 32, "resize": 40, "mean": [0, 0, {text}], '
                                     f'"sha256": {{"m.onnx": "{fingerprint(path)}"}}}}')
    with pytest.raises(UserError, match=r"m\.json: .*expected finite numbers as mean and std"):
        ImageEncoder(path)


def test_without_onnx_runtime_its_extra_is_named(tmp_path, monkeypatch):
    path = describe(write_tiny(tmp_path / "m.onnx"))
    monkeypatch.setattr(encoder, "onnxruntime", None)
    with pytest.raises(UserError, match=r"image encoders need ONNX Runtime: pip install -e '\.\[encoders\]'"):
        ImageEncoder(path)


def test_without_a_gpu_a_note_says_that_the_processor_is_used(tmp_path, capsys):
    path = describe(write_tiny(tmp_path / "m.onnx"))
    if "CUDAExecutionProvider" in encoder.onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime uses a GPU")
    assert ImageEncoder(path, gpu=0).width == WIDTH
    assert "note: this ONNX Runtime uses no GPU" in capsys.readouterr().err
