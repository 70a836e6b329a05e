"""A folder of photos and a CSV file as a person has them."""
import os

import cv2
import numpy as np

from dataset import read_lines
from prepare import photos
from tiny import call_apart

HEADER = "image,tags,labels,split\n"
# `Sea` and `sea` are one tag, `b/../` is not a folder of its own, dog is not a training tag, quoting is CSV's
PHOTOS = HEADER + """a.jpg,Sea sky sea,water,database
b/../b.jpg,"sky  sunset 2007",water air,database
c/d e.png,,,database
q.jpg,dog,air,query
"""


class Desk:
    """A root folder of its own, photos to import, and the program; in this process, which spares its start."""

    def __init__(self, folder, monkeypatch, capsys):
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.root, self.images, self.csv = folder / "root", folder / "photos", folder / "photos.csv"
        self.root.mkdir()
        for name in ("a.jpg", "b.jpg", "c/d e.png", "q.jpg"):
            self.draw(name)

    def draw(self, name):
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(name)).integers(0, 256, (24, 32, 3), np.uint8)
        assert cv2.imwrite(str(path), noise)
        return path

    def run(self, text, *options, name="mine"):
        if text is not None:
            self.csv.write_bytes(text if isinstance(text, bytes) else text.encode())
        return call_apart(self.monkeypatch, self.capsys, photos, name, self.csv, "--images", self.images,
                          "--root", self.root, *options)

    def accepted(self, text, *options, name="mine"):
        code, printed, errors = self.run(text, *options, name=name)
        assert (code, errors) == (0, "")
        assert not list((self.root / "data").glob(".*"))
        return printed

    def refused(self, text, *options, name="mine"):
        """The error, one line; nothing under the root has been added, changed or taken away."""
        before = snapshot(self.root)
        code, _, errors = self.run(text, *options, name=name)
        assert code == 2
        assert "Traceback" not in errors
        assert snapshot(self.root) == before
        error = errors.splitlines()[-1]
        assert "error: " in error
        return error

    def lines(self, file, name="mine"):
        return read_lines(self.root / "data" / name / file)

    def files(self, name="mine"):
        return {path.name for path in (self.root / "data" / name).iterdir()}


def snapshot(folder):
    def content(path):
        return os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return {path: content(path) for path in folder.rglob("*")}
