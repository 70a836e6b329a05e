"""The demo data set: reproducible, labelled and tagged as it should be, never over other files."""
import csv
import subprocess
import sys

import cv2
import numpy as np
import pytest

from prepare import demo as demo_program
from util import ROOT, UserError

TAG_CONCEPT = {tag: name for name, (_, tags) in demo_program.CONCEPTS.items() for tag in tags.split()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A demo of 30 images with seed 0."""
    folder = tmp_path_factory.mktemp("demo")
    demo_program.make_demo(folder, 30, 0)
    return folder


@pytest.fixture(scope="module")
def captions():
    """Tags and labels of 600 images that were not drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_program, "draw_scene", lambda rng, shown: None)
        return [demo_program.make_photo(0, index)[1:] for index in range(600)]


def read_rows(folder):
    with open(folder / "photos.csv", newline="") as file:
        return list(csv.DictReader(file))


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- files

def test_table_and_images_agree(demo):
    rows = read_rows(demo)
    assert list(rows[0]) == ["image", "tags", "labels", "split"]
    assert [row["image"] for row in rows] == sorted(path.name for path in (demo / "images").iterdir())
    assert [row["split"] for row in rows].count("query") == 4
    assert [row["split"] for row in rows].count("database") == 26


def test_images_decode(demo):
    for row in read_rows(demo):
        image = cv2.imread(str(demo / "images" / row["image"]))
        assert image.shape == (256, 256, 3)
        assert image.std() > 3  # not an empty canvas


def test_an_image_does_not_depend_on_how_many_there_are(demo, tmp_path):
    demo_program.make_demo(tmp_path, 15, 0)
    assert read_rows(tmp_path) == read_rows(demo)[:15]
    assert content(tmp_path / "images").items() <= content(demo / "images").items()


def test_another_seed_another_demo(demo, tmp_path):
    demo_program.make_demo(tmp_path, 15, 1)
    ours, theirs = content(tmp_path / "images"), content(demo / "images")
    assert all(ours[name] != theirs[name] for name in ours)


# ---------------------------------------------------------------- labels and tags

@pytest.mark.parametrize("shown", demo_program.SCENES)
def test_every_scene_can_be_drawn(shown):
    photo = demo_program.draw_scene(np.random.default_rng(0), tuple(shown.split()))
    assert photo.shape == (256, 256, 3)
    assert photo.dtype == np.uint8


def test_labels(captions):
    assert {len(labels) for _, labels in captions} == {1, 2, 3}
    assert {name for _, labels in captions for name in labels} == set(demo_program.CONCEPTS)


def test_labels_are_shared_by_about_a_quarter(captions):
    shown = np.array([[name in labels for name in demo_program.CONCEPTS] for _, labels in captions], int)
    assert 0.2 < (shown @ shown.T > 0).mean() < 0.3  # the MAP of a random ranking


def test_tags_name_most_labels_but_not_all(captions):
    named = [[TAG_CONCEPT[tag] for tag in tags if tag in TAG_CONCEPT] for tags, _ in captions]
    right = [name in labels for names, (_, labels) in zip(named, captions, strict=True) for name in names]
    assert 0.9 < np.mean(right) < 1
    tagged = [name in names for names, (_, labels) in zip(named, captions, strict=True) for name in labels]
    assert 0.8 < np.mean(tagged) < 0.95
    assert 0 < np.mean([not names for names in named]) < 0.1


def test_tags_are_words_each_once_with_noise_among_them(captions):
    for tags, _ in captions:
        assert len(set(tags)) == len(tags)
        assert set(tags) & set(demo_program.NOISE_TAGS.split())
        assert all(tag.isalnum() for tag in tags)


def test_no_tag_belongs_to_two_concepts():
    tags = [tag for _, tags in demo_program.CONCEPTS.values() for tag in tags.split()]
    assert len(set(tags)) == len(tags)
    assert not set(tags) & set(demo_program.NOISE_TAGS.split())


# ---------------------------------------------------------------- other people's files

def test_the_same_demo_is_made_again(tmp_path):
    demo_program.make_demo(tmp_path, 15, 0)
    before = content(tmp_path)
    (tmp_path / "photos.csv").unlink()  # as if it had been interrupted
    demo_program.make_demo(tmp_path, 15, 0)
    assert content(tmp_path) == before


@pytest.mark.parametrize(("images", "seed"), [(30, 0), (15, 1)])
def test_another_demo_is_refused(tmp_path, images, seed):
    demo_program.make_demo(tmp_path, 15, 0)
    before = content(tmp_path)
    with pytest.raises(UserError, match="choose another folder"):
        demo_program.make_demo(tmp_path, images, seed)
    assert content(tmp_path) == before


def test_other_files_are_refused(tmp_path):
    (tmp_path / "photos.csv").write_text("mine")
    done = subprocess.run([sys.executable, ROOT / "prepare" / "demo.py", tmp_path],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: expected an empty folder")
    assert list(content(tmp_path).values()) == [b"mine"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(UserError, match="expected a folder, found a file"):
        demo_program.make_demo(tmp_path / "demo", 15, 0)
