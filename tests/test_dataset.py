"""Split files: what is read, what is refused, and in which words."""

import numpy as np
import pytest
import scipy.sparse

import dataset
from tiny import write_pickle
from util import UserError

# ---------------------------------------------------------------- split files

@pytest.mark.parametrize(("text", "sentence"), [
    ("0 1\n0 2\n", "row 2: expected 0 or 1, found '2'"), ("0 1\n0 x\n", "row 2: expected 0 or 1, found 'x'"),
    ("0 1\n0 10\n", "row 2: expected 0 or 1, found '10'"), ("0 1\n0 nan\n", "row 2: expected 0 or 1, found 'nan'"),
    ("0 1\n0 1 1\n", "row 2 has 3 numbers, expected 2"), ("0 1\n\n0 1\n", "row 2 has 0 numbers, expected 2"),
    ("", "found nothing"), ("\n0 1\n", "row 1 is blank"), ("0.5 1\n", "row 1: expected 0 or 1, found '0.5'")])
def test_what_is_not_a_0_1_matrix_is_refused_with_its_row(tmp_path, text, sentence):
    path = tmp_path / "m.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"m\.txt.*{sentence}"):
        dataset.read_binary_matrix(path)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_change_nothing_and_rows_are_counted_across_them(tmp_path, monkeypatch, block):
    monkeypatch.setattr(dataset, "BLOCK", block)
    path = tmp_path / "m.txt"
    path.write_bytes(b"0 1\r\n1 0\n1.0 0\n1 1\n \n")
    np.testing.assert_array_equal(dataset.read_binary_matrix(path).toarray(), [[0, 1], [1, 0], [1, 0], [1, 1]])
    for bad, sentence in (("1 x", "row 5: expected 0 or 1, found 'x'"),
                          ("1", "row 5 has 1 numbers, expected 2 as in row 1")):
        path.write_text("0 1\n1 0\n1.0 0\n1 1\n" + bad + "\n0 0\n")
        with pytest.raises(UserError, match=sentence):
            dataset.read_binary_matrix(path)


def test_a_tag_of_two_words_is_refused_with_its_row(tmp_path):
    path = tmp_path / "tags.txt"
    path.write_text("sky 845\nblue sky\n")
    with pytest.raises(UserError, match="row 2"):
        dataset.read_tag_names(path)


def test_an_unknown_data_set_is_refused_with_the_known_ones(tmp_path):
    for name in ("flickr25k", "mine"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "train_img.txt").write_text("a.jpg\n")
    with pytest.raises(UserError, match=r"unknown data set 'nuswide'.*known here: flickr, mine"):
        dataset.find_dataset("nuswide", tmp_path)
    found = dataset.find_dataset("flickr", tmp_path)
    assert (found.splits, found.images) == (tmp_path / "data" / "flickr25k", tmp_path / "datasets" / "flickr25k")
    with pytest.raises(UserError):
        dataset.find_dataset("../data/mine", tmp_path)


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda rows: rows[2].__setitem__(5, "nan"), "row 3 holds NaN"),
    (lambda rows: rows[1].__setitem__(5, "x"), "row 2: expected a number, found 'x'"),
    (lambda rows: rows[1].pop(), "row 2: expected 300 numbers, found 299"),
    (lambda rows: [row.pop() for row in rows], "row 1: expected 300 numbers, found 299"),
    (lambda rows: rows.clear(), "expected")])
def test_tag_embeddings_that_cannot_be_used_are_refused_with_their_row(tmp_path, change, sentence):
    rows = [["0.25"] * 300 for _ in range(4)]
    path = tmp_path / "FinalTagEmbs.txt"
    path.write_text("\n".join(map(" ".join, rows)))
    assert dataset.read_tag_embeddings(path).shape == (4, 300)
    change(rows)
    path.write_text("\n".join(map(" ".join, rows)))
    with pytest.raises(UserError, match=rf"FinalTagEmbs\.txt.*{sentence}"):
        dataset.read_tag_embeddings(path)


@pytest.mark.parametrize("dropped", [{}, {-1: [3]}, {-1: []}])
def test_merged_tags_are_the_or_of_their_columns_in_the_dict_s_own_order(tmp_path, dropped):
    path = tmp_path / "map.pkl"
    write_pickle(path, {7: [2], **dropped, 1: [0, 4], 3: np.array([1])})
    groups = dataset.read_merge_map(path, 5)
    assert groups == [[2], [0, 4], [1]]
    raw = scipy.sparse.csr_array(np.array([[1, 0, 0, 1, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 1]], np.uint8))
    np.testing.assert_array_equal(dataset.merge_tags(raw, groups).toarray(), [[0, 1, 0], [0, 0, 1], [1, 1, 0]])


@pytest.mark.parametrize(("content", "sentence"), [
    ([1, 2], "expected a dict"), ({0: [9]}, "names raw tag column 9, expected 0 to 4"), ({0: []}, "expected a list"),
    ({0: ["a"]}, "expected a list"), ({0: [-3]}, "expected 0 to 4")])
def test_a_merge_map_that_does_not_fit_is_refused(tmp_path, content, sentence):
    write_pickle(tmp_path / "map.pkl", content)
    with pytest.raises(UserError, match=sentence):
        dataset.read_merge_map(tmp_path / "map.pkl", 5)


# ---------------------------------------------------------------- text as other programs write it

WRITTEN = {
    "Windows": "\r\n".join, "old Mac": "\r".join,
    "mixed": lambda lines: "\r\n".join(lines[:2]) + "\r" + "\n".join(lines[2:]),
    "byte order mark": lambda lines: "\ufeff" + "\n".join(lines), "no last newline": "\n".join,
    "blank lines at the end": lambda lines: "\n".join([*lines, "", "  ", "\t\r\n"]),
    "blanks at the ends": lambda lines: " \t\n".join(lines) + "  \n",
}


@pytest.mark.parametrize("written", WRITTEN)
def test_lists_are_read_whichever_way_they_were_written(tmp_path, written):
    lines = ["a b/é.jpg", "e\u0301.jpg", "line\x85sepa\u2028rator\x0c.jpg", "d.jpg"]
    path = tmp_path / "list.txt"
    path.write_bytes(WRITTEN[written](lines).encode())
    assert dataset.read_image_list(path) == lines
    path.write_bytes(WRITTEN[written](["sky 845", "cafe\u0301 3", "日本"]).encode())
    assert dataset.read_tag_names(path) == ["sky", "cafe\u0301", "日本"]
    path.with_name("labels.txt").write_bytes(WRITTEN[written](["sky", "old town"]).encode())
    assert dataset.read_label_names(dataset.Dataset("x", tmp_path, tmp_path), 2) == ["sky", "old town"]
    path.write_bytes(WRITTEN[written]([" ".join(["0.5"] * 300)] * 3).encode())
    assert dataset.read_tag_embeddings(path).shape == (3, 300)


@pytest.mark.parametrize("written", sorted(set(WRITTEN) - {"old Mac", "mixed"}))
def test_matrices_are_read_whichever_way_they_were_written(tmp_path, written):
    path = tmp_path / "m.txt"
    path.write_bytes(WRITTEN[written](["0 1 0", "1 1 0", "0 0 0"]).encode())
    np.testing.assert_array_equal(dataset.read_binary_matrix(path).toarray(), [[0, 1, 0], [1, 1, 0], [0, 0, 0]])


READERS = [dataset.read_image_list, dataset.read_tag_names, dataset.read_tag_embeddings, dataset.read_binary_matrix]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(("content", "sentence"), [
    (b"0\n1\n0\0 1\n", "row 3: expected text, found a NUL byte"),
    (b"0\n1\r\ncaf\xe9\n", "row 3: expected UTF-8 text, found something else"),
    ("0\n1\n".encode("utf-16"), "row 1: expected UTF-8 text, found something else"),
    (b"\xed\xa0\x80\n", "row 1: expected UTF-8 text")])
def test_what_is_no_text_is_refused_with_its_row(tmp_path, read, content, sentence):
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.txt: {sentence}"):
        read(path)


@pytest.mark.parametrize("content", ["", "\n", " \r\n\t", "\ufeff", "\ufeff\n"])
def test_an_empty_list_of_images_is_refused(tmp_path, content):
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(UserError, match=r"x\.txt: expected one image path a line, found none"):
        dataset.read_image_list(tmp_path / "x.txt")


@pytest.mark.parametrize(("name", "fault"), [
    ("a.jpg", None), ("été/東 京.jpg", None), ("a\nb", "the control character '\\n'"),
    *((f"a{sign}b", f"the control character {sign!r}") for sign in "\r\0\t\u2028"),
    (" a", "a space at its start or end"), ("a\u00a0", "a space at its start or end"),
    ("a\udcff", "bytes that are not UTF-8")])
def test_names_that_a_list_of_one_a_line_cannot_hold(name, fault):
    found = dataset.name_fault(name)
    assert found is None if fault is None else found.startswith(fault)


def test_an_empty_line_among_others_is_refused_with_its_row(tmp_path):
    (tmp_path / "x.txt").write_text("a.jpg\n \nb.jpg\n")
    with pytest.raises(UserError, match=r"x\.txt: row 2 is empty, expected an image path"):
        dataset.read_image_list(tmp_path / "x.txt")


def test_a_very_long_line_is_read_or_refused_in_a_short_sentence(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("a" * 10**7)
    assert [len(name) for name in dataset.read_image_list(path)] == [10**7]
    for read, content in ((dataset.read_image_list, "/" + "a" * 10**7), (dataset.read_tag_names, "a " * 10**6)):
        path.write_text(content)
        with pytest.raises(UserError, match=r"row 1: expected .*…") as error:
            read(path)
        assert len(str(error.value)) < 400
