"""Word vectors from a word2vec or GloVe file: those of a list of tags, or of any single word without reading it all.

For single words an index keeps a table of a file, uint64 (2, n): a hash of each word, ascending, and the byte at which
the word's row begins. The vectors stay in the file; `facts` hold its path and its size in bytes.

Letters: R tags, n words of a file, T merged tags, D = 300.
"""
import array
import gzip
import hashlib
import itertools
import re
import zlib
from pathlib import Path

import msgspec
import numpy as np

from storage.files import read_record
from util import DIMENSIONS, UserError, note, progress, unit_length

VECTOR_BYTES = 4 * DIMENSIONS
CHUNK_BYTES = 1 << 20  # of a binary file, read at a time
LONGEST_LINE = 1 << 20  # bytes; so that a file without line ends, which is of another kind, is not read whole
MOST_DIGITS = 18  # of a number in the first line
MOST_SHOWN = 100  # characters of an error message about a number
FORMATS = ".bin, .bin.gz (word2vec binary), .txt, .txt.gz, .vec or .vec.gz (text)"
COMPARED = 200  # tags whose vectors are looked up to check whether they were made from a file
LEAST_COSINE = 0.5  # of their median; merging and enhancing keep it near 1, and in another file it is near 0


# ---------------------------------------------------------------- vectors of tags

def find_vectors(tags, path, limit=None):
    """The vector of each tag, under the first of its spellings that is in the file.

    Args:
        tags: R tags.
        path: word vectors in one of FORMATS.
        limit (int): read only this many vectors; None reads all.

    Returns:
        vectors: float32 (R, 300), zeros where there is none.
        spelled: R entries, the spelling found, or None. A vector of zeros has no direction and counts as none.

    Raises:
        UserError: the file is missing, damaged, of an unknown format or not 300-dimensional.
    """
    words = read_vectors(path, {spelling for tag in tags for spelling in spellings(tag)}, limit)
    vectors = np.zeros((len(tags), DIMENSIONS), np.float32)
    spelled = [next((spelling for spelling in spellings(tag) if spelling in words), None) for tag in tags]
    for row, spelling in enumerate(spelled):
        if spelling is not None:
            vectors[row] = words[spelling]
    return vectors, spelled


def spellings(tag):
    """How a word2vec vocabulary may spell a tag, best first: newyork, Newyork, NEWYORK, …, new_york, New_York."""
    parts = [part for part in re.split(r"[-+_ ]+", tag.lower()) if part]
    compounds = [parts] if len(parts) > 1 else [(tag[:cut].lower(), tag[cut:].lower()) for cut in range(1, len(tag))]
    tried = [tag, tag.lower(), tag.capitalize(), tag.upper()]
    for words in compounds:
        tried += ["_".join(words), "_".join(word.capitalize() for word in words)]
    return list(dict.fromkeys(tried))


def read_vectors(path, wanted, limit=None):
    """The vectors of the wanted words: {word: float32 (300,)}. Only these rows of the file are kept in memory.

    If a word is in two rows, the first counts. Rows of zeros are left out. Raises UserError.
    """
    read_rows, parse = _kind(path)
    wanted = {word.encode(): word for word in wanted}
    kept = {}
    try:
        with (gzip.open if str(path).lower().endswith(".gz") else open)(path, "rb") as file:
            rows = progress(read_rows(file, path, limit), desc="reading word vectors", unit=" words", leave=False)
            for row, _, word, numbers in rows:
                if word in wanted and wanted[word] not in kept:
                    kept[wanted[word]] = _checked(parse, numbers, path, row, wanted[word])
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: expected a whole gzip file, found a damaged or truncated one ({error})") from error
    return {word: vector for word, vector in kept.items() if vector.any()}


def _checked(parse, numbers, path, row, word):
    try:
        vector = parse(numbers)
    except ValueError as error:
        why = str(error)[:MOST_SHOWN]
        raise UserError(f"{path}: row {row} ({word!r}): expected {DIMENSIONS} numbers ({why})") from error
    if not np.isfinite(vector).all():
        raise UserError(f"{path}: row {row} ({word!r}) holds NaN or infinite numbers, expected finite ones")
    return vector


# ---------------------------------------------------------------- vectors of single words

def make_table(path):
    """The table of a file's words, and the facts of the file. Raises UserError for what is no file of word vectors."""
    read_rows, _ = _kind(path)
    if str(path).lower().endswith(".gz"):
        raise UserError(f"{path}: expected an unpacked file, in which single words can be found: gunzip it")
    with open(path, "rb") as file:
        rows = progress(read_rows(file, path, None), desc="reading words", unit=" words", leave=False)
        words = array.array("Q")  # of each row a hash and a place, 16 bytes: a tuple of both would take ten times that
        for _, place, word, _ in rows:
            words.extend((_hash(word), place))
    if not words:
        raise UserError(f"{path}: expected word vectors, found none")
    hashes, places = np.frombuffer(words, np.uint64).reshape(-1, 2).T
    hashes, first = np.unique(hashes, return_index=True)  # of a word that is in two rows, the first counts
    return np.stack([hashes, places[first]]), {"path": str(Path(path).resolve()), "bytes": Path(path).stat().st_size}


def look_up(table, facts, word):
    """The vector of a word, under the first of its spellings that the file has, float32 (D,), or None.

    `table`, `facts`: as returned by `make_table`. Raises UserError if the file is gone or was altered.
    """
    path = Path(facts["path"])
    if not path.is_file() or path.stat().st_size != facts["bytes"]:
        raise UserError(f"{path}, in which other words are looked up, is gone or was altered: `search.py build "
                        "--vectors FILE` names it again")
    hashes, places = table
    for spelling in spellings(word):
        sought = np.uint64(_hash(spelling.encode()))
        at = int(np.searchsorted(hashes, sought))
        if at < len(hashes) and hashes[at] == sought and places[at] < facts["bytes"]:
            found, vector = _row_at(path, int(places[at]))
            if found == spelling.encode() and vector.any():
                return vector
    return None


def _hash(word):
    return int.from_bytes(hashlib.blake2b(word, digest_size=8).digest())


def _row_at(path, place):
    """The word, bytes, and the vector, float32 (300,), of the row that begins at a byte of a file.

    Raises UserError if no row begins there.
    """
    read_rows, parse = _kind(path)
    try:
        with open(path, "rb") as file:
            file.seek(place)
            if read_rows is _text_rows:
                word, numbers = _columns(file.readline(LONGEST_LINE))
            else:
                word, _, numbers = file.read(LONGEST_LINE).partition(b" ")
                word, numbers = word.lstrip(b"\n"), numbers[:VECTOR_BYTES]
        vector = parse(numbers)
    except ValueError:
        vector = np.empty(0)
    if len(vector) != DIMENSIONS or not np.isfinite(vector).all():
        raise UserError(f"{path}: expected the row of a word at byte {place:,}, found something else: the file was "
                        "altered")
    return word, vector


# ---------------------------------------------------------------- which file an index looks words up in

def vocabulary_of(path, tag_names, tag_embeddings):
    """As `make_table`, of a file whose words are in one space with the tags. Raises UserError for another file.

    Args:
        tag_names: T lists of names; tag_embeddings: float32 (T, D).
    """
    table, facts = make_table(path)
    cosines = []
    for names, embedding in zip(tag_names, tag_embeddings, strict=True):
        if len(cosines) < COMPARED and (vector := look_up(table, facts, names[0])) is not None:
            cosines.append(unit_length(vector) @ unit_length(embedding))
    if not cosines or np.median(cosines) < LEAST_COSINE:
        raise UserError(f"{path}: expected the word vectors that the tags were made from, found others (median cosine "
                        f"of {len(cosines)} tags with theirs: {np.median(cosines or [0]):.2f})")
    return table, facts


class TagOptions(msgspec.Struct, frozen=True):
    """Of tag_processing.py. word_vectors: a file, or `train`."""
    word_vectors: str | None = None


class TagReport(msgspec.Struct, frozen=True):
    """The part of `tags/report.json` that an index needs."""
    options: TagOptions = TagOptions()


def recorded_vocabulary(tagged, root, tag_names, tag_embeddings):
    """As `vocabulary_of`, of the file that tag_processing.py read for a data set; None if it cannot be used any more.
    """
    report = read_record(tagged.tag_report, TagReport) if tagged.tag_report.is_file() else TagReport()
    name = report.options.word_vectors
    if name in (None, "train"):
        return None
    path = next((path for path in (Path(name), root / name) if path.is_file()), None)
    if path is None:
        note(f"{name}, from which the tags were made, is missing, so only learned tags can be searched for (--vectors "
             "names it)")
        return None
    try:
        return vocabulary_of(path, tag_names, tag_embeddings)
    except UserError as error:
        note(f"only learned tags can be searched for: {error}")
        return None


# ---------------------------------------------------------------- rows of a file

def _kind(path):
    """How the rows of a file are read and their numbers parsed, by its name. Raises UserError, also if it is gone."""
    name = str(path).lower()
    binary = name.endswith((".bin", ".bin.gz"))
    if not binary and not name.endswith((".txt", ".vec", ".txt.gz", ".vec.gz")):
        raise UserError(f"{path}: unknown kind of word vectors, expected a file name ending in {FORMATS}")
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    return (_binary_rows, _parse_binary) if binary else (_text_rows, _parse_text)


def _binary_rows(file, path, limit):
    """Yield (row, byte at which it begins, word, its 1200 bytes) of a word2vec binary file: `count 300\\n`, then
    `word`, space, floats."""
    header = file.readline(LONGEST_LINE)
    count = _header(header, path)
    if count is None:
        raise UserError(f"{path}: expected a word2vec binary file that opens with the number of its vectors and "
                        f"{DIMENSIONS}, found something else")
    data, at, row, place = b"", 0, 0, len(header)  # place: of data in the file
    for row in range(1, min(count, limit or count) + 1):
        start = data.find(b" ", at) + 1
        if not start or start + VECTOR_BYTES > len(data):
            data, at, place = data[at:] + file.read(CHUNK_BYTES), 0, place + at
            start = data.find(b" ") + 1
            if not start or start + VECTOR_BYTES > len(data):
                raise UserError(f"{path}: row {row}: expected {count} vectors as the first line says, found a "
                                "truncated or damaged file")
        yield row, place + at, data[at:start - 1].lstrip(b"\n"), data[start:start + VECTOR_BYTES]
        at = start + VECTOR_BYTES
    if row == count and (data[at:] + file.read(CHUNK_BYTES)).strip():
        raise UserError(f"{path}: expected {count} vectors as the first line says, found more after them")


def _parse_binary(numbers):
    return np.frombuffer(numbers, "<f4").astype(np.float32)


def _text_rows(file, path, limit):
    """Yield (row, byte at which it begins, word, the text of its 300 columns) of a text file with or without a
    `count 300` line.

    Some words of GloVe have spaces in them, so the last 300 columns are the numbers.
    """
    first = file.readline(LONGEST_LINE)
    count = _header(first, path)
    lines = iter(lambda: file.readline(LONGEST_LINE), b"")
    if count is None:
        lines = itertools.chain([first], lines)
    row, place = 0, 0 if count is None else len(first)
    for row, line in enumerate(itertools.islice(lines, limit), 1):
        word, numbers = _columns(line)
        columns = numbers.count(b" ") + 1 if numbers else 0
        if columns < DIMENSIONS or (row == 1 and b" " in word):  # a first word with a space: too many columns
            found = line.count(b" ") if columns == DIMENSIONS else columns
            raise UserError(f"{path}: row {row}: expected a word and {DIMENSIONS} numbers, found {found} numbers")
        yield row, place, word, numbers
        place += len(line)
    if count is not None and row != count and row != limit:
        raise UserError(f"{path}: expected {count} vectors as the first line says, found {row}")


def _columns(line):
    """The word of a line and the text of its last 300 columns, or of all others where it has fewer."""
    line = line.rstrip().replace(b"\t", b" ")
    if line.count(b" ") == DIMENSIONS:  # as most lines have; cutting each into columns would take several times longer
        word, _, numbers = line.partition(b" ")
        return word, numbers
    word, *columns = line.rsplit(b" ", DIMENSIONS)
    return word, b" ".join(columns)


def _parse_text(numbers):
    return np.array([float(number) for number in numbers.split(b" ")], np.float32)


def _header(line, path):
    """The number of vectors in a first line such as `3000000 300`; None for any other line."""
    words = line.split()
    if len(words) != 2 or not all(word.isdigit() and len(word) <= MOST_DIGITS for word in words):
        return None
    if int(words[1]) != DIMENSIONS:
        raise UserError(f"{path}: expected vectors of {DIMENSIONS} numbers, found {int(words[1])}")
    return int(words[0])
