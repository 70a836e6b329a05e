"""An index that is asked by words. It needs no network, so TensorFlow is not loaded; photos: see photo_searcher.py."""
import numpy as np

from retrieval import faiss_index, index
from retrieval.result import DEFAULT_TOPK, Result
from util import UserError, note, one_line


def load_index(folder, images=None, private=False):
    """The index that `search.py build` wrote into `folder`. Raises UserError.

    `images`: where the indexed photos are now, if they were moved; private: as of `index.load`.
    """
    loaded = index.load(folder, private)
    if faiss_index.faiss is None:
        note("FAISS is not installed, so NumPy searches, slower (pip install -r requirements-search.txt)")
    if "crops" not in loaded.content.facts:
        raise UserError(f"{folder} is an index of another program: {loaded.content.facts.get('made_by')}")
    if images is not None:
        loaded.content.facts["images"] = str(images)
    return loaded


class Searcher:
    """An index and what is asked of it.

    Attributes:
        index: index.Index.
    """

    def __init__(self, index):
        self.index = index

    def by_words(self, words, topk=DEFAULT_TOPK, **options):
        """The photos that one or more words describe best, best first: a list of Result.

        `options`: as of `Index.search`.
        """
        if not isinstance(words, str):
            raise UserError(f"expected a text of one or more words, found {type(words).__name__}")
        query = self.index.words(words)
        names = {name: column for column, name in enumerate(self.index.content.label_names)}
        labels = np.zeros(len(names), np.uint8)
        for word in words.split():
            column = names.get(word, names.get(word.lower()))  # as tags are found
            if column is not None:
                labels[column] = 1
        return self._results(query, labels if labels.any() else None, topk, options)

    def _results(self, query, labels, topk, options):
        """The best photos of a query, float32 (D,), whose labels, uint8 (L,), may be known."""
        for name, value in {"topk": topk, **options}.items():
            check_count(name, value)
        scores, rows = (found[0] for found in self.index.search(query[None], topk, **options))
        rows = rows[rows >= 0]  # the lists that were looked into may hold too few
        cosines = self.index.cosines(query, rows)
        known = labels is not None and self.index.content.labels is not None
        return [Result(rank, int(row), float(score), float(cosine), str(self.index.image_path(row)),
                       bool((self.index.content.labels[row] & labels).any()) if known else None)
                for rank, (row, score, cosine) in enumerate(zip(rows, scores, cosines, strict=False), 1)]


def check_count(name, value):
    """Raise UserError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UserError(f"{name}: expected a whole number of at least 1, found {one_line(value)}")
