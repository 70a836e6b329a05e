"""A project whose photos are encoded into shards."""
import os
import shutil
from pathlib import Path

from tiny import EXPERIMENT, TRAINING, export_encoder, make_tiny, train_in_fixture


def make_root(folder):
    """The tiny data set, a complete checkpoint, and in photos/ 13 sound photos among 7 bad ones."""
    root = make_tiny(folder)
    train_in_fixture(root, iterations=0)
    export_encoder(root / "checkpoints" / f"{EXPERIMENT}.npy")
    photos, sound = root / "photos", root / "datasets/tiny"
    (photos / "sub").mkdir(parents=True)
    for number in range(TRAINING + 3):
        shutil.copy(sound / f"{number}.jpg", photos / ("sub" if number % 2 else "") / f"{number:02} é.jpg")
    whole = (sound / "0.jpg").read_bytes()
    (photos / "00 half.jpg").write_bytes(whole[:len(whole) // 2])
    (photos / "03 text.jpg").write_text("no photo")
    (photos / "07 hollow.png").write_bytes(hollow_png())
    (photos / "10 gone.jpg").symlink_to("nowhere.jpg")
    (photos / "11 empty.jpg").write_text("")
    Path(os.fsdecode(os.fsencode(photos) + b"/12 \xff.jpg")).write_bytes(whole)
    (photos / "13 two\nlines.jpg").write_bytes(whole)
    return root


def hollow_png():
    """A PNG whose chunks lead from one to the next as they should, with nothing in them that could be decoded."""
    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + b"\0\0\0\0"
    header = (8).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"nothing") + chunk(b"IEND", b"")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
