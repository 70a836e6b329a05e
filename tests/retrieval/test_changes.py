"""Which photos are new, changed or gone, by their fingerprints. No network in this file."""
import os

import numpy as np
import pytest

from retrieval import index
from retrieval.photos import Source, compare, note_gone
from storage import fingerprints
from storage.fingerprints import take_fingerprints
from util import UserError

NAMES = ["a.jpg", "b.jpg", "c.jpg"]


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_text(f"photo {name}")
    return tmp_path


@pytest.fixture
def before(folder):
    """The content of an index of the photos."""
    content = index.Content(None, None, NAMES, None, None, None, [], {})
    content.fingerprints = take_fingerprints([folder / name for name in NAMES])
    return content


def changes(folder, before, names=NAMES, prune=False, encoded=None):
    found = compare(Source(folder, names, encoded=encoded), before, "out", prune)
    note_gone(found, folder, "out", prune)
    return found.kept.tolist(), found.to_encode.tolist(), found.fingerprints


def test_nothing_is_read_while_sizes_and_times_are_the_same(folder, before, monkeypatch):
    monkeypatch.setattr(fingerprints, "fingerprint", None)
    kept, to_encode, found = changes(folder, before)
    assert (kept, to_encode) == ([0, 1, 2], [])
    np.testing.assert_array_equal(found, before.fingerprints)


def test_a_changed_content_counts_and_a_changed_date_does_not(folder, before):
    os.utime(folder / "a.jpg", (5, 5))
    (folder / "b.jpg").write_text("another photo")
    kept, to_encode, found = changes(folder, before)
    assert (kept, to_encode) == ([0, 2], [1])
    assert found[0, 1] == 5 * 10**9
    np.testing.assert_array_equal(found[:, 3:], before.fingerprints[[0, 2], 3:])


def test_a_content_that_changed_under_its_old_size_and_date_is_noticed(folder, before):
    was = os.stat(folder / "c.jpg")
    (folder / "c.jpg").write_text("PHOTO c.jpg")
    os.utime(folder / "c.jpg", ns=(was.st_atime_ns, was.st_mtime_ns))
    assert changes(folder, before)[:2] == ([0, 1], [2])


def test_a_photo_that_is_no_file_any_more_is_gone_and_not_waited_for(folder, before, capsys):
    (folder / "a.jpg").unlink()
    os.mkfifo(folder / "a.jpg")
    assert changes(folder, before, prune=True)[:2] == ([1, 2], [])
    assert "such as a.jpg; they leave the index" in capsys.readouterr().err


def test_a_photo_that_cannot_be_read_any_more_counts_as_changed(folder, before, monkeypatch):
    (folder / "a.jpg").write_text("another photo")

    def refuse(path):  # a limit that holds for the superuser too
        raise PermissionError(13, "Permission denied", str(path))
    monkeypatch.setattr(fingerprints, "fingerprint", refuse)
    assert changes(folder, before)[:2] == ([1, 2], [0])  # so that it is looked at, and refused by name


def test_photos_that_are_gone_stay_unless_they_are_to_be_pruned(folder, before, capsys):
    (folder / "a.jpg").unlink()
    assert changes(folder, before)[:2] == ([0, 1, 2], [])  # a data set's list still names it
    assert "1 photos of out" in (noted := capsys.readouterr().err)
    assert "such as a.jpg; they stay in the index (--prune drops them)" in noted
    assert changes(folder, before, ["b.jpg", "d.jpg"], prune=True)[:2] == ([1], [1])
    assert "2 photos of out" in (noted := capsys.readouterr().err)
    assert "such as a.jpg; they leave the index" in noted


def test_a_photo_that_was_gone_and_comes_back_is_compared_with_what_it_was(folder, before):
    (folder / "a.jpg").unlink()
    before.fingerprints = changes(folder, before)[2]
    (folder / "a.jpg").write_text("photo a.jpg")
    assert changes(folder, before)[:2] == ([0, 1, 2], [])
    (folder / "a.jpg").write_text("another")
    assert changes(folder, before)[:2] == ([1, 2], [0])


def test_an_index_is_never_pruned_to_nothing(folder, before):
    for name in NAMES:
        (folder / name).unlink()
    with pytest.raises(UserError, match="none of the 3 photos of out is there any more, so the index stays as it is"):
        changes(folder, before, prune=True)


def test_photos_without_a_fingerprint_are_taken_as_they_are_until_their_size_or_time_changes(folder, before):
    before.fingerprints = None  # as an index has them whose photos `search.py encode` encoded
    kept, to_encode, before.fingerprints = changes(folder, before)
    assert (kept, to_encode) == ([0, 1, 2], [])
    assert (before.fingerprints[:, 0] == len("photo a.jpg")).all()
    assert changes(folder, before)[:2] == ([0, 1, 2], [])
    (folder / "b.jpg").write_text("another photo")
    assert changes(folder, before)[:2] == ([0, 2], [1])


def test_photos_that_were_encoded_into_shards_are_not_opened(folder, before):
    for name in NAMES:
        (folder / name).unlink()
    before.fingerprints = None
    kept, to_encode, found = changes(folder, before, ["b.jpg", "c.jpg", "d.jpg"], prune=True, encoded=object())
    assert (kept, to_encode) == ([1, 2], [2])
    assert not found.any()
