"""prepare/flickr25k.py on a small archive in exactly the official format.

Every written row is compared with a slow recomputation. Bad input is tried inside this process, which is faster.
"""
import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataset import read_binary_matrix
from prepare import flickr25k as prepare_flickr25k
from prepare.split_files import only_preparation
from small_collections import (
    KILLED,
    LISTS,
    accepted,
    check_report,
    check_rows,
    hidden_files,
    process_tags,
    snapshot,
    train_two_steps,
)
from tiny import PROJECT, call, run


@pytest.mark.slow
def test_flickr_from_archives_to_a_training(flickr):
    printed = accepted(flickr)
    images = check_rows(flickr)
    assert len(images["test"]) == 8
    assert len(images["database"]) == 32
    assert images["train"] == [image for image in images["database"] if set(flickr.tags[image]) & set(flickr.common)]
    assert flickr.lines("common_tags.txt") == [f"{tag} {90 - i}" for i, tag in enumerate(flickr.common)]
    assert flickr.lines("labels.txt") == sorted(flickr.labels)
    report = check_report(flickr, printed)
    assert report["files"].keys() == LISTS | {"common_tags.txt", "labels.txt"}
    assert report["images"] == {"queries": 8, "database": 32, "training": len(images["train"]), "left_out": 0}
    assert "note: these are 40 images; the whole collection has 25,000" in printed
    assert "the official archive has A23D0A8564EE84CDA5622A6C2F947785" in printed
    unpacked = {path.relative_to(flickr.link).as_posix() for path in flickr.link.rglob("*") if path.is_file()}
    assert unpacked == {name.removeprefix("mirflickr/") for name in flickr.files
                        if "exif" not in name and "tags_raw" not in name}
    process_tags(flickr, "flickr")
    train_two_steps(flickr, "flickr")


def test_one_seed_gives_one_split_and_both_protocols_the_same_queries(flickr, capsys, monkeypatch):
    def prepare(*options):
        code, printed = call(monkeypatch, capsys, prepare_flickr25k, *flickr.arguments(*options))
        assert code == 0, printed
        return snapshot(flickr.splits), printed

    first, _ = prepare()
    again, printed = prepare()
    assert again == first
    assert "already holds exactly these split files" in printed
    sampled, printed = prepare("--protocol", "sampled", "--training", "10", "--force")
    assert f"replaced the split files in {flickr.splits}" in printed
    images = check_rows(flickr)
    assert len(images["train"]) == 10
    changed = {path.name for path in first if first[path] != sampled[path]}
    assert changed == {"train_img.txt", "train_tag.txt", "report.json"}
    other, _ = prepare("--seed", "1", "--force")
    assert other != first


def test_unpacked_folders_are_linked(flickr, capsys, monkeypatch):
    code, _ = call(monkeypatch, capsys, prepare_flickr25k, *flickr.arguments())
    before = snapshot(flickr.splits)
    shutil.rmtree(flickr.root)
    flickr.root.mkdir()
    for path, folder in ((flickr.images, "photos"), (flickr.labels_zip, "annotations")):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(flickr.folder / folder)
    flickr.labels_zip = flickr.folder / "annotations"
    code, printed = call(monkeypatch, capsys, prepare_flickr25k, *flickr.arguments(images=flickr.folder / "photos"))
    assert code == 0, printed
    assert snapshot(flickr.splits) == before
    assert flickr.link.readlink() == flickr.folder / "photos" / "mirflickr"


def test_other_split_files_and_tags_stay_unless_forced(flickr, capsys, monkeypatch):
    (flickr.splits / "tags").mkdir(parents=True)
    (flickr.splits / "tags" / "FinalTagEmbs.txt").write_text("1\n")
    (flickr.splits / "common_tags.txt").write_text("sky\n")
    (flickr.splits / "TagList1k.txt").write_text("left from another data set\n")
    before = snapshot(flickr.splits)
    code, printed = call(monkeypatch, capsys, prepare_flickr25k, *flickr.arguments())
    assert (code, snapshot(flickr.splits)) == (2, before)
    assert f"error: {flickr.splits} already holds other split files; --force replaces them" in printed
    code, printed = call(monkeypatch, capsys, prepare_flickr25k, *flickr.arguments("--force"))
    assert code == 0
    assert f"note: {flickr.splits / 'tags'} was made from another tag list: run tag_processing.py again" in printed
    assert (flickr.splits / "tags" / "FinalTagEmbs.txt").read_text() == "1\n"
    assert not (flickr.splits / "TagList1k.txt").exists()
    check_rows(flickr)
    code, printed = call(monkeypatch, capsys, prepare_flickr25k, *flickr.arguments("--seed", "1", "--force"))
    assert code == 0
    assert "another tag list" not in printed


def damage_member(flickr, name):
    """Change one byte in the packed data of a member."""
    with zipfile.ZipFile(flickr.images) as archive:
        at = archive.getinfo(name).header_offset + 30 + len(name) + 20
    content = bytearray(flickr.images.read_bytes())
    content[at] ^= 0xFF
    flickr.images.write_bytes(content)


def repacked(change):
    def apply(flickr):
        change(flickr)
        flickr.pack()
    return apply


BAD_FLICKR = {
    "truncated archive": (lambda f: f.images.write_bytes(f.images.read_bytes()[:5000]),
                          "mirflickr25k.zip: expected a whole zip archive, found a truncated or other file"),
    "truncated annotations": (lambda f: f.labels_zip.write_bytes(f.labels_zip.read_bytes()[:200]),
                              "annotations_v080.zip: expected a whole zip archive"),
    "damaged member": (lambda f: damage_member(f, "mirflickr/im7.jpg"), "the member mirflickr/im7.jpg is damaged"),
    "climbing member": (repacked(lambda f: f.files.update({"mirflickr/../../im1.jpg": b"x"})),
                        "the member 'mirflickr/../../im1.jpg' leads out of the archive, so nothing was unpacked"),
    "absolute member": (repacked(lambda f: f.files.update({"/etc/im1.jpg": b"x"})), "'/etc/im1.jpg' leads out of"),
    "Windows member": (repacked(lambda f: f.annotations.update({"..\\sky.txt": b"1"})), "leads out of the archive"),
    "another archive": (repacked(lambda f: setattr(f, "files", {"photos/im1.jpg": b"x"})),
                        "expected mirflickr/im1.jpg, …, found none"),
    "no meta/tags": (repacked(lambda f: setattr(f, "files", {name: content for name, content in f.files.items()
                                                             if "meta/tags/" not in name})),
                     "expected mirflickr/meta/tags/tags1.txt, …, found none"),
    "an image missing": (repacked(lambda f: f.files.pop("mirflickr/im40.jpg")),
                         "but 1 of them are missing; the first is im40.jpg"),
    "tags missing": (repacked(lambda f: f.files.pop("mirflickr/meta/tags/tags3.txt")),
                     "the first is meta/tags/tags3.txt"),
    "no common tags": (repacked(lambda f: f.files.pop("mirflickr/doc/common_tags.txt")),
                       "expected mirflickr/doc/common_tags.txt, found none"),
    "tags twice": (repacked(lambda f: f.files.update({"mirflickr/doc/common_tags.txt": b"sky 3\nsky 4\n"})),
                   "expected each tag once"),
    "no image": (repacked(lambda f: f.files.update({"mirflickr/im9.jpg": b"<html>"})),
                 "1 of 40 images cannot be used: im9.jpg is not an image"),
    "annotation missing": (repacked(lambda f: f.annotations.pop("sky.txt")), "found none of sky.txt"),
    "annotation of words": (repacked(lambda f: f.annotations.update({"sky.txt": b"1\nim2\n"})),
                            "sky.txt: row 2: expected the number of an image, found 'im2'"),
    "annotation out of range": (repacked(lambda f: f.annotations.update({"sky.txt": b"41\n"})),
                                "sky.txt: expected images 1 to 40, found 41"),
    "no annotations": (lambda f: f.labels_zip.unlink(), "no such file or folder, expected mirflickr25k_annotations"),
}


@pytest.mark.parametrize("case", BAD_FLICKR)
def test_bad_archives_are_one_sentence(flickr, refused, case):
    spoil, sentence = BAD_FLICKR[case]
    spoil(flickr)
    assert sentence in refused(flickr)
    assert not flickr.link.exists() or case in ("no image", "annotation out of range", "tags twice")  # images are whole


def test_bad_options_are_one_sentence(flickr, refused):
    assert "expected MD5 " + "0" * 32 in refused(flickr, "--md5", "0" * 32)
    assert "expected more than 40 images to draw 40 queries from" in refused(flickr, "--queries", "40")
    assert "(--training takes fewer)" in refused(flickr, "--protocol", "sampled")
    code, printed = run("prepare/flickr25k.py", "--root", flickr.folder / "empty")
    assert (code, printed) == (2, "error: expected --annotations with the path of mirflickr25k_annotations_v080.zip, "
                                  "or --download\n")


def test_other_images_in_the_place_stay(flickr, refused):
    flickr.link.mkdir(parents=True)
    (flickr.link / "im1.jpg").write_bytes(b"mine")
    assert f"{flickr.link} is already there and is not what {flickr.images} holds" in refused(flickr)
    assert [path.name for path in flickr.link.iterdir()] == ["im1.jpg"]


@pytest.mark.parametrize(("function", "call"), [
    ("shutil.copyfileobj", 30), ("os.sync", 1), ("os.fsync", 5), ("os.replace", 4)])
def test_killed_in_the_middle_and_run_again(flickr, function, call):
    """While unpacking, before the images' folder is renamed, among the split files, while they move into place."""
    (flickr.splits / "tags").mkdir(parents=True)  # so that the files move one by one
    argv = flickr.command()
    argv[0] = str(PROJECT / argv[0])
    module, _, name = function.partition(".")
    code = KILLED.format(project=str(PROJECT), module=module, function=name,
                         call=call, argv=argv)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    assert hidden_files(flickr.root)
    if flickr.link.exists():
        assert len(list(flickr.link.glob("im*.jpg"))) == flickr.count
    assert len(LISTS - {path.name for path in flickr.splits.iterdir()}) > 0  # nothing that looks whole
    accepted(flickr)
    check_rows(flickr)


def test_killed_while_replacing_never_mixes_old_and_new(flickr, capsys, monkeypatch):
    assert call(monkeypatch, capsys, prepare_flickr25k, *flickr.arguments())[0] == 0
    old = snapshot(flickr.splits)
    code = KILLED.format(project=str(PROJECT), module="os", function="replace",
                         call=5, argv=[str(PROJECT / "prepare/flickr25k.py"),
                                       *flickr.arguments("--seed", "1", "--force")])
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    left = snapshot(flickr.splits)
    assert not [path for path in old if path.name in LISTS and left.get(path) == old[path]]
    printed = accepted(flickr, "--seed", "1")  # the interrupted run was allowed to; no second --force
    assert "already holds exactly these split files" in printed
    check_rows(flickr)


def test_two_preparations_at_once(flickr, refused):
    with only_preparation(flickr.link.parent, flickr.splits):
        assert "another preparation is running here" in refused(flickr)


def test_flickr_downloads_verifies_and_does_not_download_again(flickr, server, capsys, monkeypatch):
    server.files = {"x/" + path.name: path.read_bytes() for path in (flickr.images, flickr.labels_zip)}
    server.break_after = [500, 10_000]  # once in each archive
    arguments = ["--download", "--url-base", server.url + "x", "--queries", "8", "--root", str(flickr.root)]

    code, printed = call(monkeypatch, capsys, prepare_flickr25k, *arguments)
    assert code == 2
    assert "expected MD5 A23D0A8564EE84CDA5622A6C2F947785" in printed
    assert "the file was removed, run this again" in printed
    place = flickr.link.parent
    assert [path.name for path in place.iterdir()] == [flickr.labels_zip.name]

    right = ["--md5", hashlib.md5(flickr.images.read_bytes()).hexdigest()]
    code, printed = call(monkeypatch, capsys, prepare_flickr25k, *(arguments + right))
    assert code == 0, printed
    check_rows(flickr)
    asked = len(server.asked)
    (place / flickr.images.name).unlink()  # the images are unpacked, so it may go
    assert call(monkeypatch, capsys, prepare_flickr25k, *arguments)[0] == 0
    assert len(server.asked) == asked


def test_wrong_annotations_are_not_kept(flickr, server, capsys, monkeypatch):
    server.files = {flickr.labels_zip.name: b"<html>moved</html>"}
    code, printed = call(monkeypatch, capsys, prepare_flickr25k, "--download", "--url-base", server.url,
                         "--root", flickr.root)
    assert code == 2
    assert "expected a whole zip archive" in printed
    assert not list(flickr.link.parent.iterdir())


# ---------------------------------------------------------------- the real annotations

ANNOTATIONS = Path(__file__).resolve().parents[3] / "shared" / "data" / "mirflickr" / "annotations38.txt"
# labels that have a second file, of images in which the label is prominent
RELEVANT = {"baby", "bird", "car", "clouds", "dog", "female", "flower", "male", "night", "people", "portrait", "river",
            "sea", "tree"}


@pytest.mark.slow
@pytest.mark.skipif(not ANNOTATIONS.is_file(), reason="no shared/data/mirflickr next to the repository")
def test_the_real_annotations_of_all_25_000_images_make_a_data_set(tmp_path, monkeypatch, capsys):
    """With drawn images and tags. The columns are the official files in the order of their names: each _r1 file lists
    images of the file before it, but for 4 images of people_r1."""
    rows = [line.split() for line in ANNOTATIONS.read_text().splitlines()]
    matrix = np.array([row[1:] for row in rows], np.uint8)  # (25,000, 38)
    files = [name for label in prepare_flickr25k.LABELS
             for name in ([label, f"{label}_r1"] if label in RELEVANT else [label])]
    assert matrix.shape == (25_000, len(files))
    folder, images = tmp_path / "annotations", tmp_path / "mirflickr"
    for part in (folder, images / "meta" / "tags", images / "doc"):
        part.mkdir(parents=True)
    for column, name in enumerate(files):
        numbers = [rows[row][0][2:-4] for row in np.flatnonzero(matrix[:, column])]
        (folder / f"{name}.txt").write_text("\r\n".join(numbers) + "\r\n")
        if name.endswith("_r1"):
            outside = int((matrix[:, column] & ~matrix[:, column - 1] & 1).sum())
            assert outside == (4 if name == "people_r1" else 0)
    picture = cv2.imencode(".jpg", np.full((8, 8, 3), 90, np.uint8))[1].tobytes()
    for number in range(1, 25_001):
        (images / f"im{number}.jpg").write_bytes(picture)
        (images / "meta" / "tags" / f"tags{number}.txt").write_text(f"tag{number % 50}\r\n")
    (images / "doc" / "common_tags.txt").write_text("".join(f"tag{n} 500\r\n" for n in range(50)))
    code, printed = call(monkeypatch, capsys, prepare_flickr25k, "--annotations", folder, "--images", images, "--root",
                         tmp_path)
    assert code == 0, printed
    made = sum(read_binary_matrix(tmp_path / "data" / "flickr25k" / f"{split}_label.txt").sum(0)
               for split in ("database", "test"))
    labels = [files.index(label) for label in prepare_flickr25k.LABELS]
    np.testing.assert_array_equal(made, matrix[:, labels].sum(0, dtype=int))
    assert dict(zip(prepare_flickr25k.LABELS, made.tolist(), strict=True))["sky"] == 7_912
