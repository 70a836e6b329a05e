"""Image files, the store and crops. Odd files are in test_odd_images.py."""

import cv2
import numpy as np
import pytest

from storage import images
from util import UserError, stream


def _image(path, side=300, seed=0, suffix=".jpg"):
    pixels = stream(seed, "image").integers(0, 256, (side, side + 20, 3), dtype=np.uint8)
    path = path.with_suffix(suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
def test_sound_images_of_every_common_kind_pass(tmp_path, suffix):
    assert images.image_fault(_image(tmp_path / "x", suffix=suffix)) is None


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_images_are_found(tmp_path, suffix, share):
    path = _image(tmp_path / "x", suffix=suffix)
    content = path.read_bytes()
    path.write_bytes(content[:int(share * len(content))])
    assert images.image_fault(path) == "is truncated"


def test_a_truncated_photo_is_found_even_if_it_holds_a_whole_thumbnail(tmp_path):
    path = _image(tmp_path / "x")
    thumbnail = _image(tmp_path / "thumb", side=32).read_bytes()
    content = path.read_bytes()
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    path.write_bytes(content[:2] + segment + content[2:])
    assert images.image_fault(path) is None
    path.write_bytes(content[:2] + segment + content[2:len(content) // 2])
    assert images.image_fault(path) == "is truncated"


def test_bytes_after_the_end_of_a_photo_do_not_matter(tmp_path):
    path = _image(tmp_path / "x")
    path.write_bytes(path.read_bytes() + b"\0" * 5000)
    assert images.image_fault(path) is None


def test_missing_empty_and_other_files_are_found(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "folder.jpg").mkdir()
    paths = [tmp_path / name for name in ("none.jpg", "empty.jpg", "text.jpg", "folder.jpg")]
    assert [images.image_faults(paths)[row] for row in range(3)] == [
        "is missing", "is empty", "is not an image that OpenCV reads"]
    assert "cannot be read" in images.image_faults(paths)[3]


def test_images_are_resized_to_256_and_decoded_no_more_than_once_while_there_is_room(tmp_path):
    paths = [_image(tmp_path / str(i), seed=i) for i in range(4)]
    store = images.ImageStore(paths, cache_bytes=2.5 * images.IMAGE_BYTES)
    first = store.images(range(4))
    assert first.shape == (4, 256, 256, 3)
    np.testing.assert_array_equal(first[3], cv2.resize(cv2.imread(str(paths[3])), (256, 256)))
    for path in paths[:2]:
        path.unlink()
    np.testing.assert_array_equal(store.images([0, 1]), first[:2])  # the two that fit
    paths[2].unlink()
    with pytest.raises(UserError, match=r"2\.jpg is missing"):
        store.images([2])


def test_crops_are_taken_after_the_flip(tmp_path):
    store = images.ImageStore([_image(tmp_path / str(i), seed=i) for i in range(2)], 10**9)
    batch = store.crops([1, 0], 227, np.array([[0, 29], [14, 14]]), np.array([True, False]))
    np.testing.assert_array_equal(batch[0], store.image(1)[:, ::-1][:227, 29:])
    np.testing.assert_array_equal(batch[1], store.image(0)[14:241, 14:241])


def test_random_crops_reach_all_offsets_and_flip_half_of_the_images():
    seen = {"offsets": [], "flips": []}

    class Recorder:
        def crops(self, rows, side, offsets, flips):
            seen["offsets"].append(offsets)
            seen["flips"].append(flips)

    for step in range(50):
        images.random_crops(Recorder(), np.arange(100), 227, stream(0, "crops", step))
    assert set(np.concatenate(seen["offsets"])[:, 0]) == set(np.concatenate(seen["offsets"])[:, 1]) == set(range(30))
    assert 0.45 < np.concatenate(seen["flips"]).mean() < 0.55
