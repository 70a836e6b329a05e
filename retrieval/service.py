"""What a server answers, and from what: an index in shards that are searched at once. It loads TensorFlow."""
import base64
import json
import tempfile
from dataclasses import asdict

import numpy as np

from retrieval import faiss_engine, manifest, shards
from retrieval.photo_searcher import open_index
from retrieval.result import DEFAULT_TOPK
from storage.safe_files import fingerprint
from util import UserError, one_line

MOST_RESULTS = 10**6  # of a request's queries together
MOST_LETTERS = 1000  # of a query in words
NAMES = {str: "text", bool: "true or false", type(None): "null", list: "lists", dict: "objects"}  # of JSON
LARGEST = 1e9  # absolute value in a query, so that no score overflows


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
        words = settings.get("words")
        if not isinstance(words, str) or len(words) > MOST_LETTERS:
            raise UserError(f"words: expected a text of at most {MOST_LETTERS} letters, found {one_line(words)}")
        return as_answer(self.photos.by_words(words, **self._options(settings, MOST_RESULTS)))

    def photo(self, settings, body):
        settings = {key: int(value) if value.isdecimal() and len(value) < 10 else value
                    for key, value in settings.items()}
        options = self._options(settings, MOST_RESULTS)
        with tempfile.NamedTemporaryFile() as file:
            file.write(body)
            file.flush()
            return as_answer(self.photos.by_photo(file.name, name=str(settings.get("name", "the photo")), **options))

    def _options(self, settings, most):
        """Options of `Index.search`, for at most so many results a query."""
        return {"topk": whole_number(settings, "topk", DEFAULT_TOPK, most),
                "probes": whole_number(settings, "nprobe", self._probes, 10**9)}


def as_answer(results):
    return {"results": [asdict(result) for result in results]}


def whole_number(settings, name, default, most):
    """A setting from 1 to `most`; of one that is not there the default."""
    value = settings.get(name)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= most:
        raise UserError(f"{name}: expected a whole number from 1 to {most:,}, found {one_line(value)}")
    return value


def read_object(body):
    """The dict that a body of JSON holds."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"expected JSON, found something else ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"expected a JSON object, found {type(content).__name__}")
    return content


def read_vectors(given, length):
    """Queries, float32 (Q, length), from lists of numbers or from base64 of their bytes."""
    if isinstance(given, list):
        kinds = {kind for row in given if isinstance(row, list) for kind in set(map(type, row))}
        if others := kinds - {int, float}:
            raise UserError(f"vectors: expected rows of {length} numbers, found {NAMES[min(others, key=str)]} among "
                            "them")
    try:
        with np.errstate(over="ignore"):  # refused below
            if isinstance(given, str):
                vectors = np.frombuffer(base64.b64decode(given, validate=True), "<f4").reshape(-1, length)
            else:
                vectors = np.array(given, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"vectors: expected rows of {length} numbers ({one_line(error)})") from None
    if vectors.ndim != 2 or vectors.shape[1] != length or not len(vectors):
        raise UserError(f"vectors: expected rows of {length} numbers, found an array of shape {vectors.shape}")
    if not (np.abs(vectors) <= LARGEST).all():
        raise UserError(f"vectors: expected numbers from {-LARGEST:g} to {LARGEST:g}, found NaN or others")
    return vectors
