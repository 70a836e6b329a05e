"""A small real index of drawn photos and a service on it without TensorFlow, for tests of the server and the page.

    python tests/support/page_service.py INDEX [--photos 24] [--port 0] [--token TOKEN] [--seconds S] [--access-log]

makes the index if there is none and serves it. The "network" is a fixed random projection of a photo's colours; a tag's
vector is the mean of its photos.
"""
import argparse
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from prepare import demo
from retrieval import index, manifest
from retrieval.searcher import Searcher
from server import app, connections
from server.service import Service
from storage.files import fingerprint
from storage.images import image_fault, read_image
from util import UserError, run_program, stream

PHOTOS = 24  # of an index
CELLS = 6  # of a photo's colours, across and down


def photo_folder(folder):
    """The folder of an index's photos, next to the index, whose own folder may hold nothing else."""
    return folder.with_name(f"{folder.name}-photos")


def embed(photo):
    """A photo, BGR, uint8 (h, w, 3), as a float32 (300,)."""
    colours = cv2.resize(photo, (CELLS, CELLS), interpolation=cv2.INTER_AREA).astype(np.float32).ravel() / 128 - 1
    projection = stream(0, "page projection").normal(size=(colours.size, 300)).astype(np.float32)
    return colours @ projection / np.sqrt(colours.size)


class Photos(Searcher):
    """Searches an index as service.Service expects."""

    def __init__(self, folder):
        super().__init__(index.load(folder))

    def embed(self, path, name):
        if fault := image_fault(path):
            raise UserError(f"{name} {fault}")
        if name == "slow":
            time.sleep(0.5)
        return embed(read_image(path))

    def by_photo(self, path, topk, probes, name):
        return self._results(self.embed(path, name), None, topk, probes)


def open_service(folder):
    """The Service of the index as it is now."""
    source = fingerprint(folder / manifest.MANIFEST)
    return Service(Photos(folder), 32, source)


def make_index(folder, photos=PHOTOS, seed=0):
    """Draw photos into `photo_folder(folder)` and write an index of them into `folder`."""
    photo_folder(folder).mkdir(parents=True, exist_ok=True)
    names, tags, embeddings = [], [], []
    for i in range(photos):
        photo, words, _ = demo.make_photo(seed, i)
        names.append(f"{i:05d} {'-'.join(words[:2])}.jpg")
        cv2.imwrite(str(photo_folder(folder) / names[-1]), photo)
        tags.append(words)
        embeddings.append(embed(cv2.resize(photo, (256, 256))))
    embeddings = np.array(embeddings, np.float32)
    counts = {tag: sum(tag in words for words in tags) for tag in sorted({tag for words in tags for tag in words})}
    known = sorted((tag for tag in counts if counts[tag] > 1), key=lambda tag: -counts[tag])
    rng = stream(seed, "page index")
    first = embeddings[rng.integers(0, photos, 256)]
    rows = np.argmin(np.square(embeddings[:, None] - first).sum(2), 1)
    rest = embeddings - first[rows]
    second = rest[rng.integers(0, photos, 256)]
    codes = np.stack([rows, np.argmin(np.square(rest[:, None] - second).sum(2), 1)], 1).astype(np.uint8)
    vectors = [embeddings[[tag in words for words in tags]].mean(0) - embeddings.mean(0) for tag in known]
    return index.save(folder, index.Content(
        codes=codes, codebooks=np.stack([first, second]).astype(np.float32), images=names,
        tag_names=[[tag] for tag in known],
        tag_embeddings=np.array(vectors, np.float32), labels=None, label_names=[],
        facts={"seed": seed, "images": str(photo_folder(folder).resolve())}))


def photo_file(folder, row=0):
    """The bytes of a photo of an index."""
    return index.load(folder).image_path(row).read_bytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, metavar="INDEX")
    parser.add_argument("--photos", type=int, default=PHOTOS)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token")
    parser.add_argument("--seconds", type=float, help="for head and body of a request to arrive, for requests in "
                                                      "progress when the server stops, and until a new index is opened")
    parser.add_argument("--access-log", action="store_true")
    options = parser.parse_args()
    if options.seconds:
        connections.BODY_SECONDS = connections.HEAD_SECONDS = connections.STOP_SECONDS = options.seconds
        app.RENEW_SECONDS = options.seconds / 2
    listener = connections.listen("127.0.0.1", options.port)
    if not index.has_index(options.folder):
        make_index(options.folder, options.photos)
    made = app.WebApp(partial(open_service, options.folder), token=options.token)
    print(f"serving at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    connections.WebServer(made, listener, options.access_log).run()


if __name__ == "__main__":
    run_program(main)
