"""Names that climb out of the folder they belong to: in split files, by links, in an index."""
import os
import shutil
import time

import cv2
import numpy as np
import pytest

import dataset
from indexes import make_content
from prepare import check, photos
from retrieval import index
from retrieval import photos as photo_sources
from retrieval.build import usable_rows
from tiny import TRAINING, call, make_tiny
from util import UserError


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "root")


@pytest.fixture
def images(tiny):
    return tiny / "datasets" / "tiny"


@pytest.fixture
def outside(tmp_path):
    """A folder with a photo that no data set has."""
    folder = tmp_path / "outside"
    folder.mkdir()
    assert cv2.imwrite(str(folder / "secret.jpg"), np.full((20, 20, 3), 99, np.uint8))
    return folder


def found(root):
    return dataset.find_dataset("tiny", root)


def rename(root, row, name):
    """Let row `row`, 1-based, of all lists of the database's images name another image."""
    for path in ((root / "data" / "tiny" / f"{split}_img.txt") for split in ("train", "database")):
        names = path.read_text().splitlines()
        path.write_text("\n".join([*names[:row - 1], name, *names[row:]]) + "\n")


# ---------------------------------------------------------------- by name

@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg", "a/../0.jpg", "..", "a/.."])
def test_a_name_that_climbs_is_refused_with_file_and_row_whatever_reads_it(tiny, monkeypatch, capsys, name):
    rename(tiny, 3, name)
    sentence = f"_img.txt: row 3: expected a path inside the image folder, found {name!r}, which leads out of it"
    for skip_bad in (False, True):
        with pytest.raises(UserError) as error:
            dataset.load_training(found(tiny), skip_bad)
        assert sentence in str(error.value)
    with pytest.raises(UserError, match="row 3: expected a path inside"):
        dataset.load_retrieval(found(tiny), "database", skip_bad=True)
    with pytest.raises(UserError, match="row 3: expected a path inside"):
        photo_sources.photo_source("tiny", tiny)
    code, printed = call(monkeypatch, capsys, check, "tiny", "--root", tiny)
    assert code == 1
    assert "train_img.txt: row 3: expected a path inside the image folder" in printed


@pytest.mark.parametrize("name", ["..jpg", "..\\\\b.jpg", "a..b.jpg", "...", ".hidden.jpg", "a/..b/0.jpg"])
def test_dots_that_do_not_climb_are_names_like_others(name):
    assert not dataset.leads_out(name)


# ---------------------------------------------------------------- by links

def test_the_images_folder_and_the_folders_in_it_may_be_links(tiny, images, outside):
    """As the programs in prepare/ make them."""
    (outside / "sub").mkdir()
    shutil.copy(outside / "secret.jpg", outside / "sub" / "b.jpg")
    images.rename(tiny / "elsewhere")
    images.symlink_to(tiny / "elsewhere")
    (images / "photos").symlink_to(outside)
    rename(tiny, 1, "photos/secret.jpg")
    rename(tiny, 2, "./photos//sub/b.jpg")
    assert dataset.load_training(found(tiny)).skipped == 0


def test_links_that_stay_inside_are_fine(tiny, images):
    (images / "a" / "b").mkdir(parents=True)
    (images / "link.jpg").symlink_to("0.jpg")
    (images / "a" / "b" / "link.jpg").symlink_to("../../1.jpg")
    (images / "a" / "up").symlink_to("..")
    for row, name in enumerate(("link.jpg", "a/b/link.jpg", "a/up/2.jpg"), 1):
        rename(tiny, row, name)
    assert dataset.load_training(found(tiny)).skipped == 0


def file_link(images, outside):
    (images / "x.jpg").symlink_to(outside / "secret.jpg")
    return "x.jpg"


def relative_file_link(images, outside):
    (images / "x.jpg").symlink_to(os.path.relpath(outside / "secret.jpg", images))
    return "x.jpg"


def link_to_a_link(images, outside):
    (images / "y.jpg").symlink_to(outside / "secret.jpg")
    (images / "x.jpg").symlink_to("y.jpg")
    return "x.jpg"


def deeper_folder_link(images, outside):
    (images / "a").mkdir()
    (images / "a" / "b").symlink_to(outside)
    return "a/b/secret.jpg"


def link_out_of_a_linked_folder(images, outside):
    (outside / "photos").mkdir()
    (outside / "photos" / "x.jpg").symlink_to("../secret.jpg")
    (images / "a").symlink_to(outside / "photos")
    return "a/x.jpg"


def neighbour_with_a_longer_name(images, outside):
    outside.rename(images.with_name("tiny2"))
    (images / "x.jpg").symlink_to("../tiny2/secret.jpg")
    return "x.jpg"


def dangling_link(images, outside):
    (images / "x.jpg").symlink_to(outside / "nothing.jpg")
    return "x.jpg"


@pytest.mark.parametrize("make", [file_link, relative_file_link, link_to_a_link, deeper_folder_link, dangling_link,
                                  link_out_of_a_linked_folder, neighbour_with_a_longer_name])
def test_any_other_link_out_is_refused_by_name_and_row_or_left_out(tiny, images, outside, monkeypatch, capsys, make):
    name = make(images, outside)
    rename(tiny, 4, name)
    with pytest.raises(UserError) as error:
        dataset.load_training(found(tiny))
    sentence = str(error.value)
    assert f"1 of {TRAINING} images cannot be used" in sentence
    assert f"{images / name} (row 4) is a link to /" in sentence
    assert f", expected an image inside {images}" in sentence
    assert dataset.load_training(found(tiny), skip_bad=True).skipped == 1
    assert dataset.load_retrieval(found(tiny), "database", skip_bad=True).rows.tolist() == [0, 1, 2, *range(4, 10)]
    code, printed = call(monkeypatch, capsys, check, "tiny", "--root", tiny)
    assert code == 1
    assert f"{name} is a link to /" in printed


def test_a_loop_of_links_is_a_fault_and_no_endless_search(tiny, images):
    (images / "x.jpg").symlink_to("x.jpg")
    (images / "a").symlink_to("a")
    (images / "round").symlink_to(".")
    for row, name in enumerate(("x.jpg", "a/0.jpg", "round/round/round/0.jpg"), 1):
        rename(tiny, row, name)
    faults = dataset.faults_in(images, dataset.read_image_list(found(tiny).split_files("train")[0]))
    assert faults == dict.fromkeys((0, 1), "cannot be read (Too many levels of symbolic links)")


@pytest.mark.slow
def test_200_000_names_are_checked_within_seconds(images, tmp_path):
    for folder in range(100):
        (images / f"{folder:03}").mkdir()
    names = [f"{i % 100:03}/{i}.jpg" for i in range(200_000)]
    (tmp_path / "list.txt").write_text("\n".join(names))
    start = time.process_time()
    assert dataset.read_image_list(tmp_path / "list.txt") == names
    assert dataset.links_out(images, names) == {}
    assert time.process_time() - start < 10


def test_photos_to_import_are_held_to_the_same(tiny, images, outside, tmp_path, monkeypatch, capsys):
    (images / "x.jpg").symlink_to(outside / "secret.jpg")
    (tmp_path / "photos.csv").write_text("image,tags,split\n0.jpg,a,database\nx.jpg,b,database\n")
    arguments = ("mine", tmp_path / "photos.csv", "--images", images, "--root", tmp_path / "new")
    code, printed = call(monkeypatch, capsys, photos, *arguments)
    assert code == 2
    assert f"x.jpg (row 3) is a link to {outside / 'secret.jpg'}, expected an image inside {images}" in printed
    code, printed = call(monkeypatch, capsys, photos, *arguments, "--skip-bad")
    assert (code, "left out: 1 of 2 photos" in printed) == (0, True)


# ---------------------------------------------------------------- a person's own folder

def all_new(source):
    """The Changes of an index that has no photo yet."""
    return photo_sources.compare(source, index.Content(None, None, [], None, None, None, [], {}), "out", prune=False)


def test_links_in_a_person_s_own_folder_are_that_person_s_and_loops_end(tiny, images, outside):
    (images / "x.jpg").symlink_to(outside / "secret.jpg")
    (images / "round").symlink_to(".")
    (images / "sub").mkdir()
    (images / "sub" / "up").symlink_to(images)
    source = photo_sources.folder_source(images, [])
    assert sorted(source.names) == sorted([*(f"{i}.jpg" for i in range(13)), "x.jpg"])
    assert len(usable_rows(source, all_new(source), skip_bad=False)) == 14


def test_links_out_of_a_data_set_are_left_out_of_its_index_too(tiny, images, outside):
    rename(tiny, 4, file_link(images, outside))
    source = photo_sources.photo_source("tiny", tiny)
    with pytest.raises(UserError, match=r"x\.jpg \(row 4\) is a link to"):
        usable_rows(source, all_new(source), skip_bad=False)
    assert usable_rows(source, all_new(source), skip_bad=True).tolist() == [0, 1, 2, *range(4, 10)]


def test_a_file_name_with_a_line_break_is_refused_or_left_out_before_any_photo_is_embedded(images, capsys):
    shutil.copy(images / "0.jpg", images / "a\nb.jpg")
    source = photo_sources.folder_source(images, [])
    with pytest.raises(UserError, match=r"--skip-bad leaves them out\): .*a b\.jpg has a line break in its name"):
        usable_rows(source, all_new(source), skip_bad=False)
    left = usable_rows(source, all_new(source), skip_bad=True)
    assert [source.names[row] for row in left] == [name for name in source.names if name != "a\nb.jpg"]
    assert "a b.jpg has a line break in its name" in capsys.readouterr().err


def test_a_folder_whose_name_an_index_cannot_hold_is_refused_before_any_photo_is_embedded(images):
    other = images.rename(images.with_name(os.fsdecode(b"caf\xe9")))
    with pytest.raises(UserError, match="expected a folder whose name is UTF-8"):
        photo_sources.folder_source(other, [])


# ---------------------------------------------------------------- an index

@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../b.jpg", ".."])
def test_an_image_of_an_index_that_climbs_is_not_shown(tmp_path, name):
    content = make_content()
    content.images[5] = name
    index.save(tmp_path, content)
    loaded = index.load(tmp_path)
    assert str(loaded.image_path(4)) == "/photos/some folder/4.jpg"
    with pytest.raises(UserError) as error:
        loaded.image_path(5)
    assert f"image 6: expected a path inside /photos, found {name!r}" in str(error.value)


def test_names_that_are_not_utf_8_survive_in_an_index(tmp_path):
    content = make_content()
    content.images[5] = os.fsdecode(b"caf\xe9.jpg")
    index.save(tmp_path, content)
    assert os.fsencode(index.load(tmp_path).image_path(5)) == b"/photos/caf\xe9.jpg"
