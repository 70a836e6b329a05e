"""prepare/photos.py as people run it: its command line, real files, real folders."""
import csv
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataset import find_dataset, read_binary_matrix, read_image_list, read_tag_names
from desk import HEADER, PHOTOS, Desk, snapshot
from prepare import photos

REPO = Path(__file__).resolve().parents[2]
PROGRAM = REPO / "prepare" / "photos.py"
COREL = REPO.parent / "shared" / "data" / "corel5k"


@pytest.fixture
def desk(tmp_path, monkeypatch, capsys):
    return Desk(tmp_path, monkeypatch, capsys)


# ---------------------------------------------------------------- what is written

def test_the_files_that_dataset_py_reads(desk):
    out = desk.accepted(PHOTOS)
    dataset = find_dataset("mine", desk.root)
    images, tags = dataset.split_files("train")
    assert read_image_list(images) == ["a.jpg", "b.jpg", "c/d e.png"]
    assert all((dataset.images / name).is_file() for name in read_image_list(images))
    assert dataset.tag_list.read_text() == "sky 2\n2007 1\nsea 1\nsunset 1\n"
    assert read_tag_names(dataset.tag_list) == ["sky", "2007", "sea", "sunset"]
    assert tags.read_bytes() == b"1 0 1 0\n1 1 0 1\n0 0 0 0\n"
    assert desk.lines("labels.txt") == ["air", "water"]
    images, labels = dataset.split_files("database")
    assert read_image_list(images) == ["a.jpg", "b.jpg", "c/d e.png"]
    assert read_binary_matrix(labels).toarray().tolist() == [[0, 1], [1, 1], [0, 0]]
    images, labels = dataset.split_files("test")
    assert read_image_list(images) == ["q.jpg"]
    assert read_binary_matrix(labels).toarray().tolist() == [[1, 0]]
    assert out == f"""\
training photos: 3 (the database photos: no row says train, so they serve both training and retrieval)
database photos: 3; query photos: 1
tags: 4 kept, 0 dropped; a training photo has 1.67 on average, 1 have none
labels: 2; 1 database and query photos have none
wrote {dataset.splits}, linked {dataset.images}
next: python tag_processing.py mine train 0 --root {desk.root}
      (or, better, a file of word vectors such as GoogleNews or GloVe in place of train)
"""


def test_the_images_are_an_absolute_link(desk, monkeypatch):
    monkeypatch.chdir(desk.images.parent)
    desk.images = Path("photos")
    desk.accepted(PHOTOS)
    link = desk.root / "datasets" / "mine"
    assert link.is_symlink()
    assert os.readlink(link) == str(desk.images.resolve())


def test_rows_that_say_train_are_the_training_set_and_are_not_searched(desk):
    out = desk.accepted(HEADER + "a.jpg,sea,water,train\nb.jpg,sky,air,database\nq.jpg,,air,query\n")
    assert desk.lines("train_img.txt") == ["a.jpg"]
    assert desk.lines("database_img.txt") == ["b.jpg"]
    assert desk.lines("common_tags.txt") == ["sea 1"]  # the tags of what is searched are not looked at
    assert desk.lines("labels.txt") == ["air"]  # nor are the labels of what is trained on
    assert "training photos: 1 (the rows that say train; they are not searched)" in out


def test_rare_tags_are_dropped(desk):
    out = desk.accepted(PHOTOS, "--min-tag-count", "2")
    assert desk.lines("common_tags.txt") == ["sky 2"]
    assert desk.lines("train_tag.txt") == ["1", "1", "0"]
    assert "tags: 1 kept, 3 dropped; a training photo has 0.67 on average, 1 have none" in out


@pytest.mark.parametrize("text", [
    "image,tags,split\na.jpg,sea,database\nb.jpg,sky,database\nq.jpg,dog,query\n",
    HEADER + "a.jpg,sea,,database\nb.jpg,sky,,database\nq.jpg,dog,,query\n",
], ids=["no column", "empty column"])
def test_without_labels_only_training_files(desk, text):
    out = desk.accepted(text)
    assert desk.files() == {"train_img.txt", "train_tag.txt", "common_tags.txt"}
    assert desk.lines("train_img.txt") == ["a.jpg", "b.jpg"]
    assert "labels: none (the column is missing or empty), so this is for training only" in out


def test_without_queries_no_test_files(desk):
    out = desk.accepted(HEADER + "a.jpg,sea,water,database\n")
    assert desk.files() == {"train_img.txt", "train_tag.txt", "common_tags.txt", "labels.txt",
                            "database_img.txt", "database_label.txt"}
    assert "no query photos, so this is for training only" in out


@pytest.mark.parametrize("change", [
    lambda text: b"\xef\xbb\xbf" + text.encode(),
    lambda text: text.replace("\n", "\r\n").encode(),
    lambda text: text.replace("\n", "\n\n").encode(),
    lambda text: text.replace("\n", "\r").encode(),
    lambda text: text.replace("\n", "\r\n", 2).encode(),
    lambda text: text.rstrip("\n").encode(),
    lambda text: text.replace("\n", " \n").encode(),
], ids=["byte order mark", "Windows line ends", "blank rows", "old Mac line ends", "mixed line ends",
        "no last line end", "blanks at the ends"])
def test_files_as_spreadsheets_save_them(desk, change):
    desk.accepted(PHOTOS, name="plain")
    desk.accepted(change(PHOTOS))
    for file in desk.files("plain"):
        assert desk.lines(file) == desk.lines(file, "plain")


def test_columns_in_any_order_and_words_in_any_script(desk):
    desk.draw("été.jpg")
    desk.accepted("split,labels,image,tags\ndatabase,Été,été.jpg,MÜNCHEN\u00a0東京\n")
    assert desk.lines("common_tags.txt") == ["münchen 1", "東京 1"]
    assert desk.lines("labels.txt") == ["Été"]
    assert desk.lines("database_img.txt") == ["été.jpg"]


def test_importing_the_same_again_changes_nothing(desk):
    desk.accepted(PHOTOS)
    (desk.root / "data/mine/tags").mkdir()
    (desk.root / "data/mine/tags/FinalTagEmbs.txt").touch()
    before = snapshot(desk.root)
    desk.accepted(PHOTOS)
    assert snapshot(desk.root) == before


def test_photos_that_already_lie_in_datasets(desk):
    folder = desk.root / "datasets" / "mine"
    folder.parent.mkdir()
    desk.images.rename(folder)
    desk.images = folder
    desk.accepted(PHOTOS)
    assert not folder.is_symlink()


@pytest.mark.slow
def test_ten_thousand_rows_are_imported(desk):
    desk.images.joinpath("0.jpg").hardlink_to(desk.images / "a.jpg")
    for number in range(1, 10_000):
        (desk.images / f"{number}.jpg").hardlink_to(desk.images / "a.jpg")
    rng = np.random.default_rng(0)
    tags = [" ".join(f"tag{tag}" for tag in row) for row in rng.integers(0, 1000, (10_000, 8))]
    desk.accepted(HEADER + "".join(f"{row}.jpg,{text},label,database\n" for row, text in enumerate(tags)))
    assert len(desk.lines("train_img.txt")) == 10_000
    assert len(desk.lines("common_tags.txt")) == 1000


# ---------------------------------------------------------------- what is refused

@pytest.mark.parametrize(("text", "message"), [
    ("", "row 1: expected the columns image,tags,labels,split (labels may be missing), found none"),
    ("image,labels,split\na.jpg,x,database\n", "row 1: expected the columns image,tags,labels,split "
     "(labels may be missing), found image,labels,split"),
    ("image,tags,split,stars\na.jpg,x,database,5\n", "found image,tags,split,stars"),
    ("image;tags;labels;split\na.jpg;x;y;database\n", "found image;tags;labels;split"),
    (HEADER, "expected a photo in each row after the header, found no such row"),
    (HEADER + "\na.jpg,x,database\n", "row 3: expected 4 columns, found 3"),
    (HEADER + "a.jpg,x,y,database\nb.jpg,x,y,\"database\n", "row 3: expected comma-separated values"),
    (HEADER + "a.jpg,x,y,databse\n", "row 2: expected split train, database or query, found 'databse'"),
    (HEADER + "a.jpg,x,y,\n", "row 2: expected split train, database or query, found ''"),
    (HEADER + " ,x,y,database\n", "row 2: expected the path of a photo under image, found nothing"),
    (HEADER + "../a.jpg,x,y,database\n", "row 2: expected the path of a photo inside the image folder, found "
     "'../a.jpg', which leads out of it"),
    (HEADER + "/a.jpg,x,y,database\n", "found '/a.jpg', which leads out of it"),
    (HEADER + "./ a.jpg,x,y,database\n", "row 2: expected a path that a list can hold, found ' a.jpg' with a space "
     "at its start or end"),
    (HEADER + "a.jpg,x,y,database\na.jpg,z,y,database\n", "row 3: expected each photo in one row and one "
     "split, found 'a.jpg' as database here and as database in row 2"),
    (HEADER + "b.jpg,x,y,database\na/../b.jpg,x,y,query\n", "row 3: expected each photo in one row and one "
     "split, found 'b.jpg' as query here and as database in row 2"),
    (HEADER + "a.jpg,x\ty,y,database\n", "row 2: expected plain text under tags, found the control character "
     "'\\t'"),
    (HEADER + "a.jpg,x,y\x07,database\n", "under labels, found the control character '\\x07'"),
    (HEADER + "a.jpg\0,x,y,database\n", "row 2: expected text, found a NUL byte"),
    (HEADER.encode() + b"a.jpg,caf\xe9,y,database\n", "expected UTF-8 text, found something else"),
    (HEADER.encode() + b"a.jpg,x,y,query\r\na.jpg,caf\xe9,y,query\n", "row 3: expected UTF-8 text, found something"),
    (HEADER + "a.jpg," + "x" * 200_000 + ",y,database\n", "row 2: expected comma-separated values, found a row that"),
    (PHOTOS.encode("utf-16"), "row 1: expected UTF-8 text, found something else"),
    (HEADER + "q.jpg,x,y,query\n", "expected photos to train on (split train or database), found none"),
    (HEADER + "a.jpg,,y,database\n", "expected tags that at least 1 training photos have, found none"),
    (HEADER + "a.jpg,x,y,train\nq.jpg,x,y,query\n", "expected database photos for the query photos to find, "
     "found none"),
])
def test_a_file_that_is_wrong(desk, text, message):
    error = desk.refused(text)
    assert error.startswith(f"error: {desk.csv}: ")
    assert message in error


def test_a_file_that_is_missing(desk):
    assert desk.refused(None) == f"error: {desk.csv}: no such file"
    desk.images = desk.images / "holiday"
    assert f"{desk.images}: no such folder" in desk.refused(PHOTOS)


@pytest.mark.parametrize("name", ["flickr", "nuswide", "flickr25k", "nus-wide", "a/b", "..", ".hidden", "-x",
                                  "", "a b"])
def test_names_that_are_not_free_or_not_safe(desk, name):
    desk.refused(PHOTOS, name=name)


BAD_IMAGES = {
    "missing.jpg": (None, "is missing"),
    "empty.jpg": (b"", "is empty"),
    "truncated.jpg": (slice(300), "is truncated"),
    "text.jpg": (b"<html>not found</html>", "is not an image"),
    "truncated.png": (slice(300), "is truncated"),
    "folder": ("folder", "cannot be read"),
}


def spoil(desk, name, content):
    if content == "folder":
        (desk.images / name).mkdir()
    elif isinstance(content, slice):
        path = desk.draw(name)
        path.write_bytes(path.read_bytes()[content])
    elif content is not None:
        (desk.images / name).write_bytes(content)


def test_ten_bad_images_are_listed(desk):
    error = desk.refused(PHOTOS + "".join(f"no{number}.jpg,x,y,database\n" for number in range(12)))
    assert "12 of 16 photos cannot be used (--skip-bad leaves them out): no0.jpg (row 6) is missing; " in error
    assert error.count("is missing") == 10
    assert error.endswith("no9.jpg (row 15) is missing; and 2 more")


def test_bad_images_are_left_out_and_counted(desk):
    rows = ""
    for name, (content, _) in BAD_IMAGES.items():
        spoil(desk, name, content)
        rows += f"{name},rotten,rotten,database\n"
    out = desk.accepted(HEADER + rows + PHOTOS.removeprefix(HEADER), "--skip-bad")
    assert out.startswith("left out: 6 of 10 photos cannot be used: missing.jpg (row 2) is missing; ")
    for row, (name, (_, fault)) in enumerate(BAD_IMAGES.items(), 2):
        assert f"{name} (row {row}) {fault}" in out
    assert desk.lines("train_img.txt") == desk.lines("database_img.txt") == ["a.jpg", "b.jpg", "c/d e.png"]
    assert desk.lines("train_tag.txt") == ["1 0 1 0", "1 1 0 1", "0 0 0 0"]
    assert desk.lines("labels.txt") == ["air", "water"]


def test_leaving_out_all_training_images_does_not_change_the_rule(desk):
    error = desk.refused(PHOTOS + "missing.jpg,x,y,train\n", "--skip-bad")
    assert "expected photos to train on" in error


# ---------------------------------------------------------------- folders that are already there

def test_another_data_set_of_that_name_stays(desk):
    desk.accepted(PHOTOS)
    assert f"{desk.root}/data/mine already holds other split files" in desk.refused(PHOTOS.replace("sunset", "dawn"))
    assert "remove this folder" in desk.refused(HEADER + "a.jpg,sea,,database\n")


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda link: link.symlink_to("/nowhere")],
                         ids=["folder", "file", "other link"])
def test_other_images_of_that_name_stay(desk, make):
    link = desk.root / "datasets" / "mine"
    link.parent.mkdir()
    make(link)
    error = desk.refused(PHOTOS)
    assert f"{link} is already there and is not {desk.images}; remove it" in error


def test_a_move_that_fails_leaves_neither_folder(desk, monkeypatch):
    def fail(*_):
        raise OSError("the disk is gone")

    desk.csv.write_text(PHOTOS)
    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr(sys, "argv", ["photos.py", "mine", str(desk.csv), "--images", str(desk.images),
                                      "--root", str(desk.root)])
    with pytest.raises(OSError, match="the disk is gone"):
        photos.main()
    assert snapshot(desk.root) == {desk.root / "data": None, desk.root / "datasets": None}


def test_a_disk_that_is_full_leaves_nothing(desk):
    desk.accepted(PHOTOS, name="first")  # makes data/ and datasets/
    before = snapshot(desk.root)
    done = subprocess.run([sys.executable, "-B", PROGRAM, "mine", desk.csv, "--images", desk.images,
                           "--root", desk.root], capture_output=True, text=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20)))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert snapshot(desk.root) == before


# ---------------------------------------------------------------- real photos

@pytest.mark.skipif(not COREL.is_dir(), reason="no shared/data/corel5k next to the repository")
@pytest.mark.parametrize("file", ["photos.csv", "photos_concepts.csv"])
def test_corel5k(desk, file):
    desk.csv, desk.images = COREL / file, COREL / "images"
    out = desk.accepted(None, name="corel5k")
    with open(desk.csv, newline="") as lines:
        rows = list(csv.DictReader(lines))
    dataset = find_dataset("corel5k", desk.root)
    tags, labels = read_tag_names(dataset.tag_list), desk.lines("labels.txt", "corel5k")
    for split, kind, column, names in (("train", "database", "tags", tags),
                                       ("database", "database", "labels", labels),
                                       ("test", "query", "labels", labels)):
        wanted = [row for row in rows if row["split"] == kind]
        images, matrix = dataset.split_files(split)
        assert read_image_list(images) == [row["image"] for row in wanted]
        ones = read_binary_matrix(matrix).toarray()
        found = [{names[i] for i in np.flatnonzero(row)} for row in ones]
        assert found == [set(row[column].split()) for row in wanted]
    assert "training photos: 4,500 (the database photos" in out
    assert "database photos: 4,500; query photos: 499" in out
    assert len(labels) == (50 if file == "photos.csv" else 25)
