"""Reading word vectors: against gensim's own files, damaged ones, and single words found by a table."""
import gzip
import itertools
import json
import re
import tracemalloc

import numpy as np
import pytest
from gensim.models import KeyedVectors

from dataset import Dataset
from retrieval import index
from tag_inputs import random_vectors, text_rows, write_binary
from tags import word_vectors
from tags.word_vectors import (
    find_vectors,
    look_up,
    make_table,
    read_vectors,
    recorded_vocabulary,
    spellings,
    vocabulary_of,
)
from util import UserError, stream

WORDS = ["the", "dog", "New_York", "été", "cat"]


@pytest.mark.parametrize("name", ["v.bin", "v.bin.gz", "v.txt", "v.txt.gz", "v.vec", "v.vec.gz"])
def test_what_gensim_writes_is_read_exactly(tmp_path, name):
    vectors = random_vectors(5)
    model = KeyedVectors(300)
    model.add_vectors(WORDS, vectors)
    model.save_word2vec_format(str(tmp_path / name), binary=".bin" in name)
    read = read_vectors(tmp_path / name, {"dog", "été", "cat", "absent"})
    assert set(read) == {"dog", "été", "cat"}
    for word, vector in read.items():
        assert vector.dtype == np.float32
        np.testing.assert_array_equal(vector, vectors[WORDS.index(word)])


@pytest.mark.parametrize("layout", ["glove", "tabs", "trailing space", "crlf", "no final newline"])
def test_text_layouts_are_read_exactly(tmp_path, layout):
    vectors = random_vectors(5)
    text = text_rows(WORDS, vectors)
    text = {"glove": text, "tabs": text.replace(" ", "\t"), "trailing space": "5 300\n" + text.replace("\n", " \n"),
            "crlf": text.replace("\n", "\r\n"), "no final newline": text.rstrip()}[layout]
    (tmp_path / "v.txt").write_bytes(text.encode())
    read = read_vectors(tmp_path / "v.txt", set(WORDS))
    assert list(read) == WORDS
    np.testing.assert_array_equal(np.stack(list(read.values())), vectors)


def test_binary_rows_may_end_in_a_newline_as_word2vec_writes_them(tmp_path):
    vectors = random_vectors(5)
    read = read_vectors(write_binary(tmp_path / "v.bin", WORDS, vectors, behind=b"\n"), set(WORDS))
    np.testing.assert_array_equal(np.stack([read[word] for word in WORDS]), vectors)


def test_words_with_spaces_in_a_text_file_take_nothing_from_the_300_numbers(tmp_path):
    vectors = random_vectors(4)
    (tmp_path / "v.txt").write_text(text_rows(["the", ". . .", "new york", "dog"], vectors))
    read = read_vectors(tmp_path / "v.txt", {".", "new york", "dog"})
    assert set(read) == {"new york", "dog"}
    np.testing.assert_array_equal(read["new york"], vectors[2])


def test_of_a_repeated_word_the_first_row_counts(tmp_path):
    vectors = random_vectors(3)
    read = read_vectors(write_binary(tmp_path / "v.bin", ["dog", "cat", "dog"], vectors), {"dog"})
    np.testing.assert_array_equal(read["dog"], vectors[0])


@pytest.mark.parametrize("name", ["v.bin", "v.txt"])
@pytest.mark.parametrize("limit", [1, 3, 5, 9])
def test_limit_caps_how_many_vectors_are_read(tmp_path, name, limit):
    vectors = random_vectors(5)
    if name == "v.bin":
        write_binary(tmp_path / name, WORDS, vectors)
    else:
        (tmp_path / name).write_text("5 300\n" + text_rows(WORDS, vectors))
    assert list(read_vectors(tmp_path / name, set(WORDS), limit)) == WORDS[:limit]


def test_a_file_streams_by_and_only_wanted_rows_stay_in_memory(tmp_path):
    vectors = random_vectors(20_000)  # 24 MB
    path = write_binary(tmp_path / "v.bin", [f"word{i}" for i in range(20_000)], vectors)
    wanted = {f"word{i}" for i in range(0, 20_000, 97)}
    tracemalloc.start()
    read = read_vectors(path, wanted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(read) == wanted
    for word, vector in read.items():
        np.testing.assert_array_equal(vector, vectors[int(word[4:])])
    assert peak < 6e6


def damaged_files():
    """{name: (bytes, words)} of word-vector files with one fault each, and the words that its error must hold."""
    vectors = random_vectors(3)
    words = ["the", "dog", "cat"]
    binary = b"3 300\n" + b"".join(w.encode() + b" " + v.tobytes() for w, v in zip(words, vectors, strict=True))
    text = text_rows(words, vectors).encode()
    lines = text.splitlines(keepends=True)
    zipped = gzip.compress(random_vectors(300).tobytes())
    broken, infinite = vectors.copy(), vectors.copy()
    broken[1, 7], infinite[1, 7] = np.nan, -np.inf
    return {
        "truncated.bin": (binary[:-1], ["row 3", "3 vectors", "truncated"]),
        "in_a_word.bin": (binary[:1213], ["row 2", "truncated"]),
        "too_long.bin": (binary + b"bird " + vectors[0].tobytes(), ["expected 3 vectors", "more"]),
        "garbage.bin": (zipped, ["expected a word2vec binary file"]),
        "empty.bin": (b"", ["expected a word2vec binary file"]),
        "dimension.bin": (binary.replace(b"300", b"200", 1), ["expected vectors of 300 numbers, found 200"]),
        "nan.bin": (binary.replace(vectors.tobytes()[1200:2400], broken[1].tobytes()), ["row 2", "'dog'", "NaN"]),
        "inf.bin": (binary.replace(vectors.tobytes()[1200:2400], infinite[1].tobytes()), ["row 2", "'dog'", "NaN"]),
        "truncated.bin.gz": (gzip.compress(binary)[:-900], ["gzip"]),
        "flipped.bin.gz": (gzip.compress(binary)[:-8] + b"\0" * 8, ["gzip"]),
        "not_zipped.bin.gz": (binary, ["gzip"]),
        "not_zipped.txt.gz": (text, ["gzip"]),
        "truncated.txt": (text[:-3000], ["row 3", "300 numbers"]),
        "garbage.txt": (zipped, ["row 1", "300 numbers"]),
        "missing_rows.txt": (b"4 300\n" + text, ["expected 4 vectors", "found 3"]),
        "extra_rows.vec": (b"2 300\n" + text, ["expected 2 vectors", "found 3"]),
        "dimension.txt": (b"3 50\n" + text, ["expected vectors of 300 numbers, found 50"]),
        "narrow.txt": (b"the 1.0 2.0\ndog 1.0 2.0\n", ["row 1", "found 2 numbers"]),
        "wide.txt": (lines[0][:-1] + b" 1.0 2.0\n" + lines[1][:-1] + b" 1.0 2.0\n", ["row 1", "found 302 numbers"]),
        "no_number.txt": (lines[0] + b"dog x" + lines[1][lines[1].index(b" ", 5):], ["row 2", "'dog'", "'x'"]),
        "nan.txt": (lines[0] + b"dog nan" + lines[1][lines[1].index(b" ", 5):], ["row 2", "'dog'", "NaN"]),
        "vectors.npy": (binary, [".bin", ".txt", ".vec"]),
    }


DAMAGED = damaged_files()


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_with_its_name_and_the_place(tmp_path, name):
    content, expected = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_vectors(tmp_path / name, {"dog", "cat"})
    for words in [str(tmp_path / name), *expected]:
        assert words in str(caught.value)


# ---------------------------------------------------------------- spellings

def test_spellings_are_tried_in_order():
    assert spellings("nyC")[:4] == ["nyC", "nyc", "Nyc", "NYC"]
    assert spellings("new-york") == ["new-york", "New-york", "NEW-YORK", "new_york", "New_York"]
    assert spellings("black+white")[3:] == ["black_white", "Black_White"]
    assert spellings("abcd") == ["abcd", "Abcd", "ABCD", "a_bcd", "A_Bcd", "ab_cd", "Ab_Cd", "abc_d", "Abc_D"]
    assert {"new_york", "New_York"} < set(spellings("newyork"))
    assert spellings("x") == ["x", "X"]


@pytest.mark.parametrize("tag", ["newyork", "new-york", "new+york", "new_york", "NewYork"])
def test_a_compound_tag_finds_the_words_of_a_word2vec_vocabulary(tmp_path, tag):
    vectors = random_vectors(2)
    path = write_binary(tmp_path / "v.bin", ["York", "New_York"], vectors)
    read, spelled = find_vectors([tag, "absent"], path)
    assert spelled == ["New_York", None]
    np.testing.assert_array_equal(read, [vectors[1], np.zeros(300)])


def test_the_best_spelling_wins_wherever_it_is_in_the_file(tmp_path):
    words = ["New_York", "NEWYORK", "Newyork", "newyork"]
    for order in itertools.permutations(words):
        _, spelled = find_vectors(["newyork"], write_binary(tmp_path / "v.bin", order, random_vectors(4)))
        assert spelled == ["newyork"]


def test_a_vector_of_zeros_counts_as_none(tmp_path):
    vectors = random_vectors(2)
    vectors[0] = 0
    _, spelled = find_vectors(["dog", "cat"], write_binary(tmp_path / "v.bin", ["dog", "cat"], vectors))
    assert spelled == [None, "cat"]


# ---------------------------------------------------------------- single words

LISTED = ["the", "Paris", "new_york", ". . .", "é", "beach", "zero", "beach"]
ROWS = stream(0, "vocabulary test").normal(size=(len(LISTED), 300)).astype(np.float32)
ROWS[6] = 0


def text_of(header=b""):
    rows = [word.encode() + b" " + " ".join(f"{number:.9g}" for number in vector).encode() + b"\n"
            for word, vector in zip(LISTED, ROWS, strict=True)]
    return header + b"".join(rows)


def binary_of(end):
    rows = [word.replace(" ", "").encode() + b" " + vector.tobytes() + end
            for word, vector in zip(LISTED, ROWS, strict=True)]
    return b"8 300\n" + b"".join(rows)


@pytest.fixture(params=["v.txt", "header.vec", "v.bin", "ends.bin"])
def file(request, tmp_path, monkeypatch):
    monkeypatch.setattr(word_vectors, "CHUNK_BYTES", 1500)  # not much more than a row
    content = {"v.txt": text_of(), "header.vec": text_of(b"8 300\n"), "v.bin": binary_of(b""),
               "ends.bin": binary_of(b"\n")}[request.param]
    (tmp_path / request.param).write_bytes(content)
    return tmp_path / request.param


@pytest.fixture
def text_file(tmp_path):
    (tmp_path / "v.txt").write_bytes(text_of())
    return tmp_path / "v.txt"


@pytest.mark.parametrize(("word", "row"), [("the", 0), ("paris", 1), ("newyork", 2), ("é", 4), ("beach", 5)])
def test_a_word_is_found_under_its_spelling_in_the_file(file, word, row):
    np.testing.assert_allclose(look_up(*make_table(file), word), ROWS[row], rtol=1e-6)


def test_words_that_the_file_lacks_or_gives_no_direction_have_no_vector(file):
    table, facts = make_table(file)
    assert len(table[0]) == 7  # beach is there twice
    assert look_up(table, facts, "sea") is None
    assert look_up(table, facts, "zero") is None


def test_a_query_mixes_tags_and_other_words(text_file, tmp_path):
    made = index_of(text_file, tmp_path)
    tag, word = ROWS[5] / np.linalg.norm(ROWS[5]), ROWS[1] / np.linalg.norm(ROWS[1])
    expected = (tag + word) / np.linalg.norm(tag + word)
    np.testing.assert_allclose(made.words("sand Paris"), expected, rtol=1e-5)
    with pytest.raises(UserError, match=r"the word 'sandd' is none of the 2 tags .* and not in .*v\.txt; .*: sand$"):
        made.words("paris sandd")
    text_file.unlink()
    np.testing.assert_allclose(made.words("sand"), tag, rtol=1e-5)
    with pytest.raises(UserError, match=r"'sandd' is none .*v\.txt, in which other words .* is gone .*\); .*: sand$"):
        made.words("sandd")


def index_of(path, folder):
    """An index whose tags are `sand`, with the vector of beach, and `the`."""
    names, embeddings = [["sand"], ["the"]], ROWS[[5, 0]]
    table, facts = vocabulary_of(path, [["beach"], ["the"]], embeddings)
    content = index.Content(np.zeros((2, 1), np.uint8), np.ones((1, 2, 300), np.float32), ["a", "b"], names, embeddings,
                            None, [], {"seed": 0, "images": "/photos", "vectors": facts}, vocabulary=table)
    index.save(folder / "index", content)
    return index.load(folder / "index")


def test_a_file_that_was_altered_is_one_sentence(text_file):
    table, facts = make_table(text_file)
    rows = text_file.read_bytes()
    text_file.write_bytes(rows.replace(b"Paris", b"Rome!"))  # another word in the same place
    assert look_up(table, facts, "paris") is None
    text_file.write_bytes(rows[:50] + b"\n" + rows[51:])  # rows that are none
    with pytest.raises(UserError, match=r"expected the row of a word at byte 0, found something else"):
        look_up(table, facts, "the")
    text_file.write_bytes(rows[:-1])
    with pytest.raises(UserError, match="is gone or was altered"):
        look_up(table, facts, "the")


def test_a_table_that_someone_wrote_leads_nowhere(text_file):
    table, facts = make_table(text_file)
    table[1] = 2**63 + 5
    assert look_up(table, facts, "the") is None
    table[1] = 7
    with pytest.raises(UserError, match="expected the row of a word at byte 7"):
        look_up(table, facts, "the")


def test_vectors_of_another_space_are_refused(text_file):
    with pytest.raises(UserError, match=r"the word vectors that the tags were made from, found others .*of 2 tags"):
        vocabulary_of(text_file, [["beach"], ["the"]], ROWS[[1, 2]])
    with pytest.raises(UserError, match=r"found others \(median cosine of 0 tags"):
        vocabulary_of(text_file, [["sand"]], ROWS[[1]])


def test_a_packed_file_is_refused(tmp_path):
    (tmp_path / "v.txt.gz").write_bytes(gzip.compress(text_of()))
    with pytest.raises(UserError, match="expected an unpacked file, in which single words can be found: gunzip it"):
        make_table(tmp_path / "v.txt.gz")


@pytest.mark.parametrize(("named", "sentence"), [
    ("v.txt", None), ("train", ""), (None, ""), ("gone.txt", "gone.txt, from which the tags were made, is missing"),
    ("other.txt", "only learned tags can be searched for: .*other.txt: expected the word vectors that the tags")])
def test_the_file_is_found_by_the_record_of_the_tags(text_file, tmp_path, capsys, named, sentence):
    (tmp_path / "other.txt").write_bytes(text_of().replace(b"the ", b"teh ").replace(b"Paris ", b"the "))
    (tmp_path / "tags").mkdir()
    (tmp_path / "tags/report.json").write_text(json.dumps({"options": {"word_vectors": named}}))
    found = recorded_vocabulary(Dataset("x", tmp_path, tmp_path), tmp_path, [["the"]], ROWS[[0]])
    if sentence is None:
        assert found[1] == {"path": str(text_file), "bytes": text_file.stat().st_size}
    else:
        assert found is None
        assert re.search(sentence, capsys.readouterr().err)
