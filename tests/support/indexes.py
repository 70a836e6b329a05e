"""An index's content, drawn, that tests write and ask."""
import shutil
from pathlib import Path

import numpy as np

from retrieval import index, manifest, shards
from storage.files import fingerprint
from util import stream, unit_length

N, D, T = 700, 300, 12


def make_content(codebooks=2, images=N, seed=0):
    rng = stream(seed, "index test")
    return index.Content(
        codes=rng.integers(0, 256, (images, codebooks), dtype=np.uint8),
        codebooks=rng.normal(size=(codebooks, 256, D)).astype(np.float32),
        images=[f"some folder/{i}.jpg" for i in range(images)],
        tag_names=[[f"tag{i}", f"tags{i}"] for i in range(T)],
        tag_embeddings=rng.normal(size=(T, D)).astype(np.float32),
        labels=rng.integers(0, 2, (images, 3), dtype=np.uint8), label_names=["a", "b", "c"],
        facts={"seed": seed, "images": "/photos", "vectors": {"path": "/none.txt", "bytes": 9}},
        fingerprints=rng.integers(0, 2**40, (images, 7)),
        embeddings=unit_length(rng.normal(size=(images, D))).astype(np.float16),
        vocabulary=np.sort(rng.integers(0, 2**60, (2, 9), dtype=np.uint64)))


# ---------------------------------------------------------------- indexes on disk, to be served

TIED = 3000  # photos
TIED_NAME = "{} é\udcff.jpg"  # of a photo; not UTF-8


def make_tied(tmp_path_factory):
    """{kind: an index}, flat and with lists; about ten photos share each code, so that many scores tie."""
    content = make_content(images=TIED)
    content.codes = content.codes[stream(0, "ties").integers(0, TIED // 10, TIED)]
    content.images = [TIED_NAME.format(row) for row in range(TIED)]
    content.labels, content.label_names = None, []
    content.facts |= {"crops": 1, "checkpoint": "gone.npy", "checkpoint_sha256": "none", "experiment": "none",
                      "root": "/", "dataset": None}
    made = {kind: tmp_path_factory.mktemp(kind) for kind in ("flat", "lists")}
    index.save(made["flat"], content)
    index.save(made["lists"], content, inverted_lists=16)
    return made


def tied_queries(count, seed=1):
    return stream(seed, "serve queries").normal(size=(count, D)).astype(np.float32)


def cut_in_two(folder):
    """The paths of the two shards of an index."""
    parts = shards.cut(index.load(folder), 2, fingerprint(folder / manifest.MANIFEST))
    return [Path(part.path) for part in parts]


def copy_uncut(folder, copy):
    """Copy an index without the shards that an earlier test cut."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("shards-*", ".shards*"))
