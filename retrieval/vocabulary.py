"""The words of a file of word vectors, found without reading the whole file: a query may hold words that are no tags.

The vectors stay in the file. An index keeps a table of its words, uint64 (2, n): a hash of each word, ascending, and
the byte at which the word's row begins in the file. In `facts["vectors"]` it keeps the file's path and size.

Letters: n words of a file, T merged tags, D = 300.
"""
import hashlib
from pathlib import Path

import numpy as np

from storage.files import read_json
from tags.word_vectors import row_places, spellings, vector_at
from util import UserError, note

COMPARED = 200  # tags whose vectors are looked up to tell whether a file is the one that the tags were made of
LEAST_COSINE = 0.5  # their median; merging and enhancing keep it near 1, and in another file it is near 0


def look_up(table, facts, word):
    """The vector of a word in the file, under the first of its spellings that the file has, float32 (D,), or None.

    Args:
        table: as above.
        facts: the file's path and its size in bytes.
    Raises UserError if the file is gone or was altered.
    """
    path = Path(facts["path"])
    if not path.is_file() or path.stat().st_size != facts["bytes"]:
        raise UserError(f"{path}, which had more words, is not there any more or was altered: `build --vectors FILE` "
                        "names it again")
    hashes, places = table
    for spelling in spellings(word):
        at = int(np.searchsorted(hashes, _hash(spelling.encode())))
        if at < len(hashes) and hashes[at] == _hash(spelling.encode()) and places[at] < facts["bytes"]:
            found, vector = vector_at(path, int(places[at]))
            if found == spelling.encode() and vector.any():
                return vector
    return None


def make_table(path):
    """The table of a file's words and the facts of the file. Raises UserError for what is no file of word vectors."""
    words = [(_hash(word), place) for word, place in row_places(path)]
    if not words:
        raise UserError(f"{path}: expected word vectors, found none")
    hashes, places = np.array(words, np.uint64).T
    hashes, first = np.unique(hashes, return_index=True)  # of a word that stands in two rows, the first counts
    return np.stack([hashes, places[first]]), {"path": str(Path(path).resolve()), "bytes": Path(path).stat().st_size}


def _hash(word):
    return np.uint64(int.from_bytes(hashlib.blake2b(word, digest_size=8).digest()))


# ---------------------------------------------------------------- which file

def vocabulary_of(path, tag_names, tag_embeddings):
    """As `make_table`, of the file whose words lie in the space of the tags. Raises UserError for another file.

    Args:
        tag_names: T lists of names; tag_embeddings: float32 (T, D).
    """
    table, facts = make_table(path)
    cosines = []
    for names, embedding in zip(tag_names, tag_embeddings, strict=True):
        if len(cosines) < COMPARED and (vector := look_up(table, facts, names[0])) is not None:
            cosines.append(vector @ embedding / np.linalg.norm(vector) / np.linalg.norm(embedding))
    if not cosines or np.median(cosines) < LEAST_COSINE:
        raise UserError(f"{path}: expected the word vectors that the tags were made of, found others (median cosine of "
                        f"{len(cosines)} tags with theirs: {np.median(cosines or [0]):.2f})")
    return table, facts


def recorded_vocabulary(tagged, root, tag_names, tag_embeddings):
    """The same of the file that tag_processing.py read for a data set, or None where that file is not to be had."""
    report = read_json(tagged.tag_report) if tagged.tag_report.is_file() else {}
    options = report.get("options")
    name = options.get("word_vectors") if isinstance(options, dict) else None
    if not isinstance(name, str) or name == "train":
        return None
    path = next((path for path in (Path(name), root / name) if path.is_file()), None)
    if path is None:
        note(f"{name}, of which the tags were made, is not there, so only learned tags can be searched for (--vectors "
             "names it)")
        return None
    try:
        return vocabulary_of(path, tag_names, tag_embeddings)
    except UserError as error:
        note(f"only learned tags can be searched for: {error}")
        return None
