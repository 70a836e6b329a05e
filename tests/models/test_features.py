"""Fixed features: training, validating and searching on them, what is computed again, and what is refused."""
import os
import re
import resource

import cv2
import fit
import h5py
import numpy as np
import pytest
from models.backbones import LAST
from models.tf_encoder import Encoder, FeatureExtractor

import oracles
import search
import train
import validation
from dataset import find_dataset
from models import efficientnet_lite0, features
from models.checkpoint import read_checkpoint
from quantization import quantizer
from retrieval import build
from retrieval.retrieval_file import read_content
from storage.arrays import read_weights, write_weights
from tiny import QUERIES, TRAINING, call, make_tiny
from util import UserError, stream

NAME = "tiny_SOFTMAX_nbits=16_temperature=0.1_pairs=1_lambda=0.0"


def random_weights():
    """Of all layers of EfficientNet-Lite0 below the last."""
    rng = stream(0, "random features")
    return {layer: [rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32),
                    np.zeros(shape[-1], np.float32)]
            for layer, shape in efficientnet_lite0.LAYERS.items() if layer != LAST}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = make_tiny(tmp_path_factory.mktemp("features"))
    write_weights(root / "efficientnet_lite0.npy", random_weights())
    return root


@pytest.fixture
def run_program(monkeypatch, capsys):
    return lambda program, *arguments: call(monkeypatch, capsys, program, *arguments)


def training(root, *options, steps=8, notes="f", rate=0.003):
    return ("tiny", rate, steps, 0, 2, "SOFTMAX", notes, "cpu", "--backbone", "efficientnet_lite0", "--pairs", 1,
            "--batch-size", 4, "--root", root, *options)


@pytest.fixture(scope="module")
def trained(root):
    """The checkpoint of a training on fixed features."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("sys.argv", ["train.py", *map(str, training(root))])
        train.main()
    return root / "checkpoints" / f"{NAME}_f.npy"


# ---------------------------------------------------------------- the programs

def test_a_checkpoint_of_fixed_features_holds_the_whole_network_and_fitted_codebooks(root, trained):
    checkpoint = read_checkpoint(trained)
    assert checkpoint.fitted
    assert checkpoint.weights.keys() == efficientnet_lite0.LAYERS.keys()
    for layer, (kernel, _) in random_weights().items():
        np.testing.assert_array_equal(checkpoint.weights[layer][0], kernel)
    with h5py.File(root / "features" / "tiny_efficientnet_lite0_1.h5") as file:
        assert file["train"].shape == (TRAINING, 1, 1280)
        assert file["train"].dtype == np.float16


def test_validation_on_features_gives_the_embeddings_of_the_whole_network(root, trained, run_program):
    code, output = run_program(validation, "tiny", trained, "cpu", "--root", root)
    assert code == 0, output
    found = read_content(trained.with_name(f"{trained.stem}_retrieval.h5"))
    np.testing.assert_allclose(np.linalg.norm(found.db_features, axis=1), 1, rtol=1e-5)
    code, output = run_program(search, "build", trained, "tiny", "--root", root, "--out", root / "indexes" / "tiny")
    assert code == 0, output
    photos = search.open_index(root / "indexes" / "tiny")
    expected = oracles.neighbour_averages(found.db_features[:3], *read_checkpoint(trained).neighbours)
    for row in range(3):
        whole = photos.embed(root / "datasets" / "tiny" / f"{row}.jpg")
        np.testing.assert_allclose(whole, expected[row], atol=2e-3)
        assert photos.index.content.facts["crops"] == 1


def test_a_resumed_training_on_features_ends_as_one_that_was_not_interrupted(root, trained, run_program):
    code, output = run_program(train, *training(root, "--save-every", 3, notes="whole"))
    assert code == 0, output
    for steps, resume in ((3, ()), (8, ("--resume",))):
        code, output = run_program(train, *training(root, "--save-every", 3, *resume, steps=steps, notes="parts"))
        assert code == 0, output
    whole, parts = (read_weights(trained.with_name(f"{NAME}_{notes}.npy")) for notes in ("whole", "parts"))
    np.testing.assert_array_equal(whole[LAST][0], parts[LAST][0])
    np.testing.assert_array_equal(whole["C"], parts["C"])
    np.testing.assert_array_equal(whole["C"], read_weights(trained)["C"])


def test_training_learns_from_features(root, run_program):
    code, output = run_program(train, *training(root, "--batch-size", TRAINING, "--dropout", 0, steps=40, notes="learn",
                                                rate=0.0001))
    assert code == 0, output
    losses = [float(line.split("embedding loss [")[1].split("]")[0]) for line in output.splitlines()
              if "embedding loss [" in line]
    assert len(losses) == 40
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("notes", "options", "moves"), [
    ("random", ("--crops", "random"), False),
    pytest.param("all", ("--finetune", "all", "--final-fit"), True, marks=pytest.mark.slow)])
def test_random_crops_of_the_last_layer_and_all_layers_train_too(root, run_program, notes, options, moves):
    code, output = run_program(train, *training(root, *options, steps=1, notes=notes))
    assert code == 0, output
    weights = read_weights(root / "checkpoints" / f"{NAME}_{notes}.npy")
    assert np.array_equal(weights["stem"][0], random_weights()["stem"][0]) is not moves
    assert ("fit" in weights) == ("--final-fit" in options)


@pytest.mark.parametrize(("options", "sentence"), [
    (("--finetune", "all", "--crops", "fixed"), "expected --finetune last"),
    (("--finetune", "all", "--features", "x.h5"), "expected --finetune last"),
    (("--crops", "random", "--features", "x.h5"), "exclude each other"),
    (("--two-stage", "--final-fit"), "exclude each other"),
    (("--weights", "gone.npy"), "gone.npy: no such file: .* requirements-backbone.txt"),
])
def test_options_that_do_not_go_together_are_refused(root, run_program, options, sentence):
    code, output = run_program(train, *training(root, *options))
    assert code == 2
    assert re.search(sentence, output), output


def test_codebooks_are_fitted_anew_for_other_bits(root, trained, run_program):
    code, output = run_program(fit, "tiny", trained, "cpu", "--codebooks", 4, "--root", root)
    assert code == 0, output
    refitted = read_checkpoint(trained.with_name(f"{NAME.replace('16', '32')}_f_fit.npy"))
    assert refitted.fitted
    assert refitted.codebooks.shape == (4, 256, 300)
    np.testing.assert_array_equal(refitted.weights[LAST][0], read_checkpoint(trained).weights[LAST][0])
    code, output = run_program(fit, "tiny", trained, "cpu", "--output", trained, "--root", root)
    assert code == 2
    assert "is the checkpoint itself" in output


# ---------------------------------------------------------------- what is computed again

class Log:
    def info(self, line):
        pass


def photo_features(root, split="train", rows=None, views=1):
    rows = np.arange(TRAINING if split != "test" else QUERIES) if rows is None else rows
    return features.photo_features(find_dataset("tiny", root), split, rows, random_weights(), efficientnet_lite0, views,
                                   "/cpu:0", "float32", root, Log())


@pytest.fixture
def computed(monkeypatch):
    """The names of the photos whose features are computed."""
    names, blocks = [], FeatureExtractor.blocks

    def counted(self, paths, what):
        for path, block in zip(paths, blocks(self, paths, what), strict=False):
            names.extend(os.path.basename(path) for path in paths[len(names):len(names) + len(block)])
            assert path
            yield block
    monkeypatch.setattr(FeatureExtractor, "blocks", counted)
    return names


def test_only_new_and_changed_photos_are_computed_and_splits_share_theirs(tmp_path, computed):
    root = make_tiny(tmp_path)
    first = photo_features(root)
    assert len(computed) == TRAINING
    computed.clear()
    np.testing.assert_array_equal(photo_features(root), first)
    np.testing.assert_array_equal(photo_features(root, "database"), first)
    assert not computed
    changed = root / "datasets" / "tiny" / "4.jpg"
    cv2.imwrite(str(changed), 255 - cv2.imread(str(changed)))
    again = photo_features(root)
    assert computed == ["4.jpg"]
    assert [row for row in range(TRAINING) if not np.array_equal(first[row], again[row])] == [4]
    computed.clear()
    assert photo_features(root, "test").shape == (QUERIES, 1, 1280)
    assert len(computed) == QUERIES


def test_photos_that_are_left_out_have_no_features(tmp_path):
    root = make_tiny(tmp_path)
    (root / "datasets" / "tiny" / "3.jpg").unlink()
    rows = np.array([row for row in range(TRAINING) if row != 3])
    assert np.isfinite(photo_features(root, rows=rows)).all()
    with h5py.File(root / "features" / "tiny_efficientnet_lite0_1.h5") as file:
        assert np.isnan(file["train"][3]).all()


def test_an_interrupted_computation_goes_on_where_it_was(tmp_path, monkeypatch, computed):
    root = make_tiny(tmp_path)
    whole = photo_features(make_tiny(tmp_path / "whole"))
    computed.clear()
    monkeypatch.setattr(efficientnet_lite0, "CROPS_AT_ONCE", 3)
    blocks = FeatureExtractor.blocks

    def interrupted(self, paths, what):
        for number, block in enumerate(blocks(self, paths, what)):
            if number == 2:
                raise KeyboardInterrupt
            yield block
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractor, "blocks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            photo_features(root)
    partial = root / "features" / ".tiny_efficientnet_lite0_1.h5.partial"
    with open(partial, "ab") as file:
        file.write(b"half a record")
    computed.clear()
    np.testing.assert_allclose(photo_features(root), whole, atol=2e-3)
    assert computed == [f"{row}.jpg" for row in range(6, TRAINING)]
    assert not partial.exists()


def test_features_of_other_weights_or_views_are_not_used(tmp_path, computed):
    root = make_tiny(tmp_path)
    photo_features(root)
    computed.clear()
    weights = random_weights()
    weights["stem"][0] *= 2
    features.photo_features(find_dataset("tiny", root), "train", np.arange(TRAINING), weights, efficientnet_lite0, 1,
                            "/cpu:0", "float32", root, Log())
    assert len(computed) == TRAINING
    computed.clear()
    two = photo_features(root, views=2)
    assert (two.shape, len(computed)) == ((TRAINING, 2, 1280), TRAINING)
    assert not np.array_equal(two[:, 0], two[:, 1])


def test_an_altered_file_of_features_is_refused(tmp_path):
    root = make_tiny(tmp_path)
    photo_features(root)
    path = root / "features" / "tiny_efficientnet_lite0_1.h5"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="was altered since it was written"):
        photo_features(root)


def test_a_disk_that_fills_is_told_with_the_file_and_what_is_computed_stays(tmp_path):
    root = make_tiny(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"\.h5\.partial: it could not be written"):
            photo_features(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert photo_features(root).shape == (TRAINING, 1, 1280)


# ---------------------------------------------------------------- features from elsewhere

@pytest.fixture
def own(root, tmp_path):
    """A file of features from elsewhere."""
    rng = stream(0, "own features")
    path = tmp_path / "own.h5"
    with h5py.File(path, "w") as file:
        for name, count in (("train", TRAINING), ("database", TRAINING), ("query", QUERIES)):
            file[name] = rng.normal(size=(count, 17)).astype(np.float32)
    return path


def test_features_from_elsewhere_train_and_validate_without_photos_and_weights(own, run_program, tmp_path):
    root = make_tiny(tmp_path)
    for photo in (root / "datasets" / "tiny").iterdir():
        photo.unlink()
    code, output = run_program(train, "tiny", 0.003, 8, 0, 2, "MILNCE", "own", "cpu", "--features", own, "--batch-size",
                               4, "--root", root)
    assert code == 0, output
    checkpoint = root / "checkpoints" / "tiny_MILNCE_nbits=16_temperature=0.1_pairs=0_lambda=0.0_own.npy"
    assert read_checkpoint(checkpoint).weights[LAST][0].shape == (17, 300)
    code, output = run_program(validation, "tiny", checkpoint, "cpu", "--features", own, "--root", root)
    assert code == 0, output
    with h5py.File(own) as file:
        expected = features.embed(file["query"][()][:, None], read_checkpoint(checkpoint).weights[LAST], unit=True)
    found = read_content(checkpoint.with_name(f"{checkpoint.stem}_retrieval.h5"))
    np.testing.assert_allclose(found.qry_features, expected, atol=1e-6)
    averaged = oracles.neighbour_averages(expected, *read_checkpoint(checkpoint).neighbours)
    np.testing.assert_allclose(found.queries, averaged, atol=1e-5)
    scores = quantizer.quantized_scores(found.queries, found.db_codes, found.codebooks)
    printed = float(re.search(r"^AQD +([0-9.]+)", output, re.M)[1])
    assert printed == pytest.approx(oracles.retrieval(scores, found.qry_label, found.db_label, TRAINING)[0], abs=1e-4)
    checkpoint.with_name(f"{checkpoint.stem}_retrieval.h5").unlink()
    code, output = run_program(validation, "tiny", checkpoint, "cpu", "--root", root)
    assert code == 2
    assert "images cannot be used" in output  # the photos, which are gone


@pytest.mark.parametrize(("name", "array", "sentence"), [
    ("train", None, "expected a dataset 'train', found database, query"),
    ("train", np.zeros((TRAINING - 1, 17)), r"expected as many rows of train as .*train_img\.txt has, 10, found 9"),
    ("train", np.zeros((TRAINING, 17), int), "expected train of floats"),
    ("train", np.zeros(TRAINING), "images × features"),
    ("train", np.zeros((TRAINING, 0)), "images × features"),
    ("train", np.where(np.arange(TRAINING * 17) == 6 * 17, np.inf, 0).reshape(TRAINING, 17), "row 7 of train holds"),
    ("train", np.zeros((TRAINING, 18)), "expected 17 features an image, as the last layer has, found 18"),
])
def test_features_that_do_not_fit_are_refused_in_a_sentence(root, own, name, array, sentence):
    with h5py.File(own, "a") as file:
        del file[name]
        if array is not None:
            file[name] = array
    image_list = find_dataset("tiny", root).split_files("train")[0]
    with pytest.raises(UserError, match=sentence):
        features.read_features(own, "train", image_list, 17)


def test_a_file_that_holds_no_features_is_refused(root, tmp_path):
    image_list = find_dataset("tiny", root).split_files("train")[0]
    (tmp_path / "x.h5").write_bytes(b"no HDF5")
    for path, sentence in ((tmp_path / "x.h5", "expected an HDF5 file"), (tmp_path / "y.h5", "no such file")):
        with pytest.raises(UserError, match=sentence):
            features.read_features(path, "train", image_list)


def test_an_index_takes_the_features_that_training_computed(root, trained, tmp_path, capsys, monkeypatch):
    """It holds the codes that the network gives, but for what float16 rounds, and only other photos are seen by it."""
    seen = []
    embed = Encoder.embed
    monkeypatch.setattr(Encoder, "embed", lambda self, paths, what: seen.extend(paths) or embed(self, paths, what))
    photos = root / "datasets" / "tiny"
    made = build.build(trained, photos, out=tmp_path / "kept", root=root, keep_embeddings=True)
    with h5py.File(root / "features" / "tiny_efficientnet_lite0_1.h5") as file:
        known = TRAINING + ("query" in file) * QUERIES  # as other tests validated it before, or not
    assert f"{known} of {len(made)} photos are embedded from the features" in capsys.readouterr().out
    assert len(seen) == len(made) - known
    seen.clear()
    whole = build.build(trained, photos, out=tmp_path / "whole", root=root, keep_embeddings=True, crops=1,
                           precision="bfloat16")
    assert len(seen) == len(whole) == len(made)  # of another precision
    np.testing.assert_allclose(made.content.embeddings, whole.content.embeddings, atol=0.02)
