"""Which files of a folder count as photos, and which photos of an index are new, changed or gone."""
import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from retrieval import index, photos
from retrieval.photos import Source, compare, note_gone
from storage import fingerprints
from storage.fingerprints import take_fingerprints
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
def test_a_file_is_a_photo_by_its_content_if_its_name_does_not_say_so(folder, kind):
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
    noted = capsys.readouterr().err
    assert noted.startswith(f"note: {folder}: left out 14 files that are no photos: d.heic; notes 00.txt; notes 01.txt")
    assert noted.endswith("; and 4 more\n")


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


def test_links_to_folders_are_not_followed_but_noted(folder, capsys):
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


# ---------------------------------------------------------------- new, changed and gone

NAMES = ["a.jpg", "b.jpg", "c.jpg"]


@pytest.fixture
def indexed(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_text(f"photo {name}")
    return tmp_path


@pytest.fixture
def before(indexed):
    """The content of an index of the photos."""
    content = index.Content(None, None, NAMES, None, None, None, [], {})
    content.fingerprints = take_fingerprints([indexed / name for name in NAMES])
    return content


def changes(indexed, before, names=NAMES, prune=False, encoded=None):
    found = compare(Source(indexed, names, encoded=encoded), before, "out", prune)
    note_gone(found, indexed, "out", prune)
    return found.kept.tolist(), found.to_encode.tolist(), found.fingerprints


def test_nothing_is_read_while_sizes_and_times_are_the_same(indexed, before, monkeypatch):
    monkeypatch.setattr(fingerprints, "fingerprint", None)
    kept, to_encode, found = changes(indexed, before)
    assert (kept, to_encode) == ([0, 1, 2], [])
    np.testing.assert_array_equal(found, before.fingerprints)


def test_a_changed_content_counts_and_a_changed_date_does_not(indexed, before):
    os.utime(indexed / "a.jpg", (5, 5))
    (indexed / "b.jpg").write_text("another photo")
    kept, to_encode, found = changes(indexed, before)
    assert (kept, to_encode) == ([0, 2], [1])
    assert found[0, 1] == 5 * 10**9
    np.testing.assert_array_equal(found[:, 3:], before.fingerprints[[0, 2], 3:])


def test_a_content_that_changed_under_its_old_size_and_date_is_noticed(indexed, before):
    was = os.stat(indexed / "c.jpg")
    (indexed / "c.jpg").write_text("PHOTO c.jpg")
    os.utime(indexed / "c.jpg", ns=(was.st_atime_ns, was.st_mtime_ns))
    assert changes(indexed, before)[:2] == ([0, 1], [2])


def test_a_photo_that_is_no_file_any_more_is_gone_and_not_waited_for(indexed, before, capsys):
    (indexed / "a.jpg").unlink()
    os.mkfifo(indexed / "a.jpg")
    assert changes(indexed, before, prune=True)[:2] == ([1, 2], [])
    assert "such as a.jpg; they leave the index" in capsys.readouterr().err


def test_a_photo_that_cannot_be_read_any_more_counts_as_changed(indexed, before, monkeypatch):
    (indexed / "a.jpg").write_text("another photo")

    def refuse(path):  # a limit that holds for the superuser too
        raise PermissionError(13, "Permission denied", str(path))
    monkeypatch.setattr(fingerprints, "fingerprint", refuse)
    assert changes(indexed, before)[:2] == ([1, 2], [0])  # so that it is looked at, and refused by name


def test_photos_that_are_gone_stay_unless_they_are_to_be_pruned(indexed, before, capsys):
    (indexed / "a.jpg").unlink()
    assert changes(indexed, before)[:2] == ([0, 1, 2], [])  # a data set's list still names it
    assert "1 photos of out" in (noted := capsys.readouterr().err)
    assert "such as a.jpg; they stay in the index (--prune drops them)" in noted
    assert changes(indexed, before, ["b.jpg", "d.jpg"], prune=True)[:2] == ([1], [1])
    assert "2 photos of out" in (noted := capsys.readouterr().err)
    assert "such as a.jpg; they leave the index" in noted


def test_a_photo_that_was_gone_and_comes_back_is_compared_with_what_it_was(indexed, before):
    (indexed / "a.jpg").unlink()
    before.fingerprints = changes(indexed, before)[2]
    (indexed / "a.jpg").write_text("photo a.jpg")
    assert changes(indexed, before)[:2] == ([0, 1, 2], [])
    (indexed / "a.jpg").write_text("another")
    assert changes(indexed, before)[:2] == ([1, 2], [0])


def test_an_index_is_never_pruned_to_nothing(indexed, before):
    for name in NAMES:
        (indexed / name).unlink()
    with pytest.raises(UserError, match="none of the 3 photos of out is there any more, so the index stays as it is"):
        changes(indexed, before, prune=True)


def test_photos_without_a_fingerprint_are_taken_as_they_are_until_their_size_or_time_changes(indexed, before):
    before.fingerprints = None  # as an index has them whose photos `search.py encode` encoded
    kept, to_encode, before.fingerprints = changes(indexed, before)
    assert (kept, to_encode) == ([0, 1, 2], [])
    assert (before.fingerprints[:, 0] == len("photo a.jpg")).all()
    assert changes(indexed, before)[:2] == ([0, 1, 2], [])
    (indexed / "b.jpg").write_text("another photo")
    assert changes(indexed, before)[:2] == ([0, 2], [1])


def test_photos_that_were_encoded_into_shards_are_not_opened(indexed, before):
    for name in NAMES:
        (indexed / name).unlink()
    before.fingerprints = None
    kept, to_encode, found = changes(indexed, before, ["b.jpg", "c.jpg", "d.jpg"], prune=True, encoded=object())
    assert (kept, to_encode) == ([1, 2], [2])
    assert not found.any()
