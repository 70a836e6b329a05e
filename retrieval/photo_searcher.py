"""An index that is asked by photos, by words, and for a photo's tags. It loads TensorFlow."""
import filecmp
import os
import threading
from functools import cached_property
from pathlib import Path

import dataset
import net_val
from image_files import image_fault
from retrieval.checkpoints import check_checkpoint
from retrieval.result import DEFAULT_TOPK
from retrieval.searcher import Searcher, load_index
from session import device_name
from util import UserError, note


def open_index(folder, checkpoint=None, gpu=None, images=None):
    """The photos of an index, ready to be searched: see `search.open_index`."""
    loaded = load_index(folder, images)
    return Photos(loaded, Path(checkpoint or loaded.content.facts["checkpoint"]), gpu)


class Photos(Searcher):
    """An index and the network that embeds queries, which is read when the first photo is asked for."""

    def __init__(self, index, checkpoint, gpu):
        super().__init__(index)
        self._facts = index.content.facts
        self._checkpoint = checkpoint
        self._gpu = gpu
        self._one_photo = threading.Lock()

    @cached_property
    def _encoder(self):
        check_checkpoint(self.index.folder, self._facts, self._checkpoint)
        weights, _ = net_val.read_checkpoint(self._checkpoint)
        return net_val.Encoder(weights, self._facts["crops"], device_name(self._gpu, note))

    def embed(self, photo, name=None):
        """The embedding of a photo, float32 (D,). Raises UserError for a file that is no sound image.

        `name`: what the photo is called, if not as the file is.
        """
        with self._one_photo:  # at a time: decoded, it may be large
            if fault := image_fault(photo):
                raise UserError(f"{name or photo} {fault}")
            return self._encoder.embed([photo])[0]

    def by_photo(self, photo, topk=DEFAULT_TOPK, name=None, **options):
        """The photos most like a photo, best first: a list of Result. `options`: as of `Index.search`."""
        return self._results(self.embed(photo, name), self._labels_of(photo, Path(name or photo).name), topk, options)

    def tags(self, photo):
        """The model's tags for a photo, best first: a list of (cosine, names of the merged tag)."""
        rows, cosines = self.index.tags(self.embed(photo))
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

    def _labels_of(self, photo, name):
        """The labels of a photo of the data set's queries or database, uint8 (L,), or None.

        It is one of theirs if `name`, its file name, and its content are.
        """
        if self.index.content.labels is None:
            return None
        for paths, matrix in self._labelled:
            for row, path in enumerate(paths):
                if path.endswith(f"/{name}") and os.path.isfile(path) and filecmp.cmp(path, photo, shallow=False):
                    return matrix[[row]].toarray()[0]
        return None
