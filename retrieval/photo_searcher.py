"""An index that is asked by photos, by words, and for a photo's tags. TensorFlow is not loaded in this file."""
import filecmp
import os
import threading
from functools import cached_property
from pathlib import Path

import numpy as np

import dataset
from retrieval.result import DEFAULT_TOPK
from retrieval.searcher import Searcher
from storage.images import decodable_images, image_fault, try_image
from util import UserError

DECODED_AT_ONCE = 2  # photos: decoded, a photo may be large
LISTED_AT_ONCE = 64  # photos of a long list that are embedded before their results are given


class Photos(Searcher):
    """An index and the network that embeds queries.

    Args:
        network: shared_network.SharedNetwork.
    """

    def __init__(self, index, network):
        super().__init__(index)
        self._network = network
        self._facts = index.content.facts
        self._decoding = threading.BoundedSemaphore(DECODED_AT_ONCE)

    def embed(self, photo, name=None):
        """The embedding of a photo, float32 (D,), or those of a list of B photos, float32 (B, D).

        Args:
            photo: a path (str or Path), an image as OpenCV reads it (BGR, uint8 (h, w, 3)), or a list of these.
            name: what a photo is called in messages, if not as its file is.
        Raises UserError for a file that is no sound image, and for anything else.
        """
        for each in photo if isinstance(photo, list) else [photo]:
            check_photo(each)
        if isinstance(photo, list):
            for path in photo:
                if not isinstance(path, np.ndarray) and (fault := image_fault(path)):
                    raise UserError(f"{path} {fault}")
            return self._network.embed(photo)
        with self._decoding:
            image, fault = try_image(photo, self._network.resize)
        if fault:
            raise UserError(f"{name or photo} {fault}")
        return self._network.embed_one(image)

    def by_photo(self, photo, topk=DEFAULT_TOPK, name=None, **options):
        """The photos most like a photo, best first: a list of Result; of a list of photos, a list of such lists.

        Args:
            photo, name: as of `embed`.
            options: as of `Index.search`.
        """
        if isinstance(photo, list):
            return [self._results(embedding, self._labels_of(each), topk, options)
                    for each, embedding in zip(photo, self.embed(photo), strict=True)]
        return self._results(self.embed(photo, name), self._labels_of(photo, name), topk, options)

    def by_photos(self, paths, topk=DEFAULT_TOPK, **options):
        """Give for each of many paths, texts, in turn: the path, and what `by_photo` gives of it, or the UserError that
        says why it cannot be searched for."""
        for start in range(0, len(paths), LISTED_AT_ONCE):
            block = paths[start:start + LISTED_AT_ONCE]
            images, faults = decodable_images(block, self._network.resize)
            rows = iter(self._network.embed(list(images)))
            for row, path in enumerate(block):
                if row in faults:
                    yield path, UserError(f"{path} {faults[row]}")
                else:
                    yield path, self._results(next(rows), self._labels_of(path), topk, options)

    def tags(self, photo):
        """The model's tags for a photo, best first: a list of (cosine, names of the merged tag); of a list of photos,
        a list of such lists."""
        if isinstance(photo, list):
            return [self._tags_of(embedding) for embedding in self.embed(photo)]
        return self._tags_of(self.embed(photo))

    def _tags_of(self, embedding):
        rows, cosines = self.index.tags(embedding)
        return [(float(cosine), self.index.content.tag_names[row]) for row, cosine in zip(rows, cosines, strict=True)]

    @cached_property
    def _labelled(self):
        """Of the data set's queries and database, as far as they are there: paths of photos, and labels (N, L)."""
        splits = []
        try:
            found = dataset.find_dataset(self._facts["dataset"], Path(self._facts["root"]))
            for split in ("test", "database"):
                names, matrix = dataset.read_split(found, split)
                splits.append(([str(found.images / name) for name in names], matrix))
        except UserError:  # the data set is not there any more
            pass
        return splits

    def _labels_of(self, photo, name=None):
        """The labels of a photo of the data set's queries or database, uint8 (L,), or None.

        It is one of theirs if its file name and its content are. `name`: what it is called, if not as the file is.
        """
        if self.index.content.labels is None or isinstance(photo, np.ndarray):
            return None
        name = Path(name or photo).name
        for paths, matrix in self._labelled:
            for row, path in enumerate(paths):
                if path.endswith(f"/{name}") and os.path.isfile(path) and filecmp.cmp(path, photo, shallow=False):
                    return matrix[[row]].toarray()[0]
        return None


def check_photo(photo):
    """Raise UserError for what is neither a path nor an image."""
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
            raise UserError("expected an image as OpenCV reads it, BGR, uint8 of shape (height, width, 3), found "
                            f"{photo.dtype} {photo.shape}")
    elif not isinstance(photo, str | os.PathLike):
        raise UserError(f"expected a photo, which is a path or an array, or a list of photos, found "
                        f"{type(photo).__name__}")
    elif "\0" in str(photo):
        raise UserError(f"expected the path of a photo, found {str(photo)!r:.80}")
