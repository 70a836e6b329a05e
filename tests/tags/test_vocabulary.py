"""Words that are no learned tags, found in the file of word vectors."""
import gzip
import json
import re

import numpy as np
import pytest

from dataset import Dataset
from retrieval import index, vocabulary
from tags import word_vectors
from util import UserError, stream

WORDS = ["the", "Paris", "new_york", ". . .", "é", "beach", "zero", "beach"]
VECTORS = stream(0, "vocabulary test").normal(size=(len(WORDS), 300)).astype(np.float32)
VECTORS[6] = 0


def text_of(header=b""):
    rows = [word.encode() + b" " + " ".join(f"{number:.9g}" for number in vector).encode() + b"\n"
            for word, vector in zip(WORDS, VECTORS, strict=True)]
    return header + b"".join(rows)


def binary_of(end):
    rows = [word.replace(" ", "").encode() + b" " + vector.tobytes() + end
            for word, vector in zip(WORDS, VECTORS, strict=True)]
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
    np.testing.assert_allclose(vocabulary.look_up(*vocabulary.make_table(file), word), VECTORS[row], rtol=1e-6)


def test_words_that_the_file_lacks_or_gives_no_direction_have_no_vector(file):
    table, facts = vocabulary.make_table(file)
    assert len(table[0]) == 7  # beach stands there twice
    assert vocabulary.look_up(table, facts, "sea") is None
    assert vocabulary.look_up(table, facts, "zero") is None


def test_a_query_mixes_tags_and_other_words(text_file, tmp_path):
    made = index_of(text_file, tmp_path)
    tag, word = VECTORS[5] / np.linalg.norm(VECTORS[5]), VECTORS[1] / np.linalg.norm(VECTORS[1])
    expected = (tag + word) / np.linalg.norm(tag + word)
    np.testing.assert_allclose(made.words("sand Paris"), expected, rtol=1e-5)
    with pytest.raises(UserError, match=r"the word 'sandd' is none of the 2 tags .* and not in .*v\.txt; .*: sand$"):
        made.words("paris sandd")
    text_file.unlink()
    np.testing.assert_allclose(made.words("sand"), tag, rtol=1e-5)
    with pytest.raises(UserError, match=r"'sandd' is none .*v\.txt, which had more words, is not .*\); .*: sand$"):
        made.words("sandd")


def index_of(path, folder):
    """An index whose tags are `sand`, with the vector of beach, and `the`."""
    names, embeddings = [["sand"], ["the"]], VECTORS[[5, 0]]
    table, facts = vocabulary.vocabulary_of(path, [["beach"], ["the"]], embeddings)
    content = index.Content(np.zeros((2, 1), np.uint8), np.ones((1, 2, 300), np.float32), ["a", "b"], names, embeddings,
                            None, [], {"seed": 0, "images": "/photos", "vectors": facts}, vocabulary=table)
    index.save(folder / "index", content)
    return index.load(folder / "index")


def test_a_file_that_was_altered_is_one_sentence(text_file):
    table, facts = vocabulary.make_table(text_file)
    rows = text_file.read_bytes()
    text_file.write_bytes(rows.replace(b"Paris", b"Rome!"))  # another word in the same place
    assert vocabulary.look_up(table, facts, "paris") is None
    text_file.write_bytes(rows[:50] + b"\n" + rows[51:])  # rows that are none
    with pytest.raises(UserError, match=r"expected the row of a word at byte 0, found something else"):
        vocabulary.look_up(table, facts, "the")
    text_file.write_bytes(rows[:-1])
    with pytest.raises(UserError, match="is not there any more or was altered"):
        vocabulary.look_up(table, facts, "the")


def test_a_table_that_someone_wrote_leads_nowhere(text_file):
    table, facts = vocabulary.make_table(text_file)
    table[1] = 2**63 + 5
    assert vocabulary.look_up(table, facts, "the") is None
    table[1] = 7
    with pytest.raises(UserError, match="expected the row of a word at byte 7"):
        vocabulary.look_up(table, facts, "the")


def test_vectors_of_another_space_are_refused(text_file):
    with pytest.raises(UserError, match=r"the word vectors that the tags were made of, found others .*of 2 tags"):
        vocabulary.vocabulary_of(text_file, [["beach"], ["the"]], VECTORS[[1, 2]])
    with pytest.raises(UserError, match=r"found others \(median cosine of 0 tags"):
        vocabulary.vocabulary_of(text_file, [["sand"]], VECTORS[[1]])


def test_a_packed_file_is_refused(tmp_path):
    (tmp_path / "v.txt.gz").write_bytes(gzip.compress(text_of()))
    with pytest.raises(UserError, match="expected an unpacked file, in which single words can be found: gunzip it"):
        vocabulary.make_table(tmp_path / "v.txt.gz")


@pytest.mark.parametrize(("named", "told"), [
    ("v.txt", None), ("train", ""), (None, ""), ("gone.txt", "gone.txt, of which the tags were made, is not there"),
    ("other.txt", "only learned tags can be searched for: .*other.txt: expected the word vectors that the tags")])
def test_the_file_is_found_by_the_record_of_the_tags(text_file, tmp_path, capsys, named, told):
    (tmp_path / "other.txt").write_bytes(text_of().replace(b"the ", b"teh ").replace(b"Paris ", b"the "))
    (tmp_path / "tags").mkdir()
    (tmp_path / "tags/report.json").write_text(json.dumps({"options": {"word_vectors": named}}))
    found = vocabulary.recorded_vocabulary(Dataset("x", tmp_path, tmp_path), tmp_path, [["the"]], VECTORS[[0]])
    if told is None:
        assert found[1] == {"path": str(text_file), "bytes": text_file.stat().st_size}
    else:
        assert found is None
        assert re.search(told, capsys.readouterr().err)
