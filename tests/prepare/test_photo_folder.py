"""prepare/photos.py --from-photos as people run it: real folders, from tags in photos to a data set."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataset import find_dataset, load_training, read_binary_matrix, read_image_list, read_lines, read_tag_names
from desk import snapshot
from prepare import photo_folder, photos
from tagged import TAGGED, subject
from tiny import PROJECT, call_apart

PROGRAM = PROJECT / "prepare" / "photos.py"
SCENES = ["Sea", "beach day", "Sea", "Café"]  # of photo i: SCENES[i % 4]


class Album:
    """A folder of photos, and the program run on it."""

    def __init__(self, folder, monkeypatch, capsys):
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.root, self.photos = folder / "root", folder / "photos"
        self.root.mkdir()
        self.photos.mkdir()

    def add(self, name, *tags):
        path = self.photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.full((16, 24, 3), len(name), np.uint8))
        if tags:
            Path(f"{path}.xmp").write_text(subject(*tags), encoding="utf-8")
        return path

    def fill(self, count=60):
        for number in range(count):
            self.add(f"{number:02}.jpg", SCENES[number % 4], *["Canon"] * (number < 55), *["rare"] * (number < 2))

    def run(self, *options, name="mine"):
        before = snapshot(self.photos)
        done = call_apart(self.monkeypatch, self.capsys, photos, name, "--from-photos", self.photos,
                          "--root", self.root, *options)
        assert snapshot(self.photos) == before  # nothing is written there
        return done

    def accepted(self, *options, name="mine"):
        code, printed, self.notes = self.run(*options, name=name)
        assert code == 0, self.notes
        return printed

    def refused(self, *options, name="mine"):
        code, _, errors = self.run(*options, name=name)
        assert code == 2
        return errors.splitlines()[-1]

    @property
    def splits(self):
        return self.root / "data" / "mine"

    @property
    def report(self):
        return json.loads((self.splits / "report.json").read_text(encoding="utf-8"))


@pytest.fixture
def album(tmp_path, monkeypatch, capsys):
    return Album(tmp_path, monkeypatch, capsys)


def count_readings(monkeypatch):
    """The photos whose tags are read from here on, as a list that grows."""
    read, paths = photo_folder.read_tags, []

    def counted(photo, descriptions):
        paths.append(photo.name)
        return read(photo, descriptions)

    monkeypatch.setattr(photo_folder, "read_tags", counted)
    return paths


# ---------------------------------------------------------------- the data set

def test_a_folder_becomes_a_data_set(album):
    album.fill()
    album.add("untagged.jpg")
    printed = album.accepted()
    dataset = find_dataset("mine", album.root)
    images, matrix = dataset.split_files("train")
    assert read_tag_names(dataset.tag_list) == ["sea", "beach_day", "cafe"]
    assert read_lines(dataset.tag_list) == ["sea 30", "beach_day 15", "cafe 15"]
    assert read_image_list(images) == [f"{number:02}.jpg" for number in range(60)]
    wanted = [[scene == "Sea", scene == "beach day", scene == "Café"] for scene in SCENES * 15]
    np.testing.assert_array_equal(read_binary_matrix(matrix).toarray(), wanted)
    assert read_lines(album.splits / "dropped_tags.txt") == [
        "canon\t55\tmore than 80 % of the tagged photos have", "rare\t2\tfewer than 3 photos have"]
    assert os.path.realpath(dataset.images) == str(album.photos)
    assert album.report["enough_tags"] is True
    assert (album.report["photos"], album.report["photos_with_a_tag"]) == (61, 60)
    assert printed.splitlines() == [
        "photos: 61",
        f"tags: 3 kept; dropped, and listed in {album.splits}/dropped_tags.txt:",
        "         1 that more than 80 % of the tagged photos have: canon",
        "         1 that fewer than 3 photos have: rare",
        "training photos: 60, those with a tag that was kept",
        f"wrote {album.splits}, linked {dataset.images}",
        f"next: python tag_processing.py mine train 0 --root {album.root}",
        "      (or, better, a file of word vectors such as GoogleNews or GloVe in place of train)"]
    assert album.notes == ""


def test_what_it_makes_can_be_trained_on(album, run_here):
    album.fill()
    album.accepted()
    code, printed = run_here("tag_processing.py", "mine", "train", "cpu", "--root", album.root)
    assert code == 0, printed
    training = load_training(find_dataset("mine", album.root))
    assert training.tags.shape == (60, 3)
    assert training.untagged == 0


def test_tags_that_fewer_photos_have(album):
    album.fill()
    album.accepted("--min-tag-count", "2")
    assert "rare" in read_tag_names(find_dataset("mine", album.root).tag_list)


def test_names_of_folders(album):
    for number in range(60):
        album.add(f"{['New York', 'Rome'][number % 2]}/{number % 3}/{number}.jpg")
    assert "too few tags" in album.accepted()
    album.accepted("--folder-tags")
    assert read_tag_names(find_dataset("mine", album.root).tag_list) == ["new_york", "rome", "0", "1", "2"]


def test_tags_of_photos_themselves(album):
    """Without files next to them: the tags are those that exiftool wrote."""
    for number in range(60):
        shutil.copy(TAGGED / ["iptc.jpg", "latin.jpg", "all.webp", "xmp.png"][number % 4],
                    album.photos / f"{number}{['.jpg', '.jpg', '.webp', '.png'][number % 4]}")
    album.accepted()
    counts = dict(line.split() for line in read_lines(album.splits / "common_tags.txt"))
    assert counts == {"cafe": "30", "new_york": "30", "beach_day": "30", "sunset": "30", "ete": "15", "sea": "15"}


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="no exiftool (libimage-exiftool-perl)")
def test_tags_that_exiftool_writes_now(album):
    """IPTC, XMP, EXIF and a file next to the photo, each in 20 photos."""
    ways = [["-IPTC:Keywords=New York", "-codedcharacterset=utf8"], ["-XMP-dc:Subject=New York"],
            ["-EXIF:XPKeywords=x;New York"]]
    for kind, way in enumerate(ways):
        paths = [album.add(f"{kind}/{number}.jpg") for number in range(20)]
        extra = f"{way[0].split('=')[0].replace('EXIF:XPKeywords', 'XMP-dc:Subject')}+=tag{kind}"
        subprocess.run(["exiftool", "-q", "-overwrite_original", *way, extra, *paths], check=True)
    paths = [album.add(f"3/{number}.jpg") for number in range(20)]
    first, *others = [path.with_suffix(".xmp") for path in paths]
    subprocess.run(["exiftool", "-q", "-XMP-lr:HierarchicalSubject=USA|tag3", "-o", first], check=True)
    for path in others:
        shutil.copy(first, path)
    album.accepted()
    counts = dict(line.split() for line in read_lines(album.splits / "common_tags.txt"))
    assert counts == {"new_york": "60", "tag0": "20", "tag1": "20", "tag2": "20", "tag3": "20", "x": "20"}


# ---------------------------------------------------------------- again

def test_only_what_is_new_or_changed_is_read_again(album, monkeypatch):
    album.fill()
    album.accepted()
    before = snapshot(album.root)
    read = count_readings(monkeypatch)
    printed = album.accepted()
    assert read == []
    assert "since the last run 0 new, 0 changed, 0 deleted" in printed
    assert "unchanged: " in printed
    after = snapshot(album.root)
    report = album.splits / "report.json"
    assert {path: after[path] for path in after if path != report} == {
        path: before[path] for path in before if path != report}

    album.add("new.jpg", "sea")
    album.add("00.jpg", "beach day")  # its tags
    os.utime(album.photos / "01.jpg", ns=(1, 1))
    (album.photos / "02.jpg").unlink()
    (album.photos / "03.jpg.xmp").unlink()
    printed = album.accepted()
    assert sorted(read) == ["00.jpg", "01.jpg", "03.jpg", "new.jpg"]
    assert "photos: 60; since the last run 1 new, 3 changed, 1 deleted" in printed
    assert "replaced the split files" in printed
    images = read_lines(album.splits / "train_img.txt")
    assert "new.jpg" in images
    assert not {"02.jpg", "03.jpg"} & set(images)


def test_an_interrupted_run_keeps_what_it_read(album, monkeypatch):
    album.fill()
    read_tags = photo_folder.read_tags

    def interrupted(photo, descriptions):
        if photo.name == "30.jpg":
            raise KeyboardInterrupt
        return read_tags(photo, descriptions)

    monkeypatch.setattr(photo_folder, "read_tags", interrupted)
    assert album.run()[0] == 130
    assert not (album.splits / "train_img.txt").exists()
    monkeypatch.setattr(photo_folder, "read_tags", read_tags)
    read = count_readings(monkeypatch)
    album.accepted()
    assert "30.jpg" in read
    assert not set(read) & {f"{number:02}.jpg" for number in range(30)}


@pytest.mark.parametrize("content", ["", "{}", '{"version": 1, "photos": {"00.jpg": {"stamps": {}, "more": 1}}}',
                                     '{"version": 0, "photos": {}}', '{"version": 1, "photos": []}', "[" * 10_000])
def test_a_memory_that_is_damaged_is_not_used(album, content):
    album.fill()
    album.accepted()
    files = {path: path.read_bytes() for path in album.splits.glob("*.txt")}
    (album.splits / "photo_tags.json").write_text(content, encoding="utf-8")
    album.accepted()
    assert {path: path.read_bytes() for path in album.splits.glob("*.txt")} == files


def test_tags_that_were_made_from_another_list_are_reported(album, run_here):
    album.fill()
    album.accepted()
    run_here("tag_processing.py", "mine", "train", "cpu", "--root", album.root)
    assert "run tag_processing.py again" not in album.accepted()
    for number in range(3):
        album.add(f"new{number}.jpg", "mountain")
    assert "run tag_processing.py again" in album.accepted()


# ---------------------------------------------------------------- too few tags

def test_too_few_tags_are_reported_and_no_error(album):
    album.fill(40)
    printed = album.accepted()
    why = "40 photos have one of the 3 tags that were kept, and learning from tags takes at least 50 photos and 2 tags."
    assert f"too few tags: {why} These photos can be searched by photo, but not by words." in printed
    assert "next:" not in printed
    assert album.report["enough_tags"] is False
    assert album.report["no_words"] == why
    assert len(read_lines(album.splits / "train_img.txt")) == 40  # of which features are reduced
    assert not (album.splits / "train_tag.txt").exists()
    album.fill()
    album.accepted()
    assert (album.splits / "train_tag.txt").exists()
    assert album.report["no_words"] is None
    for path in album.photos.glob("*.xmp"):
        path.unlink()
    assert "0 photos have one of the 0 tags" in album.accepted()
    assert not (album.splits / "train_tag.txt").exists()  # of photos that had tags once
    assert not (album.splits / "common_tags.txt").exists()


def test_one_tag_is_too_few(album):
    for number in range(70):
        album.add(f"{number}.jpg", "sea" if number < 50 else f"x{number}")
    assert "50 photos have one of the 1 tags" in album.accepted()


# ---------------------------------------------------------------- what cannot be used

def test_bad_photos_are_refused_or_left_out(album):
    album.fill()
    (album.photos / "cut.jpg").write_bytes((album.photos / "00.jpg").read_bytes()[:300])
    (album.photos / "line\nend.jpg").write_bytes((album.photos / "00.jpg").read_bytes())
    (album.photos / "out.jpg").symlink_to(TAGGED / "all.jpg")
    Path(os.fsdecode(bytes(album.photos) + b"/\xff.jpg")).write_bytes((album.photos / "00.jpg").read_bytes())
    error = album.refused()
    assert f"{album.photos}: 4 of 64 photos cannot be used (--skip-bad leaves them out): 'cut.jpg' is tr" in error
    printed = album.accepted("--skip-bad")
    assert printed.startswith("left out: 4 of 64 photos cannot be used: 'cut.jpg' is truncated; ")
    assert len(read_lines(album.splits / "train_img.txt")) == 60
    assert len((album.splits / "left_out.txt").read_text(encoding="utf-8").splitlines()) == 5  # a name has a line end


def test_tags_that_cannot_be_read_are_reported(album):
    album.fill()
    (album.photos / "01.jpg.xmp").write_text("no XML", encoding="utf-8")
    album.accepted()
    assert f"note: some tags of 1 photos could not be read: {album.photos}/01.jpg.xmp (" in album.notes


def test_another_data_set_of_that_name_stays(album):
    album.splits.mkdir(parents=True)
    (album.splits / "train_img.txt").write_text("a.jpg\n")
    album.fill()
    assert f"{album.splits} already holds another data set than the photos of" in album.refused()
    assert (album.splits / "train_img.txt").read_text() == "a.jpg\n"


def test_another_folder_under_that_name_is_refused(album, tmp_path):
    album.fill()
    album.accepted()
    album.photos = album.photos.rename(tmp_path / "moved")
    assert "holds another data set than the photos of" in album.refused()


def test_folders_without_photos(album):
    assert "expected photos that OpenCV reads, found none" in album.refused()
    (album.photos / "notes.txt").write_text("x")
    assert "found 1 files that are no photos: notes.txt" in album.refused()
    album.photos = album.photos / "notes.txt"
    code, _, errors = call_apart(album.monkeypatch, album.capsys, photos, "mine", "--from-photos", album.photos)
    assert code == 2
    assert "no such folder" in errors


@pytest.mark.parametrize(("arguments", "message"), [
    (["mine"], "expected photos.csv and --images DIR, or --from-photos DIR"),
    (["mine", "photos.csv"], "expected photos.csv and --images DIR"),
    (["mine", "photos.csv", "--from-photos", "x"], "give one or the other"),
    (["mine", "--images", "x", "--from-photos", "x"], "give one or the other"),
    (["mine", "--images", "x", "photos.csv", "--folder-tags"], "--folder-tags needs --from-photos"),
])
def test_options_that_do_not_go_together(album, arguments, message):
    code, _, errors = call_apart(album.monkeypatch, album.capsys, photos, *arguments)
    assert code == 2
    assert message in errors


def test_without_pillow_the_program_says_what_to_install(album):
    album.fill(2)
    blocked = "import sys; sys.modules['PIL'] = None; sys.argv[0] = 'photos.py'; import runpy; " \
              f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", blocked, "mine", "--from-photos", album.photos, "--root", album.root],
                          capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 2
    assert done.stderr == ("error: reading the tags of photos needs Pillow and defusedxml: "
                           "pip install -e '.[photos]'\n")
