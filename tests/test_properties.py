"""What holds for any input of parsers, metrics, quantizer and names; Hypothesis looks for one for which it does not."""
import os
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import dataset
import oracles
from quantization import quantizer
from retrieval import index, metrics
from retrieval.index import Lines, write_lines
from storage.log import experiment_name, margin_form
from util import UserError

settings.register_profile("wsdhq", derandomize=True, deadline=None, max_examples=60, database=None,
                          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
settings.load_profile("wsdhq")

SEEDS = st.integers(0, 2**32 - 1)
ENDS = st.sampled_from(["\n", "\r\n"])
GAPS = st.sampled_from([" ", "\t", "  ", " \t "])
TAGS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=12)


def bits(rows, columns):
    """0/1 matrices, uint8; `rows` and `columns` are strategies."""
    return st.tuples(rows, columns).flatmap(lambda shape: arrays.arrays(np.uint8, shape, elements=st.integers(0, 1)))


def written(path, text):
    path.write_bytes(text.encode())
    return path


# ---------------------------------------------------------------- split files

@given(matrix=bits(st.integers(1, 6), st.integers(1, 6)), gap=GAPS, end=ENDS,
       before=st.sampled_from(["", " ", "\t"]), after=st.sampled_from(["", " ", "\t "]), last=st.booleans(),
       empty=st.lists(st.sampled_from(["", " ", "\t"]), max_size=3),
       spelled=st.sampled_from([("0", "1"), ("0.0", "1.0"), ("0", "1e0"), ("-0", "+1"), ("00", "01")]))
def test_a_0_1_matrix_comes_back_however_it_is_spaced_and_spelled(tmp_path, matrix, gap, end, before, after, last,
                                                                   empty, spelled):
    rows = [before + gap.join(spelled[value] for value in row) + after for row in matrix]
    path = written(tmp_path / "m.txt", end.join([*rows, *empty]) + (end if last else ""))
    found = dataset.read_binary_matrix(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found.toarray(), matrix)


@given(matrix=bits(st.integers(1, 5), st.integers(1, 5)), data=st.data())
def test_the_two_ways_to_read_a_matrix_agree(tmp_path, matrix, data):
    ends = st.sampled_from(["\n", "\r\n", "\r", " \n", "\n\n"])
    lines = [" ".join(map(str, row)) + data.draw(ends) for row in matrix]
    path = written(tmp_path / "m.txt", "".join(lines))
    spelled = written(tmp_path / "s.txt", "".join(lines).replace("1", "1.").replace("0", "0."))
    assert outcome(lambda: dataset.read_binary_matrix(path).toarray().tolist(), path) == outcome(
        lambda: dataset.read_binary_matrix(spelled).toarray().tolist(), spelled)


def outcome(read, path):
    """What is read, or why not."""
    try:
        return read()
    except UserError as error:
        return str(error).replace(str(path), "")


@given(text=st.text(st.sampled_from("01 \t\r\n2.ex\f\v\x85\u2028٠"), max_size=40))
def test_any_text_is_a_matrix_or_is_refused(tmp_path, text):
    path = written(tmp_path / "m.txt", text)
    try:
        found = dataset.read_binary_matrix(path).toarray()
    except UserError:
        return
    expected = [[float(word) for word in line.split()] for line in dataset.read_lines(path)]
    np.testing.assert_array_equal(found, expected)


@given(names=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), min_size=1),
                      min_size=1), end=ENDS, last=st.booleans())
def test_image_lists_come_back_whatever_is_in_the_names(tmp_path, names, end, last):
    assume(all(name == name.strip() and not dataset.leads_out(name) for name in names))
    assume(not names[0].startswith("\ufeff"))
    path = written(tmp_path / "list.txt", end.join(names) + (end if last else ""))
    assert dataset.read_image_list(path) == names


@given(tags=st.lists(st.tuples(TAGS, st.none() | st.integers(0, 10**9)), min_size=1), end=ENDS, gap=GAPS,
       last=st.booleans())
def test_tags_come_back_with_and_without_counts(tmp_path, tags, end, gap, last):
    assume(not tags[0][0].startswith("\ufeff"))
    rows = [tag if count is None else f"{tag}{gap}{count}" for tag, count in tags]
    path = written(tmp_path / "tags.txt", end.join(rows) + (end if last else ""))
    assert dataset.read_tag_names(path) == [tag for tag, _ in tags]


@given(rows=st.integers(1, 4), seed=SEEDS, form=st.sampled_from(["%.18e", "%r", "%.9g"]), gap=GAPS, end=ENDS)
@settings(max_examples=25)
def test_tag_embeddings_come_back_to_the_last_bit(tmp_path, rows, seed, form, gap, end):
    expected = np.random.default_rng(seed).integers(0, 2**32, (rows, 300), dtype=np.uint32).view(np.float32)
    expected[~np.isfinite(expected)] = 0
    text = end.join(gap.join(form % float(number) for number in row) for row in expected)
    np.testing.assert_array_equal(dataset.read_tag_embeddings(written(tmp_path / "w.txt", text)), expected)


@given(groups=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=5), min_size=1, max_size=6),
       kinds=st.data(), dropped=st.none() | st.lists(st.integers(0, 30)))
def test_merge_maps_come_back_in_their_own_order(tmp_path, groups, kinds, dropped):
    keys = kinds.draw(st.permutations(range(len(groups))))
    content = {kinds.draw(st.sampled_from([int, np.int64, np.int32]))(key):
               kinds.draw(st.sampled_from([list, tuple, np.array]))(group)
               for key, group in zip(keys, groups, strict=True)}
    if dropped is not None:
        content = {-1: dropped, **content}
    (tmp_path / "map.pkl").write_bytes(pickle.dumps(content, 4))
    assert dataset.read_merge_map(tmp_path / "map.pkl", 31) == groups


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: (st.lists(inner, max_size=3) | st.dictionaries(st.integers(-2, 5), inner, max_size=3)
                   | st.tuples(inner, inner)), max_leaves=8)


@given(content=st.dictionaries(st.integers(-1, 3) | st.text(max_size=3), PLAIN, max_size=3))
@example(content={0: [[1, 2], [3]]})
@example(content={0: [True]})
@example(content={0: np.array([[1]])})
@example(content={0: [2**70]})
def test_any_dict_is_a_merge_map_or_is_refused(tmp_path, content):
    (tmp_path / "map.pkl").write_bytes(pickle.dumps(content, 4))
    try:
        groups = dataset.read_merge_map(tmp_path / "map.pkl", 5)
    except UserError:
        return
    assert all(group and all(type(column) is int and 0 <= column < 5 for column in group) for group in groups)


# ---------------------------------------------------------------- metrics

@st.composite
def rankings(draw):
    """Scores with ties, float32 (Q, N), labels of queries and images, and topk."""
    queries, images, labels = draw(st.integers(1, 6)), draw(st.integers(1, 12)), draw(st.integers(1, 70))
    scores = draw(arrays.arrays(np.float32, (queries, images),
                                elements=st.sampled_from([-np.inf, -1, -0.0, 0, 1e-40, 0.5, 1, np.inf])))
    rng = np.random.default_rng(draw(SEEDS))
    share = draw(st.sampled_from([0, 0.02, 0.3, 1]))
    query_labels, database_labels = ((rng.random((n, labels)) < share).astype(np.uint8) for n in (queries, images))
    return scores, query_labels, database_labels, draw(st.sampled_from([1, images, (images + 1) // 2]))


@given(case=rankings())
def test_rank_is_a_slow_sort(case):
    scores, _, _, topk = case
    expected = [sorted(range(scores.shape[1]), key=lambda n: (-row[n], n))[:topk] for row in scores]
    found = metrics.rank(scores, topk)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


@given(case=rankings(), together=st.integers(1, 4))
def test_evaluate_is_the_oracle_however_queries_are_grouped(case, together):
    scores, query_labels, database_labels, topk = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "QUERIES_AT_ONCE", together)
        quality = metrics.evaluate(lambda queries: scores[queries], query_labels, database_labels, topk)
    with warnings.catch_warnings(action="ignore"):  # of means of nothing
        expected = oracles.retrieval(scores, query_labels, database_labels, topk)
    found = quality.map, quality.map_min_rk, quality.precision, quality.recall
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, np.broadcast_to(theirs, np.shape(ours)), rtol=1e-12)
    relevant = (query_labels.astype(int) @ database_labels.T.astype(int)) > 0
    top = metrics.rank(scores, topk)
    assert quality.left_out == (~np.take_along_axis(relevant, top, 1).any(1)).sum()


# ---------------------------------------------------------------- quantizer

@given(seed=SEEDS, images=st.integers(1, 20), books=st.integers(1, 4), words=st.sampled_from([1, 4, 256]),
       width=st.integers(1, 9), queries=st.integers(1, 3))
def test_scores_are_products_with_the_reconstructions(seed, images, books, words, width, queries):
    rng = np.random.default_rng(seed)
    c = rng.normal(size=(books, words, width)).astype(np.float32)
    codes = rng.integers(0, words, (images, books), dtype=np.uint8)
    parts = [[c[m, code[m]].astype(float) for m in range(books)] for code in codes]
    before = c.copy()
    sums = quantizer.reconstruct(codes, c)
    np.testing.assert_array_equal(c, before)
    np.testing.assert_allclose(sums, np.sum(parts, 1), atol=1e-5)
    for score, q, whole in (
            (quantizer.quantized_scores, rng.normal(size=(queries, width)), np.sum(parts, 1)),
            (quantizer.product_scores, rng.normal(size=(queries, books * width)), np.reshape(parts, (images, -1)))):
        q = q.astype(np.float32)
        scores = score(q, codes, c)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, q @ whole.T, atol=1e-4)
        np.testing.assert_array_equal(score(q, codes[::-1], c), scores[:, ::-1])


# ---------------------------------------------------------------- names and lines

NAMES = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
POSITIVE = st.floats(0, 1000) | st.integers(0, 100)


@given(data_set=NAMES, notes=NAMES, codebooks=st.integers(1, 8), fixed=st.booleans(), margin=POSITIVE, gamma=POSITIVE,
       lambda_=POSITIVE)
def test_an_experiment_s_name_holds_its_settings(data_set, notes, codebooks, fixed, margin, gamma, lambda_):
    name = experiment_name(data_set, "WSDQH", codebooks, margin_form(gamma, margin if fixed else None), lambda_, notes)
    start, loss, size, form, value, *tail = name.split("_")
    if fixed:
        assert form == "fixMargin"
        assert float(value.removeprefix("margin=")) == margin
    else:
        assert form == "adaMargin"
        assert float(value.removeprefix("gamma=")) == gamma
    assert (start, loss, size) == (data_set, "WSDQH", f"nbits={8 * codebooks}")
    assert float(tail[0].removeprefix("lambda=")) == lambda_
    assert tail[1:] == [notes]
    assert "/" not in name


LINES = st.lists(st.one_of(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\0")),
                           st.binary(max_size=9).map(lambda raw: os.fsdecode(raw.replace(b"\n", b"")))),
                 min_size=1, max_size=8)


@given(lines=LINES, data=st.data())
def test_lines_on_the_disk_are_a_list(tmp_path, lines, data):
    write_lines(tmp_path / "lines.txt", lines)
    found = Lines(tmp_path / "lines.txt")
    assert list(found) == lines
    row = data.draw(st.integers(-len(lines), len(lines) - 1))
    assert found[row] == lines[row]
    for row in (len(lines), -len(lines) - 1):
        with pytest.raises(IndexError):
            found[row]


def index_of_words(groups):
    embeddings = np.random.default_rng(0).normal(size=(len(groups), 5)).astype(np.float32)
    content = index.Content(None, None, [], groups, embeddings, None, [], {})
    return index.Index("there", content, None), embeddings


WORDS = st.lists(TAGS, min_size=1, max_size=6, unique=True)


@given(words=WORDS, text=st.text(max_size=12))
def test_words_that_are_not_known_are_refused_by_name(words, text):
    made, _ = index_of_words([words])
    unknown = [word for word in text.split() if word not in words and word.lower() not in words]
    if text.split() and not unknown:
        assert made.words(text).shape == (5,)
        return
    with pytest.raises(UserError) as caught:
        made.words(text)
    assert not unknown or repr(unknown[0].lower()) in str(caught.value)
