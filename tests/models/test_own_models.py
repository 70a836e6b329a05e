"""Features of any image encoder in ONNX: computing them, training on them, searching with the same model."""
import json
import os
import re
import resource
from dataclasses import replace

import cv2
import h5py
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, numpy_helper

import fit
import search
import train
import validation
from models import efficientnet_lite0 as lite0
from models import encoder
from models.backbones import LAST
from models.checkpoint import default_crops, embedder_of, read_checkpoint
from models.features import embed, kept_model_features, read_features
from models.image_model import model_of_features
from models.tf_encoder import FeatureExtractor, PhotoNetwork
from onnx_writer import Writer, tiny_graph, write_lite0, write_tiny
from prepare import features as prepare_features
from retrieval import index
from storage.files import read_json, write_json
from tiny import QUERIES, TRAINING, call, make_tiny, run
from util import UserError, stream

SIZES = {"train": TRAINING, "database": TRAINING, "query": QUERIES}
CHECKPOINT = "tiny_MILNCE_nbits=16_temperature=0.1_pairs=0_lambda=0.0_own"


@pytest.fixture
def run_program(monkeypatch, capsys):
    return lambda program, *arguments: call(monkeypatch, capsys, program, *arguments)


@pytest.fixture
def root(tmp_path):
    return make_tiny(tmp_path / "root")


@pytest.fixture
def compute(run_program, root):
    """Run prepare/features.py on `tiny` with photos of 40×40 pixels; returns exit code and output."""
    def compute(model, *options, output="own"):
        return run_program(prepare_features, "tiny", model, "--size", 32, "--mean", 0.5, 0.4, 0.3, "--std", 0.2, 0.3,
                           0.4, "--resize", 40, "--output", output, "--root", root, *options)
    return compute


def features(root, name="train", output="own"):
    with h5py.File(root / "features" / f"{output}.h5") as file:
        return file[name][()]


def photo(root, row):
    return root / "datasets" / "tiny" / f"{row}.jpg"


# ---------------------------------------------------------------- what is computed

def test_features_of_lite0_in_onnx_are_those_of_tensorflow(root, run_program, tmp_path):
    rng = stream(0, "random features")
    weights = {layer: [rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32),
                       rng.normal(0, 0.1, shape[-1]).astype(np.float32)]
               for layer, shape in lite0.LAYERS.items() if layer != LAST}
    model = write_lite0(tmp_path / "lite0.onnx", weights)
    code, output = run_program(prepare_features, "tiny", model, "--size", 224, "--resize", 256, "--stretch", "--mean",
                               *[127 / 255] * 3, "--std", *[128 / 255] * 3, "--output", "lite0", "--root", root)
    assert code == 0, output
    found = features(root, output="lite0")
    expected = FeatureExtractor(weights, 1, "/cpu:0").embed([photo(root, row) for row in range(TRAINING)])[:, 0]
    assert found.shape == (TRAINING, 1280)
    assert expected.std(0).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-3)


def expected_features(root, rows):
    """The same as the tiny model, by hand: the middle square, 40×40, of it 32×32, four by four windows of 8×8."""
    graph = tiny_graph()
    kernel, bias = (numpy_helper.to_array(tensor) for tensor in graph.weights)  # (12, 3, 8, 8), (12,)
    made = []
    for row in rows:
        image = cv2.imread(str(photo(root, row)))[:, 10:70, ::-1]  # 60×60, RGB
        image = cv2.resize(image, (40, 40), interpolation=cv2.INTER_AREA)[4:36, 4:36]
        x = (image / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
        windows = x.reshape(4, 8, 4, 8, 3)
        maps = np.einsum("ahbwc,fchw->abf", windows, kernel.astype(float)) + bias
        made.append(np.maximum(maps, 0).mean((0, 1)))
    return np.array(made)


def test_features_are_the_means_of_what_the_model_gives_of_the_middle_square(root, compute, tmp_path):
    code, output = compute(write_tiny(tmp_path / "m.onnx"))
    assert code == 0, output
    assert "12 features of each image: 10 of train, 10 of database, 3 of query" in output
    for name, count in SIZES.items():
        assert features(root, name).shape == (count, 12)
        assert features(root, name).dtype == np.float32
    np.testing.assert_allclose(features(root), expected_features(root, range(TRAINING)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(features(root, "query"),
                               expected_features(root, range(TRAINING, TRAINING + QUERIES)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("options", "shape", "arguments"), [
    ({"channels_first": False}, ("N", 32, 32, 3), ()),
    ({"bgr": True}, ("N", 3, 32, 32), ("--bgr",)),
    ({"channels_first": False, "pooled": False}, ("N", 32, 32, 3), ()),
    ({"pooled": False}, ("batch", "channels", "height", "width"), ("--batch-size", 3)),
    ({}, (1, 3, 32, 32), ()),
], ids=["channels last", "BGR", "maps, channels last", "maps of features", "one image a run"])
def test_models_of_other_forms_give_the_same(options, shape, arguments, root, compute, tmp_path):
    code, output = compute(write_tiny(tmp_path / "m.onnx", shape, **options), *arguments)
    assert code == 0, output
    np.testing.assert_allclose(features(root), expected_features(root, range(TRAINING)), rtol=1e-4, atol=1e-4)


def test_a_model_of_float16_is_fed_so(root, compute, tmp_path):
    graph = Writer()
    graph.node("Flatten", graph.node("ReduceMean", "images", axes=[2, 3]), output="features")
    code, output = compute(graph.write(tmp_path / "m.onnx", ["N", 3, 32, 32], kind=TensorProto.FLOAT16,
                                      result=TensorProto.FLOAT16))
    assert code == 0, output
    assert features(root).shape == (TRAINING, 3)
    assert np.abs(features(root)).max() < 5


def test_an_image_in_two_splits_is_computed_once_and_a_second_run_computes_nothing(root, compute, tmp_path,
                                                                                     monkeypatch):
    model, computed, blocks = write_tiny(tmp_path / "m.onnx"), [], PhotoNetwork.blocks

    def counted(self, paths, what):
        computed.extend(path.name for path in paths)
        return blocks(self, paths, what)
    monkeypatch.setattr(PhotoNetwork, "blocks", counted)
    assert compute(model)[0] == 0
    assert len(computed) == TRAINING + QUERIES
    before = features(root)
    computed.clear()
    assert compute(model)[0] == 0
    assert not computed
    cv2.imwrite(str(photo(root, 4)), 255 - cv2.imread(str(photo(root, 4))))
    assert compute(model)[0] == 0
    assert computed == ["4.jpg"]
    assert [row for row in range(TRAINING) if not np.array_equal(before[row], features(root)[row])] == [4]


def test_an_interrupted_computation_goes_on_where_it_was(root, compute, tmp_path, monkeypatch):
    model, blocks, computed = write_tiny(tmp_path / "m.onnx"), PhotoNetwork.blocks, []

    def interrupted(self, paths, what):
        for number, block in enumerate(blocks(self, paths, what)):
            if number == 2:
                raise KeyboardInterrupt
            yield block
    with monkeypatch.context() as patch:
        patch.setattr(PhotoNetwork, "blocks", interrupted)
        assert compute(model, "--batch-size", 3)[0] == 130

    def counted(self, paths, what):
        computed.extend(path.name for path in paths)
        return blocks(self, paths, what)
    monkeypatch.setattr(PhotoNetwork, "blocks", counted)
    assert compute(model, "--batch-size", 3)[0] == 0
    assert computed == [f"{row}.jpg" for row in range(6, TRAINING + QUERIES)]
    np.testing.assert_allclose(features(root), expected_features(root, range(TRAINING)), rtol=1e-4, atol=1e-4)


def test_splits_that_are_not_there_are_left_out_with_a_note(root, compute, tmp_path):
    (root / "data" / "tiny" / "test_img.txt").unlink()
    code, output = compute(write_tiny(tmp_path / "m.onnx"))
    assert code == 0
    assert re.search(r"note: .*test_img\.txt is not there, so the file gets no 'query'", output)
    with h5py.File(root / "features" / "own.h5") as file:
        assert {"train", "database"} <= set(file)
        assert "query" not in file


def test_the_file_tells_the_model(root, compute, tmp_path):
    assert compute(write_tiny(tmp_path / "m.onnx"), "--bgr", "--layer", "features")[0] == 0
    found = model_of_features(root / "features" / "own.h5")
    assert (found.path, found.size, found.resize) == (str(tmp_path / "m.onnx"), 32, 40)
    assert (found.bgr, found.stretch, found.layer) == (True, False, "features")
    assert (found.mean, found.std) == ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])


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


def of_nan():
    graph = tiny_graph()
    graph.weights[1].CopyFrom(numpy_helper.from_array(np.full(12, np.nan, np.float32), graph.weights[1].name))
    return graph


def of_another_file():
    graph = tiny_graph()
    tensor = graph.weights[1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("length", "48")):
        tensor.external_data.add(key=key, value=value)
    return graph


SHAPE = ["N", 3, 32, 32]
BAD = {
    "no ONNX": (lambda path: path.write_bytes(b"no model"), "ONNX Runtime does not run this model"),
    "empty": (lambda path: path.write_bytes(b""), "ONNX Runtime does not run this model"),
    "cut": (lambda path: path.write_bytes(write_tiny(path).read_bytes()[:500]), "ONNX Runtime does not run this model"),
    "missing": (lambda path: None, "no such file"),
    "a folder": (lambda path: path.mkdir(), "no such file"),
    "two inputs": (lambda path: tiny_graph().write(path, SHAPE, inputs=("images", "words")),
                   "expected an image encoder, whose one input are images, found the inputs 'images', 'words'"),
    "four channels": (lambda path: write_tiny(path, ("N", 4, 32, 32)), r"found tensor\(float\) \['N', 4, 32, 32\]"),
    "another size": (lambda path: write_tiny(path, ("N", 3, 64, 64)), "expected floats of N×3×32×32 or"),
    "seven images": (lambda path: write_tiny(path, (7, 3, 32, 32)), "N any number or 1 as the input"),
    "three axes": (lambda path: flattening().write(path, [3, 32, 32]), "N any number or 1 as the input"),
    "bytes": (lambda path: tiny_graph().write(path, SHAPE, kind=TensorProto.UINT8),
              "does not run this model|expected floats"),
    "two outputs": (lambda path: two_outputs().write(path, SHAPE, ("features", "other")),
                    "has the outputs 'features', 'other': --layer names the one"),
    "whole numbers": (lambda path: after("Cast", to=TensorProto.INT64).write(path, SHAPE, result=TensorProto.INT64),
                      r"in the output 'features', found int64 \(1, 12, 1, 1\)"),
    "words": (lambda path: after("Squeeze").write(path, SHAPE), r"found float32 \(12,\)"),
    "NaN": (lambda path: of_nan().write(path, SHAPE), "gives NaN or infinite embeddings of 10 images"),
    "weights elsewhere": (lambda path: of_another_file().write(path, SHAPE), "keeps its weights in another file"),
}


@pytest.mark.parametrize(("write", "sentence"), BAD.values(), ids=BAD)
def test_a_model_that_is_no_image_encoder_is_refused_in_a_sentence(write, sentence, compute, root, tmp_path):
    write(tmp_path / "m.onnx")
    code, output = compute(tmp_path / "m.onnx")
    assert code == 2
    assert re.search(f"error: .*{sentence}", output), output
    assert "Traceback" not in output
    assert not (root / "features" / "own.h5").exists()


def test_an_output_that_is_not_there_is_refused_with_those_that_are(compute, tmp_path):
    code, output = compute(write_tiny(tmp_path / "m.onnx"), "--layer", "pooled")
    assert code == 2
    assert "expected an output 'pooled', found 'features'" in output


@pytest.mark.parametrize(("arguments", "sentence"), [
    (("--resize", 31), "expected at least --size, 32"),
    (("--output", "../x"), "without slash"),
    (("--std", 0, 1, 1), "at least 1e-06"),
])
def test_options_that_cannot_be_are_refused(compute, arguments, sentence):
    code, output = compute("m.onnx", *arguments)
    assert code == 2
    assert sentence in output


def test_bad_images_are_named_with_split_and_row(root, compute, tmp_path):
    photo(root, 3).write_bytes(b"")
    code, output = compute(write_tiny(tmp_path / "m.onnx"))
    assert code == 2
    assert "2 images cannot be used" in output
    assert re.search(r"3\.jpg \(train, row 4\) is empty; .*3\.jpg \(database, row 4\) is empty", output)


def test_other_files_of_features_are_not_replaced(root, compute, tmp_path):
    model = write_tiny(tmp_path / "m.onnx")
    assert compute(model)[0] == 0
    code, output = compute(model, "--stretch")
    assert code == 2
    assert "holds features of another data set or model, or of other settings" in output
    with h5py.File(root / "features" / "mine.h5", "w") as file:
        file["train"] = np.ones((TRAINING, 3))
    code, output = compute(model, output="mine")
    assert code == 2
    assert "this program has not made it" in output


def test_a_disk_that_fills_is_told_with_the_file(root, compute, tmp_path):
    model = write_tiny(tmp_path / "m.onnx")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        code, output = compute(model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    assert "could not be written" in output
    assert compute(model)[0] == 0


def test_without_onnx_runtime_the_requirements_are_named(compute, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "onnxruntime", None)
    code, output = compute(write_tiny(tmp_path / "m.onnx"))
    assert code == 2
    assert "pip install -r requirements-features.txt" in output


@pytest.mark.slow
def test_the_program_runs_as_a_file(root, tmp_path):
    """Python looks for modules in the folder of a program first, and there `features` is the program itself."""
    model = write_tiny(tmp_path / "m.onnx")
    code, output = run("prepare/features.py", "tiny", model, "--size", 32, "--mean", 0, 0, 0, "--std", 1, 1, 1,
                       "--output", "own", "--root", root)
    assert code == 0, output
    assert features(root).shape == (TRAINING, 12)


# ---------------------------------------------------------------- training, and searching with the same model

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project in which a checkpoint was trained on features of a model, and this model."""
    root = make_tiny(tmp_path_factory.mktemp("own") / "root")
    model = write_tiny(root / "m.onnx")
    for program, arguments in (
            (prepare_features, ("tiny", model, "--size", 32, "--mean", 0.5, 0.5, 0.5, "--std", 0.1, 0.1, 0.1,
                                "--output", "own")),
            (train, ("tiny", 0.01, 30, 0, 2, "MILNCE", "own", "cpu", "--features", root / "features" / "own.h5",
                     "--batch-size", 5))):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr("sys.argv", [program.__name__, *map(str, arguments), "--root", str(root)])
            program.main()
    return root


def checkpoint_of(root):
    return root / "checkpoints" / f"{CHECKPOINT}.npy"


def test_a_photo_finds_itself_first_in_an_index_that_the_model_embedded(trained, run_program):
    checkpoint = checkpoint_of(trained)
    code, output = run_program(validation, "tiny", checkpoint, "cpu", "--features", trained / "features" / "own.h5",
                               "--root", trained)
    assert code == 0, output
    code, output = run_program(search, "build", checkpoint, "tiny", "--name", "own", "--root", trained)
    assert code == 0, output
    assert "the codes are those of" in output
    code, output = run_program(search, "build", checkpoint, trained / "datasets" / "tiny", "--name", "folder", "--root",
                               trained)
    assert code == 0, output
    assert f"{TRAINING + QUERIES} photos" in output
    assert "13 of 13 photos are embedded from the features that training computed" in output
    for name, row in (("own", 0), ("own", 7), ("folder", 1), ("folder", 4)):
        code, output = run_program(search, "query", name, photo(trained, row), "--json", "--root", trained)
        assert code == 0, output
        found = json.loads(output.splitlines()[-1])["results"][0]
        assert os.path.basename(found["path"]) == f"{row}.jpg"
        assert found["cosine"] > 0.99
    code, output = run_program(search, "tags", "own", photo(trained, 3), "--json", "--root", trained)
    assert code == 0, output


def test_embeddings_of_photos_are_those_of_their_features(trained):
    checkpoint = read_checkpoint(checkpoint_of(trained))
    assert (checkpoint.fitted, default_crops(checkpoint_of(trained))) == (True, 1)
    network = embedder_of(checkpoint_of(trained), 1)
    paths = [photo(trained, row) for row in range(TRAINING)]
    expected = embed(read_features(trained / "features" / "own.h5", "train",
                                   trained / "data" / "tiny" / "train_img.txt"), checkpoint.weights[LAST], unit=True)
    np.testing.assert_allclose(network.embed(paths), expected, atol=1e-5)
    decoded = [cv2.imread(str(path)) for path in paths]
    np.testing.assert_allclose(network.embed(decoded), expected, atol=1e-5)
    np.testing.assert_allclose(network.embed([network.resize(image) for image in decoded]), expected, atol=1e-5)
    embeddings, faults = network.embed_sound([paths[0], trained / "gone.jpg", paths[1]], lambda images: None)
    np.testing.assert_allclose(embeddings, expected[:2], atol=1e-5)
    assert list(faults) == [1]


def test_many_photos_are_encoded_by_the_model_and_fit_keeps_it(trained, run_program, tmp_path):
    pytest.importorskip("pyarrow")
    code, output = run_program(search, "encode", checkpoint_of(trained), trained / "datasets" / "tiny",
                               tmp_path / "codes", "--root", trained)
    assert code == 0, output
    code, output = run_program(fit, "tiny", checkpoint_of(trained), "cpu", "--features",
                               trained / "features" / "own.h5", "--codebooks", 1, "--output", tmp_path / "f.npy",
                               "--root", trained)
    assert code == 0, output
    assert read_checkpoint(tmp_path / "f.npy").model == read_checkpoint(checkpoint_of(trained)).model


def test_an_index_by_the_model_is_that_of_the_kept_features(trained, copied, run_program):
    indexes = []
    for checkpoint in (checkpoint_of(trained), copied):
        out = copied.parent / f"index{len(indexes)}"
        code, output = run_program(search, "build", checkpoint, trained / "datasets" / "tiny", "--out", out, "--root",
                                   trained, "--keep-embeddings")
        assert code == 0, output
        assert ("from the features that training computed" in output) == (checkpoint != copied)
        indexes.append(index.load(out).content)
    np.testing.assert_array_equal(indexes[0].codes, indexes[1].codes)
    np.testing.assert_allclose(indexes[0].embeddings, indexes[1].embeddings, atol=1e-3)


def test_features_of_another_width_are_refused(trained, tmp_path):
    model = read_checkpoint(checkpoint_of(trained)).model
    assert len(kept_model_features(trained / "features" / "own.h5", model, 12)) == TRAINING + QUERIES
    assert not kept_model_features(trained / "features" / "own.h5", replace(model, size=31), 12)
    assert not kept_model_features(tmp_path / "gone.h5", model, 12)
    with pytest.raises(UserError, match=r"own\.h5: expected train of shape \(10, 13\), found \(10, 12\)"):
        kept_model_features(trained / "features" / "own.h5", model, 13)


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the checkpoint and its record in a folder of its own, without the features."""
    copy = tmp_path / f"{CHECKPOINT}.npy"
    copy.write_bytes(checkpoint_of(trained).read_bytes())
    record = read_json(checkpoint_of(trained).with_suffix(".json"))
    record["options"]["features"] = str(tmp_path / "gone.h5")
    write_json(copy.with_suffix(".json"), record)
    return copy


def build(run_program, trained, checkpoint, *options):
    return run_program(search, "build", checkpoint, "tiny", "--out", checkpoint.parent / "index", "--root", trained,
                       *options)


def test_a_model_that_was_moved_is_found_beside_the_checkpoint(trained, run_program, copied):
    content = (trained / "m.onnx").read_bytes()
    (trained / "m.onnx").unlink()
    try:
        code, output = build(run_program, trained, copied)
        assert code == 2
        assert re.search(f"{re.escape(str(copied.parent / 'm.onnx'))}: no such file: the model in ONNX that", output)
        (copied.parent / "m.onnx").write_bytes(content)
        assert build(run_program, trained, copied)[0] == 0
    finally:
        (trained / "m.onnx").write_bytes(content)


def test_another_model_in_its_place_is_refused(trained, run_program, copied):
    content = (trained / "m.onnx").read_bytes()
    try:
        write_tiny(trained / "m.onnx", seed=1)
        code, output = build(run_program, trained, copied)
    finally:
        (trained / "m.onnx").write_bytes(content)
    assert code == 2
    assert re.search(r"m\.onnx is not the model that gave the features: its SHA-256 is", output)


def test_crops_are_the_models_own(trained, run_program, copied):
    code, output = build(run_program, trained, copied, "--crops", 10)
    assert code == 2
    assert "expected --crops 1" in output


def test_without_a_model_an_index_of_validations_codes_is_asked_by_words_only(trained, run_program, copied):
    record = read_json(copied.with_suffix(".json"))
    del record["image_model"]
    write_json(copied.with_suffix(".json"), record)
    code, output = build(run_program, trained, copied)
    assert code == 2
    assert "has no network of its own that embeds photos" in output
    code, output = run_program(validation, "tiny", copied, "cpu", "--features", trained / "features" / "own.h5",
                               "--root", trained)
    assert code == 0, output
    assert build(run_program, trained, copied, "--crops", default_crops(copied))[0] == 0
    code, output = run_program(search, "query", copied.parent / "index", "--words", "a", "--root", trained)
    assert code == 0, output
    code, output = run_program(search, "query", copied.parent / "index", photo(trained, 0), "--root", trained)
    assert code == 2
    assert "has no network of its own that embeds photos" in output


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", 3])
def test_a_file_of_features_that_describes_no_model_is_refused(tmp_path, text):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["image_model"] = text
    with pytest.raises(UserError, match=r"x\.h5: expected .* 'image_model'"):
        model_of_features(tmp_path / "x.h5")


@pytest.mark.parametrize("change", [
    {"size": 41}, {"size": "32"}, {"mean": [0, 0]}, {"std": [1, 1, 0]}, {"std": [1, 1, float("nan")]},
    {"resize": 10**9}, {"layer": 3}, {"path": "a\0b"}, {"more": 1}])
def test_a_record_that_describes_no_model_is_refused(trained, copied, change):
    record = read_json(copied.with_suffix(".json"))
    record["image_model"] |= change
    write_json(copied.with_suffix(".json"), record)
    with pytest.raises(UserError, match="expected under 'image_model' the description of a model"):
        read_checkpoint(copied)


def test_a_last_layer_of_another_width_than_the_models_features_is_refused(trained):
    checkpoint = read_checkpoint(checkpoint_of(trained))
    kernel, bias = checkpoint.weights[LAST]
    with pytest.raises(UserError, match="expected 11 features an image, as the last layer has, found 12"):
        encoder.OnnxEncoder(checkpoint.model, [kernel[:11], bias], unit=True)
    with pytest.raises(UserError, match="expected an output 'x'"):
        encoder.OnnxEncoder(replace(checkpoint.model, layer="x"), [kernel, bias], unit=True)
