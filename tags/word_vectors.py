"""Word vectors of tags from a word2vec or GloVe file.

What belongs here: how tags are spelled in such files, and how the files are read. tag_merging.py uses the vectors.
"""
import gzip
import itertools
import re
import zlib

import numpy as np

from util import DIMENSIONS, UserError, progress

VECTOR_BYTES = 4 * DIMENSIONS
CHUNK_BYTES = 1 << 20  # of a binary file, read at a time
LONGEST_LINE = 1 << 20  # bytes; a file without line ends, which is of another kind, is not read whole
MOST_DIGITS = 18  # of a number in the first line
MOST_SHOWN = 100  # characters of what is wrong with a number
FORMATS = ".bin, .bin.gz (word2vec binary), .txt, .txt.gz, .vec or .vec.gz (text)"


# ---------------------------------------------------------------- tags and their spellings

def find_vectors(tags, path, limit=None):
    """The vector of each tag, under the first of its spellings that the file holds.

    Args:
        tags: R tags.
        path: word vectors in one of FORMATS.
        limit (int): read no more than so many vectors; None reads all.

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


# ---------------------------------------------------------------- files

def read_vectors(path, wanted, limit=None):
    """The vectors of the wanted words: {word: float32 (300,)}. Only these rows of the file are kept in memory.

    If a word stands in two rows, the first counts. Rows of zeros are left out. Raises UserError.
    """
    name = str(path).lower()
    read_rows, parse = _kind(path)
    wanted = {word.encode(): word for word in wanted}
    kept = {}
    try:
        with (gzip.open if name.endswith(".gz") else open)(path, "rb") as file:
            rows = progress(read_rows(file, path, limit), desc="reading word vectors", unit=" words", leave=False)
            for row, _, word, numbers in rows:
                if word in wanted and wanted[word] not in kept:
                    kept[wanted[word]] = _checked(parse, numbers, path, row, wanted[word])
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: expected a whole gzip file, found a damaged or truncated one ({error})") from error
    return {word: vector for word, vector in kept.items() if vector.any()}


def row_places(path):
    """Yield each word of an unpacked file, bytes, and the byte at which its row begins. Raises UserError."""
    read_rows, _ = _kind(path)
    if str(path).lower().endswith(".gz"):
        raise UserError(f"{path}: expected an unpacked file, in which single words can be found: gunzip it")
    with open(path, "rb") as file:
        rows = progress(read_rows(file, path, None), desc="reading words", unit=" words", leave=False)
        for _, place, word, _ in rows:
            yield word, place


def vector_at(path, place):
    """The word, bytes, and the vector, float32 (300,), of the row that begins at a byte of a file, as of `row_places`.

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


def _kind(path):
    """How the rows of a file are read and their numbers parsed, by its name. Raises UserError."""
    name = str(path).lower()
    if name.endswith((".bin", ".bin.gz")):
        return _binary_rows, _parse_binary
    if name.endswith((".txt", ".vec", ".txt.gz", ".vec.gz")):
        return _text_rows, _parse_text
    raise UserError(f"{path}: unknown kind of word vectors, expected a file name ending in {FORMATS}")


def _checked(parse, numbers, path, row, word):
    try:
        vector = parse(numbers)
    except ValueError as error:
        why = str(error)[:MOST_SHOWN]
        raise UserError(f"{path}: row {row} ({word!r}): expected {DIMENSIONS} numbers ({why})") from error
    if not np.isfinite(vector).all():
        raise UserError(f"{path}: row {row} ({word!r}) holds NaN or infinite numbers, expected finite ones")
    return vector


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

    GloVe has words with spaces in them, so the last 300 columns are the numbers.
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
        if columns < DIMENSIONS or (row == 1 and b" " in word):  # a first word with a space: more columns
            found = line.count(b" ") if columns == DIMENSIONS else columns
            raise UserError(f"{path}: row {row}: expected a word and {DIMENSIONS} numbers, found {found} numbers")
        yield row, place, word, numbers
        place += len(line)
    if count is not None and row != count and row != limit:
        raise UserError(f"{path}: expected {count} vectors as the first line says, found {row}")


def _columns(line):
    """The word of a line and the text of its last 300 columns, or of all others where it has fewer."""
    line = line.rstrip().replace(b"\t", b" ")
    if line.count(b" ") == DIMENSIONS:  # most lines; to cut each into its columns would take several times as long
        word, _, numbers = line.partition(b" ")
        return word, numbers
    word, *columns = line.rsplit(b" ", DIMENSIONS)
    return word, b" ".join(columns)


def _parse_text(numbers):
    return np.array([float(number) for number in numbers.split(b" ")], np.float32)


def _header(line, path):
    """The number of vectors in a first line such as `3000000 300`; None if the line is no such thing."""
    words = line.split()
    if len(words) != 2 or not all(word.isdigit() and len(word) <= MOST_DIGITS for word in words):
        return None
    if int(words[1]) != DIMENSIONS:
        raise UserError(f"{path}: expected vectors of {DIMENSIONS} numbers, found {int(words[1])}")
    return int(words[0])
