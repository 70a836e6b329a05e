"""Where photos come from: which files of a folder count as photos, and what is told of the others."""
import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import cv2
import pytest

from retrieval import photos
from tiny import PROJECT
from util import UserError, stream


@pytest.fixture
def folder(tmp_path):
    """A folder with a photo."""
    write_image(tmp_path / "a.jpg")
    return tmp_path


def write_image(path, kind=None):
    """An image file of the format `kind`, such as ".gif", by default that of the name."""
    made, content = cv2.imencode(kind or path.suffix, stream(0, "image").integers(0, 256, (40, 50, 3), "uint8"))
    assert made
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.tobytes())


@contextlib.contextmanager
def as_a_user():
    """Without root's right to read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_what_is_hidden_does_not_count(folder, capsys):
    for name in (".b.jpg", ".thumbnails/c.jpg", "sub/d.jpg", "sub/.e.jpg"):
        write_image(folder / name)
    assert photos.photo_names(folder) == ["a.jpg", "sub/d.jpg"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", [".gif", ".avif", ".jpg", ".jp2"])
def test_a_file_is_a_photo_by_its_content_if_its_name_does_not_tell(folder, kind):
    if not cv2.haveImageWriter(f"x{kind}"):
        pytest.skip("this OpenCV does not write the format")
    write_image(folder / f"b{kind}", kind)
    write_image(folder / "c", kind)
    assert photos.photo_names(folder) == ["a.jpg", f"b{kind}", "c"]


def test_files_that_are_no_photos_are_counted_and_the_first_ones_named(folder, capsys):
    (folder / "d.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    for number in range(12):
        (folder / f"notes {number:02}.txt").write_text("no photo")
    os.mkfifo(folder / "pipe")
    assert photos.photo_names(folder) == ["a.jpg"]
    told = capsys.readouterr().err
    assert told.startswith(f"note: {folder}: left out 14 files that are no photos: d.heic; notes 00.txt; notes 01.txt")
    assert told.endswith("; and 4 more\n")


def test_a_file_that_is_named_as_a_photo_counts_whatever_it_holds(folder):
    (folder / "b.JPG").write_text("no photo")
    assert photos.photo_names(folder) == ["a.jpg", "b.JPG"]


def test_a_subfolder_that_may_not_be_read_is_named():
    with tempfile.TemporaryDirectory() as name:  # which others may enter, unlike pytest's
        folder = Path(name)
        folder.chmod(0o755)
        write_image(folder / "a.jpg")
        write_image(folder / "secret" / "b.jpg")
        (folder / "secret").chmod(0)
        try:
            with as_a_user():
                found = photos.visible_files(folder)
        finally:
            (folder / "secret").chmod(0o755)
    assert found == (["a.jpg"], ["secret (cannot be read: Permission denied)"])


def test_a_folder_that_may_not_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"gone cannot be read \(No such file or directory\)"):
        photos.visible_files(tmp_path / "gone")


def test_links_to_folders_are_not_followed_but_told(folder, capsys):
    (folder / "round").symlink_to(".")
    assert photos.photo_names(folder) == ["a.jpg"]
    assert capsys.readouterr().err == f"note: {folder}: left out 1 folders: round (a link to a folder)\n"


def test_a_folder_without_photos_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("no photo")
    with pytest.raises(UserError, match=r"expected photos that OpenCV reads, found 1 files that are no photos: notes"):
        photos.photo_names(tmp_path)


def test_a_folder_of_photos_may_hold_a_plan_of_its_own(tmp_path):
    shutil.copy(PROJECT / "docs" / "corel5k_tsne.png", tmp_path / "photo.png")
    (tmp_path / "plan.json").write_text('{"monday": "beach"}')
    assert photos.photo_source(str(tmp_path), tmp_path).names == ["photo.png"]
