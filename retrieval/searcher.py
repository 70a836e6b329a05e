"""Searching an index by words and by photos, and the tags of a photo."""
import os
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from models.checkpoint import embedder_of, read_checkpoint
from quantization.neighbourhoods import averages
from retrieval import faiss_index, index
from retrieval.index import DEFAULT_PROBES
from storage.files import fingerprint
from storage.images import decodable_images, image_fault, try_image
from util import DIMENSIONS, ROOT, UserError, first_few, note, one_line

INDEXES = "indexes"  # folder of a project with its indexes
DEFAULT_TOPK = 20
DECODED_AT_ONCE = 2  # photos, since a decoded photo may be large
LISTED_AT_ONCE = 64  # photos of a long list that are embedded before their results are given


@dataclass(frozen=True)
class Result:
    """A photo that was found.

    rank: from 1 on; row: in the index; score: q · its reconstruction, by which results are ranked; cosine: of the query
    and the reconstruction, −1 to 1; path; hit: whether it shares a label with the query, None where that is not known.
    """
    rank: int
    row: int
    score: float
    cosine: float
    path: str
    hit: bool | None


# ---------------------------------------------------------------- names of indexes

def find_index(name, root=ROOT):
    """The folder of an index, given by its path or by the beginning of its name in `root`/indexes.

    A path that holds an index comes first, then the index of this name, then the only one whose name begins with
    `name`, where names in which `_` follows come before others. Raises UserError if several fit equally, or none.
    """
    path = Path(name)
    if index.has_index(path):
        return path
    known = sorted(folder.name for folder in (Path(root) / INDEXES).glob("[!.]*") if index.has_index(folder))
    fitting = [other for other in known if other.startswith(str(name))]
    for meant in ([other for other in fitting if other == str(name)],
                  [other for other in fitting if other.startswith(f"{name}_")], fitting):
        if len(meant) == 1:
            return Path(root) / INDEXES / meant[0]
        if meant:
            raise UserError(f"{name} may be one of {len(meant)} indexes: {first_few(meant)}")
    raise UserError(f"{name}: expected an index, or how the name of one begins, found neither; "
                    f"{Path(root) / INDEXES} has {first_few(known) or 'none yet'}; `python search.py build` makes one")


def named_folder(name, root):
    """The folder of the index that is to have this name. Raises UserError for a name that no folder can have."""
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"--name: expected a name without slashes that does not begin with a dot, found {name!r}")
    return Path(root) / INDEXES / name


# ---------------------------------------------------------------- opening

def load_index(folder, images=None, private=False):
    """The index that `search.py build` wrote into `folder`. Raises UserError.

    Args:
        images: where the indexed photos are now, if they were moved.
        private: see `index.load`.
    """
    loaded = index.load(folder, private)
    if faiss_index.faiss is None:
        note("FAISS is not installed, so NumPy searches, slower (pip install -e '.[search]')")
    if "crops" not in loaded.content.facts:
        raise UserError(f"{folder} is an index of another program: {loaded.content.facts.get('made_by')}")
    if images is not None:
        loaded.content.facts["images"] = str(images)
    return loaded


def check_checkpoint(folder, facts, checkpoint):
    """The SHA-256 of a checkpoint. Raises UserError if it is missing, or if the index in `folder` was made with another
    one."""
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such file, but {folder} was made with it; if it was moved, name it by "
                        "--checkpoint")
    sha256 = fingerprint(checkpoint)
    if sha256 != facts["checkpoint_sha256"]:
        raise UserError(f"{folder} is an index of another checkpoint ({facts['experiment']}), not of {checkpoint}")
    return sha256


class QueryEmbedder:
    """Embeds the photos of queries as the photos of an index were embedded; safe for several threads.

    The checkpoint is loaded when the first photo comes. Like a code, a query represents a photo together with the
    training photos near it.

    Args:
        folder, facts: of the index.
        checkpoint: where the checkpoint is now, if it was moved.
        gpu: number of the GPU, or None for the CPU.
    """

    def __init__(self, folder, facts, checkpoint=None, gpu=None):
        self._folder, self._facts, self._gpu = folder, facts, gpu
        self._checkpoint = Path(checkpoint or facts["checkpoint"])
        self._loading = threading.Lock()

    @cached_property
    def _loaded(self):
        trained = read_checkpoint(self._checkpoint, check_checkpoint(self._folder, self._facts, self._checkpoint))
        return embedder_of(self._checkpoint, trained, self._facts["crops"], self._gpu), trained.neighbours

    def _load(self):
        with self._loading:
            return self._loaded

    def resize(self, image):
        """A decoded image, BGR, uint8 (h, w, 3), as the network takes it. Raises UserError."""
        return self._load()[0].resize(image)

    def embed(self, photos):
        """Embeddings of B photos, paths or images, float32 (B, D). Raises UserError."""
        if not photos:
            return np.empty((0, DIMENSIONS), np.float32)
        embedder, neighbours = self._load()
        return averages(embedder.embed(photos), neighbours)


# ---------------------------------------------------------------- searching

class Searcher:
    """An index, index.Index, that is searched by words."""

    def __init__(self, index):
        self.index = index

    def by_words(self, words, topk=DEFAULT_TOPK, probes=None):
        """The photos that one or more words describe best, best first: a list of Result.

        `probes`: inverted lists to search, if there are any; None for DEFAULT_PROBES.
        """
        if not isinstance(words, str):
            raise UserError(f"expected a text of one or more words, found {type(words).__name__}")
        query = self.index.words(words)
        names = {name: column for column, name in enumerate(self.index.content.label_names)}
        labels = np.zeros(len(names), np.uint8)
        for word in words.split():
            column = names.get(word, names.get(word.lower()))  # the rule by which tags are found
            if column is not None:
                labels[column] = 1
        return self._results(query, labels if labels.any() else None, topk, probes)

    def _results(self, query, labels, topk, probes):
        """The best photos of a query, float32 (D,), a list of Result. `labels`: its labels, uint8 (L,), or None."""
        probes = DEFAULT_PROBES if probes is None else probes
        check_count("topk", topk)
        check_count("probes", probes)
        scores, rows = (found[0] for found in self.index.search(query[None], topk, probes))
        rows = rows[rows >= 0]  # the lists that were searched may hold too few
        cosines = self.index.cosines(query, rows)
        known = labels is not None and self.index.content.labels is not None
        return [Result(rank, int(row), float(score), float(cosine), str(self.index.image_path(row)),
                       bool((self.index.content.labels[row] & labels).any()) if known else None)
                for rank, (row, score, cosine) in enumerate(zip(rows, scores, cosines, strict=False), 1)]


def check_count(name, value):
    """Raise UserError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UserError(f"{name}: expected a whole number of at least 1, found {one_line(value)}")


class Photos(Searcher):
    """An index that is searched by words and by photos.

    Args:
        embedder: QueryEmbedder.
        known_labels: labels.KnownLabels of an index with labels, otherwise None.
    """

    def __init__(self, index, embedder, known_labels=None):
        super().__init__(index)
        self._embedder, self._known_labels = embedder, known_labels
        self._decoding = threading.BoundedSemaphore(DECODED_AT_ONCE)

    def embed(self, photo, name=None):
        """The embedding of a photo, float32 (D,), or those of a list of B photos, float32 (B, D).

        Args:
            photo: a path (str or Path), an image as OpenCV reads it (BGR, uint8 (h, w, 3)), or a list of these.
            name: what messages call the photo, if not by its path.
        Raises UserError for a file that is no sound image, and for anything else.
        """
        for each in photo if isinstance(photo, list) else [photo]:
            check_photo(each)
        if isinstance(photo, list):
            for path in photo:
                if not isinstance(path, np.ndarray) and (fault := image_fault(path)):
                    raise UserError(f"{path} {fault}")
            return self._embedder.embed(photo)
        with self._decoding:
            image, fault = try_image(photo, self._embedder.resize)
        if fault:
            raise UserError(f"{name or photo} {fault}")
        return self._embedder.embed([image])[0]

    def by_photo(self, photo, topk=DEFAULT_TOPK, probes=None, name=None):
        """The photos most like a photo, best first: a list of Result; for a list of photos, a list of such lists.

        Args:
            photo, name: see `embed`.
            probes: see `by_words`.
        """
        if isinstance(photo, list):
            return [self._results(embedding, self._labels_of(each), topk, probes)
                    for each, embedding in zip(photo, self.embed(photo), strict=True)]
        return self._results(self.embed(photo, name), self._labels_of(photo, name), topk, probes)

    def by_photos(self, paths, topk=DEFAULT_TOPK, probes=None):
        """Yield for each of many paths, texts, the path and what `by_photo` returns for it, or the UserError that says
        why it cannot be searched for."""
        for start in range(0, len(paths), LISTED_AT_ONCE):
            block = paths[start:start + LISTED_AT_ONCE]
            images, faults = decodable_images(block, self._embedder.resize)
            rows = iter(self._embedder.embed(list(images)))
            for row, path in enumerate(block):
                if row in faults:
                    yield path, UserError(f"{path} {faults[row]}")
                else:
                    yield path, self._results(next(rows), self._labels_of(path), topk, probes)

    def tags(self, photo):
        """The model's tags for a photo, best first: a list of (cosine, names of the merged tag); for a list of photos,
        a list of such lists."""
        if isinstance(photo, list):
            return [self._tags_of(embedding) for embedding in self.embed(photo)]
        return self._tags_of(self.embed(photo))

    def _tags_of(self, embedding):
        rows, cosines = self.index.tags(embedding)
        return [(float(cosine), self.index.content.tag_names[row]) for row, cosine in zip(rows, cosines, strict=True)]

    def _labels_of(self, photo, name=None):
        """The labels of a photo, uint8 (L,), or None if they are not known."""
        if self._known_labels is None or isinstance(photo, np.ndarray):
            return None
        return self._known_labels.of(photo, name)


def check_photo(photo):
    """Raise UserError unless `photo` is a path or an image."""
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
            raise UserError("expected an image as OpenCV reads it, BGR, uint8 of shape (height, width, 3), found "
                            f"{photo.dtype} {photo.shape}")
    elif not isinstance(photo, str | os.PathLike):
        raise UserError(f"expected a photo, which is a path or an array, or a list of photos, found "
                        f"{type(photo).__name__}")
    elif "\0" in str(photo):
        raise UserError(f"expected the path of a photo, found {str(photo)!r:.80}")
