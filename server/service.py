"""What is asked and answered, from an index and the network that embeds photos. This file knows no HTTP.

Letters: D = 300 numbers of an embedding, Q queries.
"""
import base64
import time
from dataclasses import asdict

import numpy as np

from retrieval import manifest
from retrieval.searcher import DEFAULT_TOPK
from storage.files import fingerprint, json_object
from tags.spelling import fold
from util import UserError, one_line, unit_length

MOST_VECTORS = 4096  # of a request
MOST_RESULTS = 10**5  # of a request's queries together
MOST_SHOWN = 5000  # results of a query that the page may scroll to
MOST_MARKED = 1000  # photos that are marked as right or wrong
MOST_LETTERS = 1000  # of a query in words
LARGEST = 1e9  # absolute value in a query, so that no score overflows
TAGS_SHOWN = 12  # of a photo
ROCCHIO = (1, 0.75, 0.15)  # α, β, γ: weights of the query, of photos marked as right, and of those marked as wrong
NAMES = {str: "text", bool: "true or false", type(None): "null", list: "lists", dict: "objects"}  # of JSON


class UnknownWord(UserError):
    """A word that the index does not know."""


class Service:
    """Answers requests with plain containers for JSON. Raises UserError for requests that cannot be answered.

    Args:
        photos: searcher.Photos.
        probes (int): inverted lists to search, unless a query has its own number.
        source: SHA-256 of the index's manifest, taken before the index was read.
    """

    def __init__(self, photos, probes, source):
        self.photos = photos
        self.index = photos.index
        self._probes = probes
        self._source = source

    def is_outdated(self):
        """Whether the index was rewritten since it was opened."""
        return fingerprint(self.index.folder / manifest.MANIFEST) != self._source

    # ------------------------------------------------------------ for programs

    def health(self):
        """The size of the index, bits a photo, and the shards and their processes: {name: number or list}."""
        processes = getattr(self.index, "processes", [])
        return {"photos": len(self.index), "shards": len(processes), "lists": self.index.content.facts["lists"],
                "processes": [known[-1] for known in processes], "bits": self._bits(),
                "tags": len(self.index.content.tag_names), "no_words": self.index.no_words()}

    def search(self, body):
        """Scores, rows and paths for each of many vectors."""
        length = self.index.content.query_length
        settings = self._read_settings(body)
        vectors = read_vectors(settings.get("vectors"), length)
        topk, probes = self._options(settings, MOST_RESULTS // len(vectors))
        answers = [(scores[rows >= 0], rows[rows >= 0])  # rows are -1 if the inverted lists hold fewer photos
                   for scores, rows in zip(*self.index.search(vectors, topk, probes), strict=True)]
        return {"scores": [scores.tolist() for scores, _ in answers],
                "rows": [rows.tolist() for _, rows in answers],
                "paths": [[str(self.index.image_path(row)) for row in rows] for _, rows in answers]}

    def words(self, body):
        """The photos that words describe best."""
        settings = self._read_settings(body)
        topk, probes = self._options(settings, MOST_RESULTS)
        return _as_answer(self.photos.by_words(read_words(settings.get("words")), topk, probes))

    def photo(self, path, settings):
        """The photos most like the one in the file `path`. `settings`: topk, nprobe and name as texts."""
        topk, probes = self._options(as_numbers(settings), MOST_RESULTS)
        return _as_answer(self.photos.by_photo(path, topk, probes, photo_name(settings)))

    def tags(self, path, settings):
        """The model's tags for the photo in the file `path`."""
        topk = whole_number(as_numbers(settings), "topk", TAGS_SHOWN, MOST_SHOWN)
        return {"tags": self._tags(self.photos.embed(path, photo_name(settings)), topk)}

    # ------------------------------------------------------------ for the page

    def embedding(self, path, settings):
        """The direction of a photo's embedding, which the page keeps in its address, and the photo's tags."""
        direction = unit_length(self.photos.embed(path, photo_name(settings)))
        return {"photo": base64.b64encode(direction.astype("<f2").tobytes()).decode(),
                "tags": self._tags(direction, TAGS_SHOWN)}

    def query(self, body):
        """The photos nearest to words, a photo or a row of the index, refined by marks of right and wrong.

        A person may well type an unknown word, so that is not an error: there are no results, but a `sentence`.

        Settings: words (text), photo (as returned by `embedding`), like (row), share (of the photo if there are also
        words, 0 to 1, default ½), right and wrong (rows), skip and topk (results to leave out, and to return).
        """
        started = time.perf_counter()
        settings = self._read_settings(body)
        topk = whole_number(settings, "topk", DEFAULT_TOPK, MOST_SHOWN)
        skip = whole_number(settings, "skip", 0, MOST_SHOWN, least=0)
        try:
            answer = {"results": self._found(self._direction(settings), skip, topk)}
        except UnknownWord as error:
            answer = {"results": [], "sentence": str(error)}
        return {**answer, "photos": len(self.index), "bits": self._bits(),
                "milliseconds": 1000 * (time.perf_counter() - started)}

    def row(self, row):
        """The path and likely tags of the photo of a row, by its reconstruction."""
        return {"row": row, "path": str(self.image_path(row)),
                "tags": self._tags(self.index.directions([row])[0], TAGS_SHOWN)}

    def image_path(self, row):
        """The file of a row. Raises UserError for a row that the index does not have."""
        self._check_rows([row])
        return self.index.image_path(row)

    def words_with(self, prefix, count=TAGS_SHOWN):
        """At most `count` learned tags that begin with `prefix`, regardless of case and accents."""
        prefix = fold(prefix)
        names = (name for names in self.index.content.tag_names for name in names)
        return {"words": [name for name in names if fold(name).startswith(prefix)][:count]}

    # ------------------------------------------------------------ directions

    def _direction(self, settings):
        """The query of a request, float32 (D,): the mean direction of its parts, moved by Rocchio's rule."""
        parts = []
        share = fraction(settings, "share", 0.5)
        seen = self._seen_photo(settings)
        if words := settings.get("words"):
            if why := self.index.no_words():
                raise UserError(why)
            parts.append(self._word_direction(read_words(words)) * (1 if seen is None else 1 - share))
        if seen is not None:
            parts.append(seen * (share if parts else 1))
        right, wrong = self._marked(settings, "right"), self._marked(settings, "wrong")
        if not parts and not len(right):
            raise UserError("expected words, a photo, or photos that are marked as right")
        return rocchio(np.sum(parts, 0, np.float32) if parts else None, right, wrong)

    def _word_direction(self, words):
        try:
            return self.index.words(words)
        except UserError as error:
            raise UnknownWord(str(error)) from None

    def _seen_photo(self, settings):
        """The direction (D,) of the photo that is searched by, or None."""
        if (row := settings.get("like")) is not None:
            self._check_rows([row])
            return self.index.directions([row])[0]
        if (photo := settings.get("photo")) is not None:
            return read_direction(photo, self.index.content.codebooks.shape[2])
        return None

    def _marked(self, settings, name):
        """The directions of the rows that are marked as `name`, float32 (n, D)."""
        rows = settings.get(name) or []
        if not isinstance(rows, list) or len(rows) > MOST_MARKED:
            raise UserError(f"{name}: expected at most {MOST_MARKED:,} rows, found {one_line(rows)}")
        self._check_rows(rows)
        return self.index.directions(rows)

    def _found(self, direction, skip, topk):
        """The results of a query, without the first `skip`."""
        scores, rows = (found[0] for found in self.index.search(direction[None], skip + topk, self._probes))
        rows = rows[skip:][rows[skip:] >= 0]
        cosines = self.index.cosines(direction, rows)
        return [{"row": int(row), "score": float(score), "cosine": float(cosine),
                 "path": str(self.index.image_path(row))}
                for row, score, cosine in zip(rows, scores[skip:], cosines, strict=False)]

    def _check_rows(self, rows):
        for row in rows:
            if type(row) is not int or not 0 <= row < len(self.index):
                raise UserError(f"expected a row from 0 to {len(self.index) - 1:,}, found {one_line(row)}")

    def _tags(self, embedding, count):
        rows, cosines = self.index.tags(embedding)
        return [{"cosine": float(cosine), "names": self.index.content.tag_names[row]}
                for row, cosine in zip(rows[:count], cosines, strict=False)]

    def _bits(self):
        return 8 * len(self.index.content.codebooks)

    def _read_settings(self, body):
        check_json_size(body, self.index.content.query_length)
        return json_object(body)

    def _options(self, settings, most):
        """topk, up to `most`, and the number of inverted lists to search."""
        return (whole_number(settings, "topk", DEFAULT_TOPK, most),
                whole_number(settings, "nprobe", self._probes, 10**9))


def rocchio(query, right, wrong):
    """A query moved towards photos marked as right and away from those marked as wrong, float32 (D,).

    α q / ‖q‖ + β mean(right) − γ mean(wrong).

    Args:
        query: float32 (D,), or None if only photos are marked; right, wrong: directions, float32 (n, D), n ≥ 0.
    """
    alpha, beta, gamma = ROCCHIO
    moved = np.zeros(right.shape[1], np.float32) if query is None else alpha * unit_length(query)
    for weight, marked in ((beta, right), (-gamma, wrong)):
        if len(marked):
            moved = moved + weight * marked.mean(0)
    return moved.astype(np.float32)


def _as_answer(results):
    return {"results": [asdict(result) for result in results]}


# ---------------------------------------------------------------- reading requests

def photo_name(settings):
    """What a client calls its photo, for messages about it."""
    return one_line(settings.get("name") or "the photo")


def as_numbers(settings):
    """The settings in a request's address, with whole numbers parsed from their texts."""
    return {key: int(value) if value.isdecimal() and len(value) < 10 else value for key, value in settings.items()}


def whole_number(settings, name, default, most, least=1):
    """A setting from `least` to `most`, or the default if it is missing. Raises UserError."""
    value = settings.get(name)
    value = default if value is None else value
    if type(value) is not int or not least <= value <= most:
        raise UserError(f"{name}: expected a whole number from {least} to {most:,}, found {one_line(value)}")
    return value


def fraction(settings, name, default):
    """A setting from 0 to 1, or the default if it is missing. Raises UserError."""
    value = settings.get(name, default)
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise UserError(f"{name}: expected a number from 0 to 1, found {one_line(value)}")
    return value


def read_words(words):
    """The words of a query. Raises UserError."""
    if not isinstance(words, str) or len(words) > MOST_LETTERS:
        raise UserError(f"words: expected a text of at most {MOST_LETTERS} letters, found {one_line(words)}")
    return words


def check_json_size(body, length):
    """Raise UserError for JSON with far more in it than MOST_VECTORS vectors of `length` numbers.

    This is counted before parsing, since each of a million empty lists would take a hundred bytes.
    """
    lists, parts = body.count(b"[") + body.count(b"{"), body.count(b",")
    if lists > MOST_VECTORS + 2 or parts > MOST_VECTORS * length:
        raise UserError(f"expected at most {MOST_VECTORS:,} vectors of {length} numbers, found JSON with {lists:,} "
                        f"brackets and {parts:,} commas")


def read_vectors(given, length):
    """At most MOST_VECTORS queries, float32 (Q, length), from lists of numbers or from base64 of their bytes.

    Raises UserError.
    """
    if isinstance(given, list):
        kinds = {kind for row in given if isinstance(row, list) for kind in set(map(type, row))}
        if others := kinds - {int, float}:
            raise UserError(f"vectors: expected rows of {length} numbers, found {NAMES[min(others, key=str)]} among "
                            "them")
    try:
        with np.errstate(over="ignore"):  # infinite numbers are refused below
            if isinstance(given, str):
                vectors = np.frombuffer(base64.b64decode(given, validate=True), "<f4").reshape(-1, length)
            else:
                vectors = np.array(given, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"vectors: expected rows of {length} numbers ({one_line(error)})") from None
    if vectors.ndim != 2 or vectors.shape[1] != length or not 1 <= len(vectors) <= MOST_VECTORS:
        raise UserError(f"vectors: expected 1 to {MOST_VECTORS:,} rows of {length} numbers, found an array of shape "
                        f"{vectors.shape}")
    if not (np.abs(vectors) <= LARGEST).all():
        raise UserError(f"vectors: expected numbers from {-LARGEST:g} to {LARGEST:g}, found NaN or others")
    return vectors


def read_direction(text, length):
    """The direction of a photo from the page's address, float32 (length,). Raises UserError."""
    try:
        vector = np.frombuffer(base64.b64decode(text, validate=True), "<f2").astype(np.float32)
    except (ValueError, TypeError):
        vector = np.empty(0)
    if len(vector) != length or not np.isfinite(vector).all() or not vector.any():
        raise UserError("photo: expected a text that POST /embedding returned, found something else: choose the photo "
                        "again")
    return unit_length(vector)
