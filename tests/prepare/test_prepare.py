"""The programs that prepare MIRFLICKR-25K and NUS-WIDE, on small archives in exactly the official formats.

Every written row is held against a slow recomputation. Bad input is tried inside this process, which is faster.
"""
import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest
import scipy.sparse

import dataset
from dataset import find_dataset, load_retrieval, load_training, read_binary_matrix
from file_server import serving
from prepare import download
from prepare import flickr25k as prepare_flickr25k
from prepare import nuswide as prepare_nuswide
from prepare.split_files import only_preparation, write_matrix
from tiny import PROJECT, call, run
from util import UserError

SPLITS = {"train": "tag", "database": "label", "test": "label"}
LISTS = {f"{split}_{kind}.txt" for split, matrix in SPLITS.items() for kind in ("img", matrix)}
# an interpreter that runs a program and kills itself at the n-th call of a function
KILLED = """
import os, runpy, signal, sys
sys.path[:0] = [{project!r}]
import {module}
calls, original = 0, {module}.{function}
def dying(*args, **options):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **options)
{module}.{function} = dying
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


# ---------------------------------------------------------------- small collections in the official formats

def picture(number):
    noise = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
    return cv2.imencode(".jpg", noise)[1].tobytes()


class Flickr:
    """MIRFLICKR-25K with 40 images: `files` {member of the archive: bytes}, `annotations` likewise."""
    count = 40
    common = ("explore", "sky", "nikon", "niño", "2007", "portrait")

    def __init__(self, folder):
        self.root, self.folder = folder / "root", folder
        self.root.mkdir()
        rng = np.random.default_rng(0)
        self.tags, self.labels = {}, {label: [] for label in prepare_flickr25k.LABELS}
        self.files = {"mirflickr/doc/common_tags.txt": "".join(f"{tag} {90 - i}\r\n" for i, tag in
                                                               enumerate(self.common)).encode()}
        for image in range(1, self.count + 1):
            self.tags[image] = [tag for tag in (*self.common, "rarething", "sky blue") if rng.random() < 0.3]
            if image % 7 == 0:
                self.tags[image] = ["rarething"] * (image % 2)
            for label in self.labels:
                if rng.random() < 0.2:
                    self.labels[label].append(image)
            self.files[f"mirflickr/im{image}.jpg"] = picture(image)
            self.files[f"mirflickr/meta/tags/tags{image}.txt"] = "".join(f"{t}\r\n" for t in self.tags[image]).encode()
            self.files[f"mirflickr/meta/tags_raw/tags{image}.txt"] = b"Sky Blue\r\n"
            self.files[f"mirflickr/meta/exif/exif{image}.txt"] = b"-Make\r\nNikon\r\n"
        self.annotations = {f"{label}.txt": "".join(f"{image}\r\n" for image in images).encode()
                            for label, images in self.labels.items()}
        self.annotations |= {"sky_r1.txt": b"1\r\n", "dog_r1.txt": b"2\r\n", "README.txt": b"Annotations v0.80\r\n"}
        self.images, self.labels_zip = folder / "mirflickr25k.zip", folder / "mirflickr25k_annotations_v080.zip"
        self.pack()

    def pack(self):
        for path, files in ((self.images, self.files), (self.labels_zip, self.annotations)):
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in files.items():
                    archive.writestr(name, content)

    def arguments(self, *options, images=None):
        return ["--images", str(images or self.images), "--annotations", str(self.labels_zip), "--queries", "8",
                "--root", str(self.root), *options]

    def command(self, *options, **changed):
        return ["prepare/flickr25k.py", *self.arguments(*options, **changed)]

    def rows(self, split):
        """The split's rows, from the pictures' names alone."""
        for name in self.lines(f"{split}_img.txt"):
            image = int(re.fullmatch(r"mirflickr/im(\d+)\.jpg", name)[1])
            tags = [str(int(tag in self.tags[image])) for tag in self.common]
            labels = [str(int(image in self.labels[label])) for label in prepare_flickr25k.LABELS]
            yield image, " ".join(tags if split == "train" else labels)

    def lines(self, name):
        return (self.splits / name).read_text().splitlines()

    @property
    def splits(self):
        return self.root / "data" / "flickr25k"

    @property
    def link(self):
        return self.root / "datasets" / "flickr25k" / "mirflickr"


class NusWide:
    """NUS-WIDE with 120 images and 23 concepts; concepts 3 and 5 are the rarest, one image is missing, one empty."""
    count, tag_names = 120, ("nature", "sky", "blue", "water", "clouds")
    concepts = tuple(f"concept{i}" for i in range(23))
    rare = (3, 5)

    def __init__(self, folder):
        self.root, self.release = folder / "root", folder / "NUS-WIDE"
        self.root.mkdir()
        rng = np.random.default_rng(1)
        self.names = [f"{('actor', 'zoo')[i % 2]}/{i:04}_{i * 7919}.jpg" for i in range(self.count)]
        self.tags = (rng.random((self.count, len(self.tag_names))) < 0.25).astype(int)
        self.labels = (rng.random((self.count, len(self.concepts))) < 0.15).astype(int)
        self.labels[:, self.rare] = 0
        self.labels[[0, 1], 3] = 1
        self.labels[4, 5] = 1
        self.labels[4, [i for i in range(23) if i not in self.rare]] = 0  # so it has no frequent concept
        self.labels[[10, 11], 0] = 1
        self.bad = (10, 11)
        self.write("ImageList/Imagelist.txt", "".join(name.replace("/", "\\") + "\r\n" for name in self.names))
        self.write("NUS_WID_Tags/TagList1k.txt", "".join(f"{tag}\r\n" for tag in self.tag_names))
        self.write("NUS_WID_Tags/AllTags1k.txt", "".join("\t".join(map(str, row)) + "\t\r\n" for row in self.tags))
        self.write("ConceptsList/Concepts81.txt", "".join(f"{concept}\r\n" for concept in self.concepts))
        for concept, column in zip(self.concepts, self.labels.T, strict=True):
            self.write(f"Groundtruth/AllLabels/Labels_{concept}.txt", "".join(f"{value}\n" for value in column))
        for i, name in enumerate(self.names):
            path = self.release / "Flickr" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if i != self.bad[0]:
                path.write_bytes(b"" if i == self.bad[1] else picture(i))

    def write(self, name, text):
        path = self.release / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, newline="")

    def arguments(self, *options):
        queries = () if "--per-concept" in options else ("--queries", "12")
        return [str(self.release), *queries, "--training", "40", "--root", str(self.root), *options]

    def command(self, *options):
        return ["prepare/nuswide.py", *self.arguments(*options)]

    def rows(self, split):
        kept = [i for i in range(len(self.concepts)) if i not in self.rare]
        for name in self.lines(f"{split}_img.txt"):
            image = self.names.index(name.removeprefix("Flickr/"))
            yield image, " ".join(map(str, self.tags[image] if split == "train" else self.labels[image, kept]))

    def lines(self, name):
        return (self.splits / name).read_text().splitlines()

    @property
    def splits(self):
        return self.root / "data" / "nus-wide"

    @property
    def link(self):
        return self.root / "datasets" / "nus-wide" / "Flickr"


@pytest.fixture
def flickr(tmp_path):
    return Flickr(tmp_path)


@pytest.fixture
def nuswide(tmp_path):
    return NusWide(tmp_path)


def accepted(collection, *options, **changed):
    code, printed = run(*collection.command(*options, **changed))
    assert code == 0, printed
    assert not hidden_files(collection.root)  # nothing half-written
    return printed


@pytest.fixture
def refused(capsys, monkeypatch):
    """A function that runs a program on bad input and returns its one sentence; no split file may come of it."""
    def refuse(collection, *options, **changed):
        module = prepare_flickr25k if isinstance(collection, Flickr) else prepare_nuswide
        code, printed = call(monkeypatch, capsys, module, *collection.arguments(*options, **changed))
        assert code == 2
        assert not collection.splits.exists()
        assert not hidden_files(collection.root)
        error = printed.splitlines()[-1]
        assert error.startswith("error: ")
        assert "Traceback" not in printed
        return error
    return refuse


def hidden_files(root):
    """What a preparation has not finished; the file of its lock stays."""
    return [path for path in root.glob("*/**/.*") if path.suffix != ".lock"]


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_rows(collection):
    """Every row of every split; returns {split: image numbers}."""
    images = {}
    for split, kind in SPLITS.items():
        expected = list(collection.rows(split))
        assert collection.lines(f"{split}_{kind}.txt") == [row for _, row in expected]
        images[split] = [image for image, _ in expected]
        assert images[split] == sorted(set(images[split]))
        for name in collection.lines(f"{split}_img.txt"):
            assert (collection.link.parent / name).is_file()
    assert not set(images["test"]) & set(images["database"])
    assert set(images["train"]) <= set(images["database"])
    return images


def check_report(collection, printed):
    report = json.loads((collection.splits / "report.json").read_text())
    files = {path.name for path in collection.splits.iterdir()} - {"report.json"}
    assert report["files"].keys() == files
    for name, digest in report["files"].items():
        assert digest == hashlib.sha256((collection.splits / name).read_bytes()).hexdigest()
        assert f"{digest}  {name}" in printed
    return report


def process_tags(collection, name):
    """tag_processing.py on drawn word vectors."""
    words = [line.split()[0] for line in collection.lines("common_tags.txt" if name == "flickr" else "TagList1k.txt")]
    vectors = collection.root / "vectors.txt"
    numbers = np.random.default_rng(0).normal(size=(len(words), 300)).round(3)
    vectors.write_text("".join(f"{word} {' '.join(map(str, row))}\n" for word, row in zip(words, numbers, strict=True)))
    code, printed = run("tag_processing.py", name, vectors, "cpu", "--root", collection.root)
    assert code == 0, printed


def train_two_steps(collection, name):
    code, printed = run("train.py", name, 0.00003, 2, 0.0001, 1, "WSDQH", "t", "cpu", "--root", collection.root,
                        "--batch-size", 4, "--backbone-init", "lsuv")
    assert code == 0, printed
    assert "step [   2]" in printed


# ---------------------------------------------------------------- MIRFLICKR-25K

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
    with only_preparation(flickr.link.parent):
        assert "another preparation is running here" in refused(flickr)


# ---------------------------------------------------------------- downloads

@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.01)
    with serving({"a.zip": bytes(range(256)) * 4000}) as server:
        yield server


def fetched(server, path, **check):
    download.fetch(server.url + "a.zip", path, **{"check": lambda _: None, **check})
    assert path.read_bytes() == server.files["a.zip"]
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_download_goes_on_where_the_server_broke_off(server, tmp_path):
    server.break_after = [300_000, 200_000]
    fetched(server, tmp_path / "a.zip")
    assert [asked for _, asked in server.asked] == [None, "bytes=300000-", "bytes=500000-"]


@pytest.mark.parametrize("have", [1, 500_000, 1_024_000])
def test_a_download_goes_on_with_what_an_earlier_run_left(server, tmp_path, have):
    (tmp_path / "a.zip.part").write_bytes(server.files["a.zip"][:have])
    fetched(server, tmp_path / "a.zip")
    assert server.asked[0][1] == f"bytes={have}-"


def test_a_server_without_ranges_starts_the_file_again(server, tmp_path):
    server.ranges, server.break_after = False, [300_000]
    fetched(server, tmp_path / "a.zip")
    assert [asked for _, asked in server.asked] == [None, "bytes=300000-"]


def test_a_part_longer_than_the_file_starts_again(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(bytes(2_000_000))
    fetched(server, tmp_path / "a.zip")


def test_a_busy_server_is_asked_again_and_one_that_stays_so_is_told(server, tmp_path):
    server.busy = 2
    fetched(server, tmp_path / "a.zip")
    (tmp_path / "a.zip").unlink()
    server.busy = 99
    with pytest.raises(UserError, match=r"a\.zip: the server answered 503 .*; run this again to continue"):
        fetched(server, tmp_path / "a.zip")
    server.busy, server.break_after = 0, [300_000, 0, 0, 0]
    with pytest.raises(UserError, match=r"the server ended after 300,000 of 1,024,000 bytes; run this again"):
        fetched(server, tmp_path / "a.zip")
    fetched(server, tmp_path / "a.zip")
    assert server.asked[-1][1] == "bytes=300000-"


def test_a_file_or_a_server_that_is_not_there(server, tmp_path):
    server.files = {}
    with pytest.raises(UserError, match=r"a\.zip: the server answered 404 Not Found"):
        download.fetch(server.url + "a.zip", tmp_path / "a.zip", check=None)
    with pytest.raises(UserError, match=r"the download failed \(.*refused"):
        download.fetch("http://127.0.0.1:9/a.zip", tmp_path / "a.zip", check=None)


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


# ---------------------------------------------------------------- NUS-WIDE

def test_nuswide_from_its_files_to_a_training(nuswide, request):
    printed = accepted(nuswide)
    images = check_rows(nuswide)
    kept = [i for i in range(23) if i not in nuswide.rare]
    usable = [i for i in range(nuswide.count) if nuswide.labels[i, kept].any() and i not in nuswide.bad]
    assert sorted(images["test"] + images["database"]) == usable
    assert len(images["test"]) == 12
    assert len(images["train"]) == 40
    assert nuswide.tags[images["train"]].any(1).all()
    assert nuswide.lines("TagList1k.txt") == list(nuswide.tag_names)
    assert nuswide.lines("labels.txt") == [nuswide.concepts[i] for i in kept]
    assert nuswide.lines("left_out.txt") == [f"Flickr/{nuswide.names[10]} is missing",
                                             f"Flickr/{nuswide.names[11]} is empty"]
    assert f"left out: 2 of {len(usable) + 2} images cannot be used: {nuswide.names[10]} is missing; " in printed
    report = check_report(nuswide, printed)
    assert report["files"].keys() == LISTS | {"TagList1k.txt", "labels.txt", "left_out.txt"}
    assert report["images"]["left_out"] == 2
    assert report["database_images_of_each_label"]["concept0"] == nuswide.labels[images["database"], 0].sum()
    process_tags(nuswide, "nuswide")
    dataset = find_dataset("nuswide", nuswide.root)
    training_set = load_training(dataset)
    assert (training_set.tags.shape, training_set.untagged) == ((40, 5), 0)
    assert [load_retrieval(dataset, split).labels.shape for split in ("database", "test")] == [(len(usable) - 12, 21),
                                                                                               (12, 21)]
    if request.config.getoption("--slow"):
        train_two_steps(nuswide, "nuswide")


def test_queries_of_each_concept(nuswide, capsys, monkeypatch):
    code, printed = call(monkeypatch, capsys, prepare_nuswide, *nuswide.arguments("--per-concept", "2"))
    assert code == 0, printed
    test = check_rows(nuswide)["test"]
    assert len(test) == 2 * 21
    kept = [i for i in range(23) if i not in nuswide.rare]
    assert (nuswide.labels[np.ix_(test, kept)].sum(0) >= 2).all()
    monkeypatch.setattr(sys, "argv", ["nuswide.py", "ROOT", "--queries", "2100"])
    assert prepare_nuswide.parse_options().per_concept == 100


def test_lists_in_other_places_and_other_line_ends(nuswide, capsys, monkeypatch):
    assert call(monkeypatch, capsys, prepare_nuswide, *nuswide.arguments())[0] == 0
    before = snapshot(nuswide.splits)
    (nuswide.release / "ConceptsList/Concepts81.txt").rename(nuswide.release / "Concepts81.txt")
    (nuswide.release / "NUS_WID_Tags/TagList1k.txt").rename(nuswide.release / "TagList1k.txt")
    (nuswide.release / "Flickr").rename(nuswide.release / "images")
    nuswide.write("NUS_WID_Tags/AllTags1k.txt", "\n".join(" ".join(map(str, row)) for row in nuswide.tags) + "\n \n\n")
    nuswide.link.unlink()
    monkeypatch.setattr(dataset, "BLOCK", 64)  # many blocks, some end inside of a line
    images = nuswide.arguments("--images", str(nuswide.release / "images"))
    code, printed = call(monkeypatch, capsys, prepare_nuswide, *images)
    assert code == 0, printed
    assert "already holds exactly these split files" in printed
    assert snapshot(nuswide.splits) == before


def rewritten(name, change):
    return lambda nuswide: nuswide.write(name, change((nuswide.release / name).read_text()))


BAD_NUSWIDE = {
    "a row less": (rewritten("NUS_WID_Tags/AllTags1k.txt", lambda text: text[text.index("\n") + 1:]),
                   "AllTags1k.txt has 119 rows, but"),
    "a blank row": (rewritten("NUS_WID_Tags/AllTags1k.txt", lambda text: text.replace("\n", "\n\n", 1)),
                    "AllTags1k.txt: row 2 has 0 numbers, expected 5 as "),
    "a short row": (rewritten("NUS_WID_Tags/AllTags1k.txt", lambda text: text[2:]),
                    "AllTags1k.txt: row 1 has 4 numbers, expected 5 as "),
    "a long and a short row": (rewritten("NUS_WID_Tags/AllTags1k.txt", lambda text: "0\t" + text[:-3] + "\n"),
                               "AllTags1k.txt: row 1 has 6 numbers, expected 5 as "),
    "two": (rewritten("NUS_WID_Tags/AllTags1k.txt", lambda text: text.replace("1", "2", 1)),
            "AllTags1k.txt: row 1: expected 0 or 1, found '2'"),
    "glued": (rewritten("NUS_WID_Tags/AllTags1k.txt", lambda text: text.replace("\t", "", 1)),
              "AllTags1k.txt: row 1 has 4 numbers, expected 5 as "),
    "empty": (rewritten("NUS_WID_Tags/AllTags1k.txt", lambda _: ""),
              "AllTags1k.txt: expected a matrix of 0 and 1, found nothing"),
    "a tag less": (rewritten("NUS_WID_Tags/TagList1k.txt", lambda text: text[text.index("\n") + 1:]),
                   "row 1 has 5 numbers, expected 4 as "),
    "a longer label file": (rewritten("Groundtruth/AllLabels/Labels_concept7.txt", lambda text: text + "0\n"),
                            "Labels_concept7.txt has 121 rows, but"),
    "a label file not 0/1": (rewritten("Groundtruth/AllLabels/Labels_concept7.txt", lambda text: "-1" + text[1:]),
                             "Labels_concept7.txt: row 1: expected 0 or 1, found '-1'"),
    "no label file": (lambda n: (n.release / "Groundtruth/AllLabels/Labels_concept7.txt").unlink(),
                      "Labels_concept7.txt: no such file"),
    "no list of images": (lambda n: (n.release / "ImageList/Imagelist.txt").unlink(), "Imagelist.txt: no such file"),
    "a path that climbs": (rewritten("ImageList/Imagelist.txt", lambda text: "..\\" + text),
                           "Imagelist.txt: row 1: expected a path inside the folder of the images, found '../actor"),
    "few concepts": (rewritten("ConceptsList/Concepts81.txt", lambda text: text[:18]),
                     "Concepts81.txt: expected at least 21 concepts, found 2"),
    "no images": (lambda n: [path.unlink() for path in (n.release / "Flickr").rglob("*.jpg")],
                  "can be used: actor/0000_0.jpg is missing"),
    "no folder of images": (lambda n: shutil.rmtree(n.release / "Flickr"), "Flickr: no such folder"),
}


@pytest.mark.parametrize("case", BAD_NUSWIDE)
def test_bad_files_are_one_sentence(nuswide, refused, case):
    spoil, sentence = BAD_NUSWIDE[case]
    spoil(nuswide)
    assert sentence in refused(nuswide)
    assert not nuswide.link.exists()


def test_numbers_too_large_are_one_sentence(nuswide, refused):
    assert "expected at least 10,000 database images with a tag" in refused(nuswide, "--training", "10000")
    assert "to draw 5,000 queries from" in refused(nuswide, "--queries", "5000")
    assert "expected at least 100 images of concept" in refused(nuswide, "--per-concept", "100")


def test_another_link_stays(nuswide, refused):
    nuswide.link.mkdir(parents=True)
    assert f"{nuswide.link} is already there and is not {nuswide.release / 'Flickr'}" in refused(nuswide)


# ---------------------------------------------------------------- pieces

@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (9000, 2)])
def test_matrices_are_written_as_numpy_writes_them(tmp_path, shape):
    dense = (np.random.default_rng(0).random(shape) < 0.4).astype(np.uint8)
    write_matrix(tmp_path / "fast.txt", scipy.sparse.csr_array(dense))
    np.savetxt(tmp_path / "slow.txt", dense, fmt="%d")
    assert (tmp_path / "fast.txt").read_bytes() == (tmp_path / "slow.txt").read_bytes()


@pytest.mark.parametrize("block", [2**25, 7, 64])
def test_digits_are_read_as_numpy_reads_them(tmp_path, monkeypatch, block):
    monkeypatch.setattr(dataset, "BLOCK", block)
    dense = (np.random.default_rng(0).random((50, 7)) < 0.4).astype(np.uint8)
    path = tmp_path / "matrix.txt"
    for line_end in ("\n", "\t\n", " \t\r\n"):
        path.write_text("".join(" ".join(map(str, row)) + line_end for row in dense), newline="")
        read = read_binary_matrix(path)
        assert (read.toarray() == dense).all()
        assert read.dtype == np.uint8
    path.write_bytes(path.read_bytes().rstrip())  # the last line without an end
    assert (read_binary_matrix(path).toarray() == dense).all()
