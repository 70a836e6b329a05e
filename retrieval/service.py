"""What a server answers, and from what: an index in shards that are searched at once. It loads TensorFlow."""
import tempfile

from retrieval import faiss_engine, manifest, shards
from retrieval.photo_searcher import open_index
from retrieval.questions import (
    MOST_RESULTS,
    as_answer,
    as_numbers,
    read_object,
    read_vectors,
    read_words,
    whole_number,
)
from retrieval.result import DEFAULT_TOPK
from storage.safe_files import fingerprint
from util import UserError


def open_service(folder, count, probes, checkpoint=None, gpu=None, connect=None):
    """The Service of an index, cut into `count` shards. Raises UserError, also where FAISS is not installed.

    Args:
        probes (int): lists to look into, unless a query says so itself.
        checkpoint, gpu: as of `search.open_index`.
        connect: as `ray_shards.connect`, of the number of shards; or None for shards in this process.
    """
    if faiss_engine.faiss is None:
        raise UserError("serving needs FAISS: pip install -r requirements-search.txt")
    manifest.read(folder)
    open_shards = shards.Threads if connect is None else connect(count)
    source = fingerprint(folder / manifest.MANIFEST)
    photos = open_index(folder, checkpoint, gpu)
    photos.index = shards.Sharded(photos.index, open_shards(shards.cut(photos.index, count, source)))
    return Service(photos, probes)


class Service:
    """What is answered: each method takes the settings of a request, a dict, and its body, bytes.

    Raises UserError for what cannot be answered.
    """

    def __init__(self, photos, probes):
        self.photos = photos
        self._probes = probes

    def health(self, _settings, _body):
        index = self.photos.index
        return {"photos": len(index), "shards": len(index.processes), "lists": index.content.facts["lists"],
                "processes": [known[-1] for known in index.processes]}

    def search(self, _settings, body):
        settings, index = read_object(body), self.photos.index
        vectors = read_vectors(settings.get("vectors"), index.content.query_length)
        options = self._options(settings, MOST_RESULTS // len(vectors))
        answers = [(scores[rows >= 0], rows[rows >= 0])  # the lists that were looked into may hold too few
                   for scores, rows in zip(*index.search(vectors, **options), strict=True)]
        return {"scores": [scores.tolist() for scores, _ in answers],
                "rows": [rows.tolist() for _, rows in answers],
                "paths": [[str(index.image_path(row)) for row in rows] for _, rows in answers]}

    def words(self, _settings, body):
        settings = read_object(body)
        words = read_words(settings.get("words"))
        return as_answer(self.photos.by_words(words, **self._options(settings, MOST_RESULTS)))

    def photo(self, settings, body):
        settings = as_numbers(settings)
        options = self._options(settings, MOST_RESULTS)
        with tempfile.NamedTemporaryFile() as file:
            file.write(body)
            file.flush()
            return as_answer(self.photos.by_photo(file.name, name=str(settings.get("name", "the photo")), **options))

    def _options(self, settings, most):
        """Options of `Index.search`, for at most so many results a query."""
        return {"topk": whole_number(settings, "topk", DEFAULT_TOPK, most),
                "probes": whole_number(settings, "nprobe", self._probes, 10**9)}
