"""The searchable index: scores, rankings, files."""
import shutil
import subprocess
import sys

import numpy as np
import pytest

import oracles
from retrieval import faiss_engine, index, lines, manifest
from util import ROOT, UserError, stream

N, D, T = 700, 300, 12


def make_content(codebooks=2, images=N, seed=0):
    rng = stream(seed, "index test")
    return index.Content(
        codes=rng.integers(0, 256, (images, codebooks), dtype=np.uint8),
        codebooks=rng.normal(size=(codebooks, 256, D)).astype(np.float32),
        images=[f"some folder/{i}.jpg" for i in range(images)],
        tag_names=[[f"tag{i}", f"tags{i}"] for i in range(T)],
        tag_embeddings=rng.normal(size=(T, D)).astype(np.float32),
        labels=rng.integers(0, 2, (images, 3), dtype=np.uint8), label_names=["a", "b", "c"],
        facts={"seed": seed, "images": "/photos"})


def dense_scores(queries, content):
    return queries @ (oracles.one_hot(content.codes) @ content.codebooks.reshape(-1, D)).T


def queries(count=9):
    return stream(1, "queries").normal(size=(count, D)).astype(np.float32)


def assert_same_ranking(rows, scores, dense):
    """Rows are the best of `dense` in order, but for the order among scores that differ by less than 1e-3."""
    best = -np.sort(-dense, axis=1)[:, :rows.shape[1]]
    np.testing.assert_allclose(np.take_along_axis(dense, rows, 1), best, atol=1e-3)
    np.testing.assert_allclose(scores, best, rtol=1e-4, atol=1e-4)
    assert all(len(set(row)) == len(row) for row in rows)


@pytest.fixture(params=["faiss", "numpy"])
def engine(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(faiss_engine, "faiss", None)
    else:
        pytest.importorskip("faiss")
    return request.param


@pytest.mark.parametrize(("codebooks", "words", "length"), [(12, 16, 12), (5, 2, 7), (3, 256, 4)])
def test_a_product_quantizer_ranks_by_the_products_of_segments(tmp_path, engine, codebooks, words, length):
    rng = stream(words, "index test")
    content = make_content()
    content.codes = rng.integers(0, words, (N, codebooks), dtype=np.uint8)
    content.codebooks = rng.normal(size=(codebooks, words, length)).astype(np.float32)
    content.tag_names, content.tag_embeddings = [], np.empty((0, codebooks * length), np.float32)
    asked = rng.normal(size=(9, codebooks * length)).astype(np.float32)
    reconstructed = np.hstack([content.codebooks[m][content.codes[:, m]] for m in range(codebooks)])
    index.save(tmp_path, content)
    scores, rows = index.load(tmp_path).search(asked, 50)
    assert_same_ranking(rows, scores, asked @ reconstructed.T)


@pytest.mark.parametrize("codebooks", [1, 2, 3, 4])
def test_scores_and_rankings_are_those_of_the_dense_product(tmp_path, engine, codebooks):
    content = make_content(codebooks)
    scores, rows = index.save(tmp_path, content).search(queries(), 50)
    assert scores.dtype == np.float32
    assert_same_ranking(rows, scores, dense_scores(queries(), content))


def test_equal_scores_come_in_the_order_of_their_rows(tmp_path, engine):
    content = make_content()
    content.codes[:] = content.codes[:3].repeat(N // 3 + 1, 0)[:N]
    _, rows = index.save(tmp_path, content).search(queries(1), N)
    ranked = content.codes[rows[0]]
    for code in np.unique(content.codes, axis=0):
        assert (np.diff(rows[0][(ranked == code).all(1)]) > 0).all()


def test_blocks_change_nothing_in_numpy_s_search(monkeypatch):
    content = make_content()
    whole = index.search_numpy(queries(), content.codes, content.codebooks, 30)
    monkeypatch.setattr(index, "BLOCK", 17)
    for a, b in zip(whole, index.search_numpy(queries(), content.codes, content.codebooks, 30), strict=True):
        np.testing.assert_array_equal(a, b)


def test_looking_into_every_list_gives_the_flat_result(tmp_path):
    pytest.importorskip("faiss")
    content = make_content(images=5000)
    flat = index.save(tmp_path / "flat", content).search(queries(), 40)
    listed = index.save(tmp_path / "lists", content, inverted_lists=16)
    for made in (listed, index.load(tmp_path / "lists")):
        scores, rows = made.search(queries(), 40, probes=16)
        np.testing.assert_allclose(scores, flat[0], rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(np.sort(rows), np.sort(flat[1]))
    few, _ = listed.search(queries(), 40, probes=1)
    assert (few <= flat[0] + 1e-4).all()


@pytest.mark.parametrize("codebooks", [1, 2, 8])
def test_an_image_goes_to_the_list_whose_centre_is_nearest_to_it(codebooks):
    content = make_content(codebooks)
    content.codes[N // 2:] = content.codes[:N - N // 2]
    centres = 2 * queries(64)
    assigned = faiss_engine.nearest_centres(content.codes, content.codebooks, centres)
    reconstructed = oracles.one_hot(content.codes) @ content.codebooks.reshape(-1, D)
    squares = np.square(reconstructed[:, None] - centres).sum(2)  # (N, 64)
    np.testing.assert_allclose(squares[np.arange(N), assigned], squares.min(1), rtol=1e-5)


def test_a_list_with_too_few_images_gives_minus_one_at_the_end(tmp_path):
    pytest.importorskip("faiss")
    made = index.save(tmp_path, make_content(images=300), inverted_lists=64)
    _, rows = made.search(queries(), 300, probes=1)
    assert (rows[:, -1] == -1).all()
    assert (rows[:, 0] >= 0).all()


def test_an_index_survives_a_round_trip(tmp_path, engine):
    content = make_content()
    saved = index.save(tmp_path, content)
    loaded = index.load(tmp_path)
    for a, b in zip(saved.search(queries(), 20), loaded.search(queries(), 20), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(loaded) == N
    assert list(loaded.content.images) == content.images
    assert str(loaded.image_path(3)) == "/photos/some folder/3.jpg"
    assert loaded.content.tag_names == content.tag_names
    np.testing.assert_array_equal(loaded.content.labels, content.labels)


def test_an_index_made_without_faiss_is_searched_with_it(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    with monkeypatch.context() as patch:
        patch.setattr(faiss_engine, "faiss", None)
        slow = index.save(tmp_path, make_content()).search(queries(), 20)
    fast = index.load(tmp_path)
    assert fast.engine is not None
    np.testing.assert_array_equal(fast.search(queries(), 20)[1], slow[1])


def test_a_flipped_bit_in_any_file_is_detected_at_load(tmp_path):
    index.save(tmp_path, make_content(images=300))
    paths = sorted(path for path in tmp_path.iterdir() if path.name != ".lock")
    assert len(paths) >= 6
    for path in paths:
        sound = path.read_bytes()
        for at in (0, len(sound) // 2, len(sound) - 2):
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 4]) + sound[at + 1:])
            with pytest.raises(UserError, match=path.name):
                index.load(tmp_path)
        path.write_bytes(sound)
    index.load(tmp_path)


def test_a_file_that_is_missing_is_named(tmp_path):
    index.save(tmp_path, make_content())
    (tmp_path / "codes-1.npy").unlink()
    with pytest.raises(UserError, match=r"codes-1\.npy: no such file"):
        index.load(tmp_path)
    with pytest.raises(UserError, match="expected an index, found no manifest"):
        index.load(tmp_path / "nothing")


def test_a_writing_that_is_cut_off_leaves_the_old_index(tmp_path, monkeypatch):
    index.save(tmp_path, make_content(seed=0))
    before = index.load(tmp_path).content.codes

    def crash(*_):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write_json", crash)
        with pytest.raises(KeyboardInterrupt):
            index.save(tmp_path, make_content(seed=1))
    np.testing.assert_array_equal(index.load(tmp_path).content.codes, before)
    index.save(tmp_path, make_content(seed=1))
    assert not np.array_equal(index.load(tmp_path).content.codes, before)
    assert len({path.name.split("-")[1].split(".")[0] for path in tmp_path.iterdir() if "-" in path.name}) == 1


@pytest.mark.parametrize(("spoil", "sentence"), [
    (lambda c: setattr(c, "codebooks", c.codebooks[:, :200]), r"K a power of 2 up to 256, found \(2, 200, 300\)"),
    (lambda c: setattr(c, "codebooks", c.codebooks[:, :64]), "expected codes below 64, found 255"),
    (lambda c: c.codebooks.__setitem__((1, 7, 3), np.nan), "NaN"),
    (lambda c: setattr(c, "codes", c.codes[:, :1]), r"codes of shape \(N, 2\)"),
    (lambda c: setattr(c, "codes", c.codes.astype(np.int64)), "uint8"),
    (lambda c: c.images.__setitem__(0, "a\nb.jpg"), "line break"),
])
def test_what_does_not_fit_is_refused_before_faiss_takes_it_in_silence(tmp_path, spoil, sentence):
    content = make_content()
    spoil(content)
    with pytest.raises(UserError, match=sentence):
        index.save(tmp_path, content)


def test_more_lists_than_images_are_refused(tmp_path):
    pytest.importorskip("faiss")
    with pytest.raises(UserError, match="11 lists and 10 images"):
        index.save(tmp_path, make_content(images=10), inverted_lists=11)


def test_words_are_the_normalised_mean_of_their_tags(tmp_path):
    content = make_content()
    made = index.save(tmp_path, content)
    units = content.tag_embeddings / np.linalg.norm(content.tag_embeddings, axis=1, keepdims=True)
    mean = (units[3] + units[5]) / 2
    np.testing.assert_allclose(made.words("tags3 TAG5"), mean / np.linalg.norm(mean), rtol=1e-5)
    with pytest.raises(UserError, match=r"'tga3' is none of the 24 tags.*spelt most like it: tag3"):
        made.words("tag1 tga3")
    with pytest.raises(UserError, match="one or more words"):
        made.words("  ")


def test_tags_come_by_cosine(tmp_path):
    content = make_content()
    rows, cosines = index.save(tmp_path, content).tags(3 * content.tag_embeddings[7])
    assert rows[0] == 7
    assert cosines[0] == pytest.approx(1)
    assert (np.diff(cosines) <= 0).all()


def test_lists_are_for_more_than_a_million_images_and_at_most_8192():
    assert [index.default_inverted_lists(n) for n in (10, 10**6, 2 * 10**6, 10**9)] == [0, 0, 4096, 8192]


def test_the_index_needs_no_tensorflow():
    code = "import sys; from retrieval import index; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_index_may_be_moved(tmp_path):
    index.save(tmp_path / "a", make_content())
    shutil.move(tmp_path / "a", tmp_path / "b c")
    assert len(index.load(tmp_path / "b c")) == N


def test_lines_are_found_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LETTERS_AT_ONCE", 4)
    written = ["", "a", "bcd", "é with blanks ", "", "the end"]
    (tmp_path / "lines").write_text("".join(f"{line}\n" for line in written))
    assert list(lines.Lines(tmp_path / "lines")) == written
