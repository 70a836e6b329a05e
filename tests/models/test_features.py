"""Features of photos: what is computed again, and which files of features are refused."""
import hashlib
import os
import shutil

import cv2
import h5py
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from dataset import find_dataset
from faults import files_of_at_most, flip
from models import features
from models.encoder import ImageEncoder
from models.features import features_file, kept_features, photo_features, read_features
from onnx_writer import WIDTH, tiny_encoder
from storage import fingerprints
from tiny import QUERIES, TRAINING, make_tiny
from util import UserError, stream


@pytest.fixture
def root(tmp_path):
    return make_tiny(tmp_path / "root")


@pytest.fixture
def encoder(tmp_path):
    return tiny_encoder(tmp_path / "m.onnx")


@pytest.fixture
def computed(monkeypatch):
    """The names of the photos whose features are computed."""
    names, compute = [], ImageEncoder.photo_features

    def counted(self, photos, what):
        names.extend(os.path.basename(path) for path in photos)
        return compute(self, photos, what)
    monkeypatch.setattr(ImageEncoder, "photo_features", counted)
    return names


def compute(root, encoder, split="train", rows=None, log=print):
    rows = np.arange(TRAINING if split != "test" else QUERIES) if rows is None else rows
    folder = find_dataset("tiny", root)
    return photo_features(folder, split, rows, encoder, features_file(root, "tiny", encoder.sha256), log)


def photo(root, row):
    return root / "datasets" / "tiny" / f"{row}.jpg"


# ---------------------------------------------------------------- what is computed again

def test_features_are_those_of_the_encoder_in_the_order_of_the_rows(root, encoder):
    expected = np.concatenate(list(encoder.photo_features([photo(root, row) for row in range(TRAINING)], "computing")))
    found = compute(root, encoder, rows=np.array([7, 2, 0]))
    assert (found.shape, found.dtype) == ((3, WIDTH), np.float16)
    np.testing.assert_allclose(found, expected[[7, 2, 0]], atol=2e-3)
    with h5py.File(root / "features" / f"tiny_{encoder.sha256[:12]}.h5") as file:
        assert (file["train"].shape, file.attrs["encoder"]) == ((TRAINING, WIDTH), encoder.sha256)


def test_only_new_and_changed_photos_are_computed_and_splits_share_theirs(root, encoder, computed):
    first, log = compute(root, encoder), []
    assert len(computed) == TRAINING
    computed.clear()
    np.testing.assert_array_equal(compute(root, encoder, log=log.append), first)
    assert log == [f"features of the train images are those of {features_file(root, 'tiny', encoder.sha256)}."]
    np.testing.assert_array_equal(compute(root, encoder, "database"), first)
    assert not computed
    cv2.imwrite(str(photo(root, 4)), 255 - cv2.imread(str(photo(root, 4))))
    again = compute(root, encoder)
    assert computed == ["4.jpg"]
    assert [row for row in range(TRAINING) if not np.array_equal(first[row], again[row])] == [4]
    computed.clear()
    assert compute(root, encoder, "test").shape == (QUERIES, WIDTH)
    assert len(computed) == QUERIES


def test_photos_that_are_left_out_have_no_features(root, encoder):
    photo(root, 3).unlink()
    rows = np.array([row for row in range(TRAINING) if row != 3])
    assert np.isfinite(compute(root, encoder, rows=rows)).all()
    with h5py.File(features_file(root, "tiny", encoder.sha256)) as file:
        assert np.isnan(file["train"][3]).all()
        assert not file["train_fingerprints"][3].any()
    kept = kept_features(features_file(root, "tiny", encoder.sha256), encoder.sha256, WIDTH, print)
    assert len(kept) == TRAINING - 1


def test_an_interrupted_computation_goes_on_where_it_was(root, encoder, computed, monkeypatch):
    monkeypatch.setattr(ImageEncoder, "at_once", lambda self, crops: 3)
    counted = ImageEncoder.photo_features

    def interrupted(self, photos, what):
        for number, block in enumerate(counted(self, photos, what)):
            if number == 2:
                raise KeyboardInterrupt
            yield block
    with monkeypatch.context() as patch:
        patch.setattr(ImageEncoder, "photo_features", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compute(root, encoder)
    path = features_file(root, "tiny", encoder.sha256)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "ab") as file:
        file.write(b"half a record")
    computed.clear()
    found = compute(root, encoder)
    assert computed == [f"{row}.jpg" for row in range(6, TRAINING)]
    assert {file.name for file in path.parent.glob(".*.partial*")} == set()
    path.unlink()
    path.with_suffix(".json").unlink()
    np.testing.assert_array_equal(found, compute(root, encoder))


def test_features_of_another_encoder_are_computed_anew(root, encoder, computed, tmp_path):
    compute(root, encoder)
    other = tiny_encoder(tmp_path / "other.onnx", seed=1)
    computed.clear()
    compute(root, other)
    assert len(computed) == TRAINING
    first, second = (features_file(root, "tiny", each.sha256) for each in (encoder, other))
    second.write_bytes(first.read_bytes())  # a file of the one under the name of the other
    second.with_suffix(".json").unlink()
    log = []
    computed.clear()
    compute(root, other, log=log.append)
    assert len(computed) == TRAINING
    assert log == [f"{second} was made with another encoder: its features are computed anew."]
    assert kept_features(second, encoder.sha256, WIDTH, print) == {}


def test_a_photo_that_was_only_touched_copied_or_moved_keeps_its_features(root, encoder, computed):
    found, log, names = compute(root, encoder), [], root / "data" / "tiny" / "train_img.txt"
    computed.clear()
    os.utime(photo(root, 3))
    np.testing.assert_array_equal(compute(root, encoder, log=log.append), found)
    assert not log  # the file was written again, with the new date
    photo(root, 4).rename(root / "datasets" / "tiny" / "moved.jpg")
    shutil.copyfile(photo(root, 5), photo(root, 4))
    names.write_text(names.read_text().replace("6.jpg", "moved.jpg"))
    np.testing.assert_array_equal(compute(root, encoder), found[[0, 1, 2, 3, 5, 5, 4, 7, 8, 9]])
    assert not computed
    compute(root, encoder, log=log.append)
    assert log == [f"features of the train images are those of {features_file(root, 'tiny', encoder.sha256)}."]


def test_a_photo_whose_content_changed_is_computed_again_though_its_name_and_size_did_not(root, encoder, computed):
    photo(root, 3).write_bytes(photo(root, 3).read_bytes() + b"1")
    compute(root, encoder)
    computed.clear()
    status = os.stat(photo(root, 3))
    photo(root, 3).write_bytes(photo(root, 3).read_bytes()[:-1] + b"2")
    os.utime(photo(root, 3), ns=(status.st_atime_ns, status.st_mtime_ns))
    compute(root, encoder)
    assert computed == ["3.jpg"]


def test_unchanged_photos_are_not_read(root, encoder, monkeypatch):
    found = compute(root, encoder)
    monkeypatch.setattr(fingerprints, "fingerprint", lambda path: pytest.fail(f"{path} was read"))
    np.testing.assert_array_equal(compute(root, encoder), found)


def test_photos_of_equal_content_are_computed_once(root, encoder, computed):
    shutil.copyfile(photo(root, 1), photo(root, 0))
    found = compute(root, encoder)
    assert len(computed) == TRAINING - 1
    np.testing.assert_array_equal(found[0], found[1])


def test_kept_features_are_found_by_the_content_of_a_photo(root, encoder):
    found, path = compute(root, encoder), features_file(root, "tiny", encoder.sha256)
    kept = kept_features(path, encoder.sha256, WIDTH, print)
    np.testing.assert_array_equal(kept[hashlib.sha256(photo(root, 3).read_bytes()).digest()], found[3])
    assert kept_features(root / "none.h5", encoder.sha256, WIDTH, print) == {}


@pytest.mark.parametrize(("name", "array"), [
    ("train_names", None), ("train_fingerprints", None), ("train_names", np.arange(TRAINING)),
    ("train_fingerprints", np.zeros((TRAINING, 6), np.int64)), ("train_fingerprints", np.zeros((TRAINING, 7))),
    ("train", np.zeros((TRAINING - 1, WIDTH), np.float16)), ("train", np.zeros((TRAINING, WIDTH + 1), np.float16)),
    ("train", np.float16(0))])
def test_a_file_of_another_format_is_computed_anew(root, encoder, name, array):
    found, path, log = compute(root, encoder), features_file(root, "tiny", encoder.sha256), []
    path.with_suffix(".json").unlink()
    with h5py.File(path, "a") as file:
        del file[name]
        if array is not None:
            file[name] = array
    np.testing.assert_array_equal(compute(root, encoder, log=log.append), found)
    assert log == [f"{path} was made with another format: its features are computed anew."]


def test_an_altered_file_of_features_is_refused(root, encoder):
    compute(root, encoder)
    flip(features_file(root, "tiny", encoder.sha256))
    with pytest.raises(UserError, match=r"\.h5 was altered since it was written"):
        compute(root, encoder)


def test_a_disk_that_fills_is_reported_with_the_file_and_what_is_computed_stays(root, encoder, computed):
    with files_of_at_most(250), pytest.raises(UserError, match=r"\.h5\.partial: it could not be written"):
        compute(root, encoder)
    computed.clear()
    assert compute(root, encoder).shape == (TRAINING, WIDTH)


def test_a_disk_without_room_is_reported_before_anything_is_computed(root, encoder, monkeypatch):
    def full(folder, size):
        raise UserError(f"{folder}: no room for {size} bytes")
    monkeypatch.setattr(features, "check_space", full)
    with pytest.raises(UserError, match="no room for 1120 bytes"):  # twice 10 records of 32 and 2·12 bytes
        compute(root, encoder)


# ---------------------------------------------------------------- features from elsewhere

@pytest.fixture
def own(tmp_path):
    """A file of features from elsewhere."""
    path = tmp_path / "own.h5"
    with h5py.File(path, "w") as file:
        for name, count in (("train", TRAINING), ("database", TRAINING), ("query", QUERIES)):
            file[name] = stream(0, "own features", count).normal(size=(count, 17)).astype(np.float32)
    return path


@pytest.mark.parametrize(("name", "array", "sentence"), [
    ("train", None, "expected a dataset 'train', found database, query"),
    ("train", np.zeros((TRAINING - 1, 17)), r"expected as many rows of train as .*train_img\.txt has, 10, found 9"),
    ("train", np.zeros((TRAINING, 17), int), "expected train of floats"),
    ("train", np.zeros(TRAINING), "images × features"),
    ("train", np.zeros((TRAINING, 1, 17)), "images × features"),
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
        read_features(own, "train", image_list, 17)


def test_a_file_that_holds_no_features_is_refused(root, tmp_path):
    image_list = find_dataset("tiny", root).split_files("train")[0]
    (tmp_path / "x.h5").write_bytes(b"no HDF5")
    for path, sentence in ((tmp_path / "x.h5", "expected an HDF5 file"), (tmp_path / "y.h5", "no such file")):
        with pytest.raises(UserError, match=sentence):
            read_features(path, "train", image_list)
