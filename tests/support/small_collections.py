"""Small MIRFLICKR-25K and NUS-WIDE in exactly the official formats, and checks of what is prepared from them."""
import hashlib
import json
import re
import zipfile

import cv2
import numpy as np

from prepare.flickr25k import LABELS
from tiny import run

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
        self.tags, self.labels = {}, {label: [] for label in LABELS}
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
            labels = [str(int(image in self.labels[label])) for label in LABELS]
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


def accepted(collection, *options, **changed):
    code, printed = run(*collection.command(*options, **changed))
    assert code == 0, printed
    assert not hidden_files(collection.root)  # nothing half-written
    return printed


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
