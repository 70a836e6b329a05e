"""Reading what a client asks a server: numbers, words and vectors of a request. No HTTP and no network in this file.

Letters: Q queries.
"""
import base64
import json
from dataclasses import asdict

import numpy as np

from util import UserError, one_line

MOST_RESULTS = 10**5  # of a request's queries together
MOST_LETTERS = 1000  # of a query in words
LARGEST = 1e9  # absolute value in a query, so that no score overflows
NAMES = {str: "text", bool: "true or false", type(None): "null", list: "lists", dict: "objects"}  # of JSON


def as_answer(results):
    return {"results": [asdict(result) for result in results]}


def as_numbers(settings):
    """Settings of a request's address, texts, with whole numbers read."""
    return {key: int(value) if value.isdecimal() and len(value) < 10 else value for key, value in settings.items()}


def whole_number(settings, name, default, most, least=1):
    """A setting from `least` to `most`; of one that is not there the default. Raises UserError."""
    value = settings.get(name)
    value = default if value is None else value
    if type(value) is not int or not least <= value <= most:
        raise UserError(f"{name}: expected a whole number from {least} to {most:,}, found {one_line(value)}")
    return value


def read_words(words):
    """The words of a query. Raises UserError."""
    if not isinstance(words, str) or len(words) > MOST_LETTERS:
        raise UserError(f"words: expected a text of at most {MOST_LETTERS} letters, found {one_line(words)}")
    return words


def read_object(body):
    """The dict that a body of JSON holds. Raises UserError."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"expected JSON, found something else ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"expected a JSON object, found {type(content).__name__}")
    return content


def read_vectors(given, length, most):
    """At most so many queries, float32 (Q, length), from lists of numbers or from base64 of their bytes.

    Raises UserError.
    """
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
    if len(vectors) > most:
        raise UserError(f"vectors: expected 1 to {most:,} rows of {length} numbers, found an array of shape "
                        f"{vectors.shape}")
    if not (np.abs(vectors) <= LARGEST).all():
        raise UserError(f"vectors: expected numbers from {-LARGEST:g} to {LARGEST:g}, found NaN or others")
    return vectors
