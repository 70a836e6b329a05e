"""train.py: its schedule, and trainings of the last layer on features, with their validation."""
import re

import h5py
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import oracles
import train
from models.checkpoint import embedder_of, read_checkpoint, read_checkpoint_record
from models.encoder import ImageEncoder, embed, encoder_next_to
from onnx_writer import WIDTH, Writer, describe, write_tiny
from quantization import codebooks, quantizer
from retrieval.retrieval_file import read_content
from storage.arrays import read_weights, write_weights
from storage.files import write_json
from storage.log import open_log
from tiny import EXPERIMENT, QUERIES, TRAINING, make_tiny, run
from train import Schedule, learning_rate
from util import stream

# ---------------------------------------------------------------- schedule

def test_learning_rate_halves_every_300_steps():
    assert [learning_rate(0.0003, step) for step in (0, 299, 300, 599, 600)] == [
        0.0003, 0.0003, 0.00015, 0.00015, 0.000075]


@pytest.mark.parametrize(("step", "printed"), [(0, "0.0003000"), (899, "0.0000750"), (1200, "0.0000188")])
def test_the_learning_rate_is_printed_as_in_the_release_s_logs_of_nuswide(step, printed):
    scalars = {"learning_rate": learning_rate(0.0003, step), "loss/embedding": 0.7253, "loss/quantization": 0.0339}
    assert train.step_line(step, scalars, 0.51) == (
        f"step [{step + 1:4d}], lr [{printed}], embedding loss [ 0.7253], quantization loss [ 0.0339],  "
        "0.51 sec/batch.")


def test_flickr_updates_its_codebooks_after_the_step_printed_as_147():
    schedule = Schedule(images=18_573, batch_size=256, seed=0)
    assert [step + 1 for step in range(800) if schedule.updates_after(step)] == [147, 293, 439, 585, 731]


@pytest.mark.parametrize(("images", "batch"), [(100, 30), (100, 100), (90, 30), (7, 256), (1, 1), (257, 256)])
def test_an_epoch_is_full_batches_of_one_permutation_and_an_update_begins_a_fresh_one(images, batch):
    schedule = Schedule(images, batch, seed=1)
    full, seen = min(batch, images), []
    per_epoch = images // full
    for step in range(3 * schedule.period + 2):
        rows = schedule.rows(step)
        assert len(rows) == full
        assert not set(rows) & set(seen), f"step {step} repeats an image within its epoch"
        seen.extend(rows)
        if schedule.updates_after(step) or len(seen) == per_epoch * full:
            seen = []


def test_another_seed_is_another_permutation():
    first, second = (Schedule(100, 100, seed).rows(0) for seed in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, Schedule(100, 100, 0).rows(0))


# ---------------------------------------------------------------- the last layer on features

CHECKPOINT = "tiny_SOFTMAX_nbits=16_temperature=0.1_pairs=1_lambda=0.0_f"


@pytest.fixture(scope="module", autouse=True)
def few_rounds():
    """Codebooks are fitted in fewer rounds, which take most of the time of such small trainings."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(codebooks, "FIT_ROUNDS", 2)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The tiny data set, and an image encoder that is convolutional."""
    root = make_tiny(tmp_path_factory.mktemp("encoder") / "root")
    describe(write_tiny(root / "m.onnx"))
    return root


def training(root, *options, steps=8, notes="f", rate=0.003, loss="SOFTMAX"):
    return ("train.py", "tiny", rate, steps, 0, 2, loss, notes, "cpu", "--encoder", root / "m.onnx", "--batch-size", 4,
            "--root", root, *options)


def softmax(root, *options, **arguments):
    return training(root, "--pairs", 1, *options, **arguments)


@pytest.fixture(scope="module")
def trained(root, few_rounds):
    """The checkpoint of a training on features by the encoder in eight bits."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("sys.argv", [*map(str, softmax(root))])
        train.main()
    open_log(root / "logs" / "other.log")  # lets go of the log of this training, for programs in other processes
    return root / "checkpoints" / f"{CHECKPOINT}.npy"


def test_a_checkpoint_of_an_encoder_is_complete_and_features_of_all_splits_are_kept(root, trained):
    checkpoint, encoder = read_checkpoint(trained), ImageEncoder(encoder_next_to(trained))
    assert (checkpoint.fitted, list(checkpoint.weights)) == (True, ["fc8"])
    assert checkpoint.weights["fc8"][0].shape == (WIDTH, 300)
    assert read_checkpoint_record(trained).encoder == encoder.sha256
    assert encoder.record.source == ImageEncoder(root / "m.onnx").sha256  # in eight bits
    assert encoder.path.read_bytes() == (root / "features" / "tiny_m.onnx").read_bytes()
    with h5py.File(root / "features" / f"tiny_{encoder.sha256[:12]}.h5") as file:
        assert {name: file[name].shape for name in ("train", "database", "query")} == {
            "train": (TRAINING, WIDTH), "database": (TRAINING, WIDTH), "query": (QUERIES, WIDTH)}


def test_validation_gives_the_embeddings_of_the_encoder_without_tensorflow(root, trained):
    code, output = run("-c", "import runpy, sys; sys.argv = ['validation.py', *sys.argv[1:]]\n"
                       "try: runpy.run_path('validation.py', run_name='__main__')\n"
                       "finally: print('loaded', {'tensorflow', 'onnx'} & set(sys.modules))",
                       "tiny", trained, "cpu", "--root", root)
    assert code == 0, output
    assert "loaded set()" in output
    assert output.count("images are those of") == 2  # the features that training computed
    found, checkpoint = read_content(trained.with_name(f"{CHECKPOINT}_retrieval.h5")), read_checkpoint(trained)
    paths = [root / "datasets" / "tiny" / f"{row}.jpg" for row in range(TRAINING)]
    np.testing.assert_allclose(found.db_features, embedder_of(trained, checkpoint).embed(paths), atol=2e-3)
    averaged = oracles.neighbour_averages(found.qry_features, *checkpoint.neighbours)
    np.testing.assert_allclose(found.queries, averaged, atol=1e-5)


def test_a_resumed_training_on_features_ends_as_one_that_was_not_interrupted(root, trained, run_here):
    for steps, resume in ((3, ()), (8, ("--resume",))):
        code, output = run_here(*softmax(root, "--save-every", 3, *resume, steps=steps, notes="parts"))
        assert code == 0, output
    whole, parts = (read_weights(path) for path in (trained, trained.with_name(f"{CHECKPOINT[:-1]}parts.npy")))
    np.testing.assert_array_equal(whole["fc8"][0], parts["fc8"][0])
    np.testing.assert_array_equal(whole["C"], parts["C"])


def test_training_learns_from_features_of_the_encoder_in_floats(root, run_here):
    code, output = run_here(*softmax(root, "--batch-size", TRAINING, "--dropout", 0, "--float", steps=40,
                                     notes="learn", rate=0.001))
    assert code == 0, output
    losses = [float(line.split("embedding loss [")[1].split("]")[0]) for line in output.splitlines()
              if "embedding loss [" in line]
    assert len(losses) == 40
    assert losses[-1] < 0.8 * losses[0]
    kept = encoder_next_to(root / "checkpoints" / f"{CHECKPOINT[:-1]}learn.npy")
    assert kept.read_bytes() == (root / "m.onnx").read_bytes()


def test_the_margin_loss_and_codebooks_in_turns_train_on_features_too(root, run_here):
    code, output = run_here("train.py", "tiny", 0.001, 8, 0.0001, 2, "WSDQH", "turns", "cpu", "--encoder",
                            root / "m.onnx", "--batch-size", 4, "--no-final-fit", "--root", root)
    assert code == 0, output
    checkpoint = read_checkpoint(root / "checkpoints" / f"{EXPERIMENT[:-1]}turns.npy")
    assert (checkpoint.fitted, len(checkpoint.codebooks)) == (False, 2)


@pytest.mark.parametrize("given", [True, False])
def test_codebooks_are_fitted_anew_for_other_bits_to_an_unchanged_last_layer(root, trained, run_here, given):
    """With the encoder next to the checkpoint, or with the same one given."""
    code, output = run_here("train.py", "tiny", 0.003, 0, 0, 4, "SOFTMAX", f"fit {given}", "cpu", "--weights", trained,
                            "--final-fit", "--pairs", 1, "--root", root,
                            *(("--encoder", root / "m.onnx") if given else ()))
    assert code == 0, output
    assert "features of the train images are those of" in output
    path = trained.with_name(f"{CHECKPOINT[:-1].replace('16', '32')}fit {given}.npy")
    refitted = read_checkpoint(path)
    assert (refitted.fitted, refitted.codebooks.shape) == (True, (4, 256, 300))
    np.testing.assert_array_equal(refitted.weights["fc8"][0], read_checkpoint(trained).weights["fc8"][0])
    assert encoder_next_to(path).read_bytes() == encoder_next_to(trained).read_bytes()


def test_photos_without_tags_get_a_checkpoint_by_pca(tmp_path, run_here):
    root = make_tiny(tmp_path)
    describe(write_tiny(root / "m.onnx"))
    splits = root / "data" / "tiny"
    (splits / "train_tag.txt").unlink()
    for file in (splits / "tags").iterdir():
        file.unlink()
    code, output = run_here(*training(root, loss="PCA"))
    assert code == 0, output
    assert "10 training images." in output
    path = root / "checkpoints" / "tiny_PCA_nbits=16_f.npy"
    checkpoint = read_checkpoint(path)
    assert (checkpoint.fitted, len(checkpoint.codebooks)) == (True, 2)
    assert read_checkpoint_record(path).no_words == train.NO_WORDS
    photos = [root / "datasets" / "tiny" / f"{row}.jpg" for row in range(TRAINING)]
    embeddings = embedder_of(path, checkpoint).embed(photos)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    assert (embeddings @ embeddings.T)[~np.eye(TRAINING, dtype=bool)].max() < 0.999
    write_json(splits / "report.json", {"no_words": "No photo has tags."})
    code, output = run_here(*training(root, loss="PCA"))
    assert code == 0, output
    assert read_checkpoint_record(path).no_words == "No photo has tags."


def test_bad_database_images_are_left_out_of_features_and_bad_training_images_are_named(tmp_path, run_here):
    root = make_tiny(tmp_path)
    describe(write_tiny(root / "m.onnx"))
    (root / "datasets" / "tiny" / "11.jpg").write_text("no photo")  # a query
    code, output = run_here(*softmax(root, steps=0))
    assert code == 0, output
    (root / "datasets" / "tiny" / "3.jpg").write_text("no photo")
    code, output = run_here(*softmax(root, steps=0))
    assert code == 2
    assert "3.jpg (row 4) is not an image" in output
    code, output = run_here(*training(root, loss="PCA"))
    assert code == 2
    assert "3.jpg is not an image" in output
    code, output = run_here(*softmax(root, "--skip-bad", steps=0))
    assert code == 0, output
    assert "1 bad images were left out" in output


# ---------------------------------------------------------------- features from elsewhere

def test_features_from_elsewhere_train_and_validate_without_photos_and_weights(tmp_path, run_here):
    root, own = make_tiny(tmp_path), tmp_path / "own.h5"
    with h5py.File(own, "w") as file:
        for name, count in (("train", TRAINING), ("database", TRAINING), ("query", QUERIES)):
            file[name] = stream(0, "own features", count).normal(size=(count, 17)).astype(np.float32)
    for photo in (root / "datasets" / "tiny").iterdir():
        photo.unlink()
    code, output = run_here("train.py", "tiny", 0.003, 8, 0, 2, "MILNCE", "own", "cpu", "--features", own,
                            "--batch-size", 4, "--root", root)
    assert code == 0, output
    path = root / "checkpoints" / "tiny_MILNCE_nbits=16_temperature=0.1_pairs=0_lambda=0.0_own.npy"
    checkpoint = read_checkpoint(path)
    assert checkpoint.weights["fc8"][0].shape == (17, 300)
    code, output = run_here("validation.py", "tiny", path, "cpu", "--features", own, "--root", root)
    assert code == 0, output
    with h5py.File(own) as file:
        expected = embed(file["query"][()][:, None], checkpoint.weights["fc8"], unit=True)
    found = read_content(path.with_name(f"{path.stem}_retrieval.h5"))
    np.testing.assert_allclose(found.qry_features, expected, atol=1e-6)
    scores = quantizer.quantized_scores(found.queries, found.db_codes, found.codebooks)
    printed = float(re.search(r"^AQD +([0-9.]+)", output, re.M)[1])
    assert printed == pytest.approx(oracles.retrieval(scores, found.qry_label, found.db_label, TRAINING)[0], abs=1e-4)
    path.with_name(f"{path.stem}_retrieval.h5").unlink()
    code, output = run_here("validation.py", "tiny", path, "cpu", "--root", root)
    assert code == 2
    assert "images cannot be used" in output  # the photos, which are gone


def test_a_checkpoint_of_features_from_elsewhere_embeds_no_photo(root, tmp_path, run_here):
    path = tmp_path / "x.npy"
    write_weights(path, {"fc8": [np.zeros((17, 300)), np.zeros(300)], "C": np.zeros((256, 300))})
    for arguments in (("validation.py", "tiny", path, "cpu"),
                      ("train.py", "tiny", 0.003, 0, 0, 1, "MILNCE", "x", "cpu", "--weights", path)):
        code, output = run_here(*arguments, "--root", root)
        assert code == 2
        assert "x.npy cannot embed photos: it was trained on features from elsewhere (--features)" in output


def test_a_last_layer_of_other_features_is_refused_and_what_training_starts_from_is_logged(root, trained, run_here):
    means = Writer()
    means.node("Flatten", means.node("ReduceMean", "images", axes=[2, 3]), output="features")
    code, output = run_here("train.py", "tiny", 0.003, 0, 0, 1, "MILNCE", "x", "cpu", "--weights", trained, "--encoder",
                            describe(means.write(root / "means.onnx")), "--root", root)
    assert code == 2
    assert f"{trained}: expected fc8 for 3 features an image, found one for 12" in output
    code, output = run_here("train.py", "tiny", 0.003, 0, 0, 2, "MILNCE", "y", "cpu", "--weights", trained, "--root",
                            root)
    assert code == 0, output
    assert f"fc8 and C start from {trained}." in output


def test_an_encoder_that_cannot_be_kept_leaves_a_state_from_which_resume_writes_it(root, trained, run_here):
    path = trained.with_name(f"{CHECKPOINT[:-1]}kept.npy")
    encoder_next_to(path).mkdir()  # a folder is where the file goes
    code, output = run_here(*softmax(root, notes="kept"))
    assert code == 2, output
    assert re.search(rf"error: {path} could not be written \(.*\); the state after the last step is saved", output)
    encoder_next_to(path).rmdir()
    code, output = run_here(*softmax(root, "--resume", notes="kept"))
    assert code == 0, output
    assert embedder_of(path, read_checkpoint(path))
