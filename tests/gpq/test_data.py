"""CIFAR-10's files as Python 2 and 3 write them, the split, and the batches of a training."""
import pickle

import numpy as np
import pytest

import gpq_inputs as inputs
from gpq import data
from pickle_writer import python2
from util import UserError, stream


def python3(content):
    return pickle.dumps(content, protocol=2)


def write_batches(folder, dumps=python3, **options):
    folder.mkdir(parents=True, exist_ok=True)
    files = inputs.cifar_batches(3, **options)
    for name, content in files.items():
        (folder / name).write_bytes(dumps(content))
    return files


@pytest.mark.parametrize("dumps", [python2, python3])
def test_both_kinds_of_batches_are_read(tmp_path, dumps):
    files = write_batches(tmp_path, dumps)
    assert (b"_codecs" in (tmp_path / "test_batch").read_bytes()) == (dumps is python3)
    images, labels = data.read_batch(tmp_path / "data_batch_2", 10)
    planes = files["data_batch_2"][b"data"]
    assert images.shape == (60, 32, 32, 3)
    assert images[7, 5, 9].tolist() == [planes[7, 1024 * channel + 32 * 5 + 9] for channel in range(3)]
    assert labels.tolist() == files["data_batch_2"][b"labels"]
    assert data.read_class_names(tmp_path)[3] == "class 3"


def test_split_is_that_of_the_protocol():
    labels = stream(0, "gpq split test").permutation(np.arange(60000) % 10)
    query, labelled, database = data.split_rows(labels)
    by_class = [row for number in range(10) for row in range(60000) if labels[row] == number]
    expected = {"query": [], "labelled": [], "database": []}
    seen = [0] * 10
    for place, row in enumerate(by_class):
        if place % 60 == 0:
            expected["query"].append(row)
            continue
        seen[labels[row]] += 1
        expected["labelled" if seen[labels[row]] <= 500 else "database"].append(row)
    assert (len(query), len(labelled), len(database)) == (1000, 5000, 54000)
    assert query.tolist() == expected["query"]
    assert labelled.tolist() == expected["labelled"]
    assert database.tolist() == expected["database"]


def test_loaded_parts_hold_the_images_of_their_rows(tmp_path):
    files = write_batches(tmp_path)
    split = data.load_split(tmp_path, labelled_per_class=20)
    pixels = np.concatenate([files[name][b"data"] for name in data.FILES])
    labels = np.concatenate([files[name][b"labels"] for name in data.FILES])
    rows = data.split_rows(labels, 20)
    for part, chosen in zip((split.query, split.labelled, split.database), rows, strict=True):
        assert part.labels.tolist() == labels[chosen].tolist()
        np.testing.assert_array_equal(part.images.transpose(0, 3, 1, 2).reshape(len(part), -1), pixels[chosen])


def test_standardised_channels_are_rgb():
    image = np.broadcast_to(np.uint8([126, 0, 255]), (1, 32, 32, 3))
    found = data.standardize(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, 4, 5], [0.358 / 63.01, -123.738 / 62.157, 140.54 / 66.94], rtol=1e-5)


def test_augmentation_is_a_flip_and_a_crop_out_of_zeros():
    images = stream(0, "gpq images").random((200, 32, 32, 3), np.float32) + 1
    found = data.augment(images, stream(0, "gpq augment"))
    seen = set()
    for image, result in zip(images, found, strict=True):
        matches = []
        for flip in (False, True):
            padded = np.zeros((40, 40, 3), np.float32)
            padded[4:36, 4:36] = image[:, ::-1] if flip else image
            matches += [(flip, top, left) for top in range(9) for left in range(9)
                        if (padded[top + 16, left + 16] == result[16, 16]).all()
                        and (padded[top:top + 32, left:left + 32] == result).all()]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {flip for flip, _, _ in seen} == {False, True}
    assert {top for _, top, _ in seen} == {left for _, _, left in seen} == set(range(9))


def test_a_seeded_part_of_the_images_is_split_as_the_whole_would_be(tmp_path):
    write_batches(tmp_path)
    whole, same = data.load_split(tmp_path, 20), data.load_split(tmp_path, 20, 1000, seed=3)
    assert whole.database.names == same.database.names
    part, again, other = (data.load_split(tmp_path, 10, 240, seed) for seed in (3, 3, 4))
    assert (len(part.query), len(part.labelled), len(part.database)) == (4, 100, 136)
    assert part.database.names == again.database.names != other.database.names
    for name, image, label in zip(part.query.names, part.query.images, part.query.labels, strict=True):
        file, row = name.split("/")
        images, labels = data.read_batch(tmp_path / file, 10)
        assert (images[int(row)] == image).all()
        assert labels[int(row)] == label


def test_a_batch_depends_on_seed_and_step_and_repeats_no_image(tmp_path):
    write_batches(tmp_path)
    part = data.load_split(tmp_path, labelled_per_class=20).labelled
    marked = data.Part(np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None, None], (200, 32, 32, 3)),
                       np.arange(200), [])
    images, labels = data.draw(marked, 200, "labelled", 1, 5)
    assert sorted(labels) == list(range(200))
    np.testing.assert_allclose(images[:, 16, 16], data.standardize(np.uint8(labels)[:, None]), rtol=1e-6)
    first, _ = data.draw(part, 50, "labelled", 1, 5)
    np.testing.assert_array_equal(first, data.draw(part, 50, "labelled", 1, 5)[0])
    for other in [("labelled", 1, 6), ("labelled", 2, 5), ("unlabelled", 1, 5)]:
        assert (first != data.draw(part, 50, *other)[0]).any()


# ---------------------------------------------------------------- bad files

def test_missing_batches_are_named(tmp_path):
    with pytest.raises(UserError, match=r"batches\.meta, data_batch_1.*test_batch are missing"):
        data.load_split(tmp_path)


@pytest.mark.parametrize(("content", "message"), [
    ([1, 2], "expected a dict, found list"),
    ({b"data": np.zeros((2, 3072), "u1")}, "found no 'labels'"),
    ({b"data": np.zeros((2, 3071), "u1"), b"labels": [0, 1]}, r"rows of 3072 bytes under 'data', found \(2, 3071\)"),
    ({b"data": [1], b"labels": [0]}, "found list"),
    ({b"data": np.zeros((2, 3072), "u1"), b"labels": [0]}, "expected 2 labels from 0 to 9"),
    ({b"data": np.zeros((2, 3072), "u1"), b"labels": [0, 10]}, "expected 2 labels from 0 to 9"),
])
def test_wrong_batches_are_refused_in_a_sentence(tmp_path, content, message):
    path = tmp_path / "data_batch_1"
    path.write_bytes(python3(content))
    with pytest.raises(UserError, match=message):
        data.read_batch(path, 10)


def test_a_split_without_database_is_refused(tmp_path):
    write_batches(tmp_path)
    with pytest.raises(UserError, match="leave no database images"):
        data.load_split(tmp_path)
