"""The searchable index: scores, rankings, files."""
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import oracles
import search
from indexes import D, N, make_content
from quantization import quantizer
from retrieval import faiss_index, index, manifest
from storage.files import fingerprint
from util import ROOT, UserError, stream, unit_length

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])}


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
        monkeypatch.setattr(faiss_index, "faiss", None)
    else:
        pytest.importorskip("faiss")
    return request.param


@pytest.mark.parametrize(("codebooks", "words", "length"), [(12, 16, 12), (5, 2, 7), (3, 256, 4)])
def test_a_product_quantizer_ranks_by_the_products_of_segments(tmp_path, engine, codebooks, words, length):
    rng = stream(words, "index test")
    content = make_content()
    content.codes, content.embeddings = rng.integers(0, words, (N, codebooks), dtype=np.uint8), None
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
    content.embeddings = None
    content.codes[:] = content.codes[:3].repeat(N // 3 + 1, 0)[:N]
    _, rows = index.save(tmp_path, content).search(queries(1), N)
    ranked = content.codes[rows[0]]
    for code in np.unique(content.codes, axis=0):
        assert (np.diff(rows[0][(ranked == code).all(1)]) > 0).all()


@pytest.mark.parametrize("topk", [1, 40, N])
def test_equal_scores_come_in_the_order_of_their_embeddings_cosines_where_these_are_kept(tmp_path, engine, topk):
    content = make_content()
    content.codes[:] = content.codes[:70].repeat(N // 70, 0)  # ten of each: within MOST_TIED
    made = index.save(tmp_path, content)
    cosines = content.embeddings.astype(np.float32) @ unit_length(queries()).T
    code_scores = quantizer.quantized_scores(queries(), content.codes, content.codebooks)
    for found in (made, index.load(tmp_path)):
        scores, rows = found.search(queries(), topk)
        for i, row in enumerate(rows):
            np.testing.assert_array_equal(row, np.lexsort((-cosines[:, i], -code_scores[i]))[:topk])
            np.testing.assert_allclose(scores[i], code_scores[i, row], rtol=1e-4, atol=1e-4)


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
    assigned = faiss_index.nearest_centres(content.codes, content.codebooks, centres)
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


def test_files_that_an_index_need_not_have_may_be_missing(tmp_path):
    save_photos(tmp_path)
    written_again(tmp_path, lambda content: [content["files"].pop(role) for role in
                                               ("fingerprints", "embeddings", "vocabulary")] and content.pop("vectors"))
    assert index.load(tmp_path).content.fingerprints is None


def test_an_index_that_is_written_again_while_it_is_read_is_read_as_it_is_then(tmp_path, monkeypatch):
    index.save(tmp_path, make_content(seed=0))
    read = manifest.read

    def read_and_be_slow(folder):
        found = read(folder)
        if found["generation"] == 1:
            with monkeypatch.context() as patch:
                patch.setattr(manifest, "read", read)
                index.save(tmp_path, make_content(seed=1))
        return found
    monkeypatch.setattr(manifest, "read", read_and_be_slow)
    assert index.load(tmp_path).content.facts["seed"] == 1


def test_an_index_that_is_open_answers_as_before_after_it_was_written_again(tmp_path, engine):
    index.save(tmp_path, make_content(seed=0))
    opened = index.load(tmp_path)
    before = opened.search(queries(), 20), opened.image_path(5), opened.directions([7])
    index.save(tmp_path, make_content(seed=1, images=300))
    after = opened.search(queries(), 20), opened.image_path(5), opened.directions([7])
    np.testing.assert_array_equal(before[0], after[0])
    assert before[1] == after[1]
    np.testing.assert_array_equal(before[2], after[2])


def test_an_index_made_without_faiss_is_searched_with_it(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    with monkeypatch.context() as patch:
        patch.setattr(faiss_index, "faiss", None)
        slow = index.save(tmp_path, make_content()).search(queries(), 20)
    fast = index.load(tmp_path)
    assert fast.engine is not None
    np.testing.assert_array_equal(fast.search(queries(), 20)[1], slow[1])


def test_a_flipped_bit_in_any_file_is_detected_at_load(tmp_path):
    index.save(tmp_path, make_content(images=300))
    paths = sorted(tmp_path.iterdir())
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
    content.vocabulary = None
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


def test_an_index_may_be_moved(tmp_path):
    index.save(tmp_path / "a", make_content())
    shutil.move(tmp_path / "a", tmp_path / "b c")
    assert len(index.load(tmp_path / "b c")) == N


def test_lines_are_found_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "BYTES_AT_ONCE", 4)
    written = ["", "a", "bcd", "é with blanks ", "", "the end"]
    (tmp_path / "lines").write_text("".join(f"{line}\n" for line in written))
    assert list(index.Lines(tmp_path / "lines")) == written


# ---------------------------------------------------------------- the folder

def test_other_files_in_the_folder_of_an_index_are_never_deleted(tmp_path):
    index.save(tmp_path, make_content(seed=0))
    for name in ("images-beach.jpg", "codes-secret.txt", "labels-7.npy"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "images-2019").mkdir()
    index.save(tmp_path, make_content(seed=1))
    assert {path.name for path in tmp_path.iterdir()} == {
        "images-beach.jpg", "codes-secret.txt", "labels-7.npy", "images-2019", "manifest.json",
        *(manifest.file_name(role, 2) for role in manifest.SUFFIXES if role != "engine" or faiss_index.faiss)}
    assert len(index.load(tmp_path)) == N


@pytest.mark.parametrize("name", ["images-beach.jpg", "codes-secret.txt", "notes.txt", "manifest.json.bak"])
def test_a_folder_of_other_files_is_refused_and_left_as_it_is(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"expected an index or an empty folder, found other files, such as '{name}'"):
        index.save(tmp_path, make_content())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_where_the_index_should_be_is_one_sentence(tmp_path):
    (tmp_path / "index").write_text("mine")
    with pytest.raises(UserError, match="index: expected a folder for the index, found a file"):
        index.save(tmp_path / "index", make_content())


def test_what_a_killed_first_writing_left_is_no_obstacle(tmp_path):
    for name in ("codes-1.npy", ".codebooks-1.npy.77.tmp", ".manifest.json.77.tmp"):
        (tmp_path / name).write_text("half")
    index.save(tmp_path, make_content())
    assert len(index.load(tmp_path)) == N


WRITE_IN_A_SECOND = """
import sys, time
from retrieval import index
from indexes import make_content
with index.writing(sys.argv[1]) as save:
    print("has the folder", flush=True)
    sys.stdin.readline()
    save(make_content(seed=1))
"""


def test_two_processes_cannot_write_one_index(tmp_path):
    index.save(tmp_path, make_content(seed=0))
    other = subprocess.Popen([sys.executable, "-c", WRITE_IN_A_SECOND, tmp_path], cwd=ROOT / "tests", text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT)
    assert other.stdout.readline() == "has the folder\n"
    with pytest.raises(UserError, match="another process is writing this index; wait until it has ended"):
        index.save(tmp_path, make_content(seed=2))
    assert index.load(tmp_path).content.facts["seed"] == 0
    other.communicate("\n")
    assert other.returncode == 0
    assert index.load(tmp_path).content.facts["seed"] == 1
    index.save(tmp_path, make_content(seed=2))
    assert index.load(tmp_path).content.facts["seed"] == 2


# ---------------------------------------------------------------- indexes that cannot be

def test_an_index_without_images_is_refused_before_anything_is_written(tmp_path):
    index.save(tmp_path, make_content())
    with pytest.raises(UserError, match="codes: expected at least one image, found none"):
        index.save(tmp_path, make_content(images=0))
    assert len(index.load(tmp_path)) == N


def product_content():
    """Codebooks as GPQ's: each encodes a segment of the query."""
    content = make_content()
    content.tag_names, content.tag_embeddings, content.embeddings = [], np.empty((0, 2 * D), np.float32), None
    return content


def test_inverted_lists_of_codebooks_of_segments_are_refused(tmp_path):
    pytest.importorskip("faiss")
    with pytest.raises(UserError, match="expected no inverted lists, as each of GPQ's codebooks encodes a segment"):
        index.save(tmp_path, product_content(), 16)
    index.save(tmp_path, make_content(codebooks=1), 16)  # one codebook is one segment


@pytest.mark.parametrize(("make", "length", "expected"), [
    (make_content, 2 * D, D), (product_content, D, 2 * D), (make_content, 7, D)])
def test_queries_of_another_length_are_refused(tmp_path, engine, make, length, expected):
    made = index.save(tmp_path, make())
    with pytest.raises(UserError, match=rf"expected queries of {expected} numbers, found .*\(3, {length}\)"):
        made.search(np.ones((3, length), np.float32), 5)


# ---------------------------------------------------------------- what someone wrote again, with checksums that agree

def save_photos(folder, **options):
    """An index as `search.py build` writes it."""
    content = make_content()
    content.facts |= {"crops": 1, "checkpoint": "/a/b.npy", "checkpoint_sha256": "0", "experiment": "b", "root": "/a",
                      "dataset": "x"}
    return index.save(folder, content, **options)


def written_again(folder, change):
    """Change the manifest after its checksums were made to agree with the files, and its own with the change."""
    content = json.loads((folder / "manifest.json").read_bytes())
    del content["sha256"]
    for file in content["files"].values():
        file["sha256"] = fingerprint(folder / file["name"])
    change(content)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({**content, "sha256": digest}))


@pytest.mark.parametrize("key", ["format", "generation", "count", "codebooks", "lists", "seed", "images", "tag_names",
                                 "label_names", "checkpoint", "checkpoint_sha256", "experiment", "root", "dataset"])
def test_a_manifest_without_a_key_is_one_sentence(tmp_path, key):
    save_photos(tmp_path)
    written_again(tmp_path, lambda content: content.pop(key))
    with pytest.raises(UserError, match=rf"manifest\.json: Object missing required field `{key}`$"):
        search.open_index(tmp_path)


@pytest.mark.parametrize(("key", "values"), [
    ("tag_names", [5, None, [5], ["sky"], [[]], [["sky", ""]], [["sky", 5]], {}]),
    ("label_names", [5, ["a", ""], "abc"]),
    ("images", [7, "", None, "../../../etc", "/photos/../etc", "a\0b", []]), ("generation", [0, -1, "1", True, 2**70]),
    ("lists", [-1, 0.0, None]), ("count", [0, "700"]), ("codebooks", [None, [2]]), ("seed", [-1, 2**40, "0"]),
    ("format", [2, True, "1"]), ("checkpoint", [None, 7, "", ["x"]]), ("checkpoint_sha256", [7]),
    ("experiment", [None]), ("root", [7, None]), ("dataset", [7, ""]), ("crops", [3, "10", None, True]),
    ("vectors", ["x.txt", None, {}, {"path": "", "bytes": 5}, {"path": "x"}])])
def test_a_manifest_with_a_value_of_another_kind_is_one_sentence(tmp_path, key, values):
    save_photos(tmp_path)
    sentence = rf"manifest\.json: (.* - at `\$\.{key}|{key}: expected .*, found)"
    for value in values:
        written_again(tmp_path, lambda content, value=value: content.update({key: value}))
        with pytest.raises(UserError, match=sentence) as error:
            search.open_index(tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "value", "sentence"), [
    ("count", 699, "count: expected 700, found 699"), ("codebooks", 3, "codebooks: expected 2, found 3"),
    ("tag_names", [["a"]], r"tag_embeddings-1\.npy: expected float32 of shape \(1, 300\).*found float32 \(12, 300\)"),
    ("label_names", ["a"], r"labels-1\.npy: expected uint8 of shape \(700, 1\), found uint8 \(700, 3\)"),
    ("vectors", None, r"got `null` - at `\$\.vectors`"),
    ("lists", 4, "lists 4, .* found kind IndexPQ|lists: expected 0")])
def test_a_manifest_that_does_not_fit_its_files_is_one_sentence(tmp_path, key, value, sentence):
    save_photos(tmp_path)
    written_again(tmp_path, lambda content: content.update({key: value}))
    with pytest.raises(UserError, match=sentence):
        index.load(tmp_path)


@pytest.mark.parametrize("name", ["../codes-1.npy", "/etc/passwd", "sub/codes-1.npy", "./codes-1.npy", ".", 7, None,
                                  "", "..", "a\0b", "nothing.npy"])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(tmp_path, name):
    save_photos(tmp_path / "index")
    shutil.copy(tmp_path / "index" / "codes-1.npy", tmp_path)
    written_again(tmp_path / "index", lambda content: content["files"]["codes"].update(name=name))
    with pytest.raises(UserError) as error:
        index.load(tmp_path / "index")
    expected = f"files: codes: expected the name 'codes-1.npy', found {name!r}" if isinstance(name, str) else (
        "Expected `str`, got")
    assert f"manifest.json: {expected}" in str(error.value)


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda content: content.pop("files"), "missing required field `files`"),
    (lambda content: content.update(files=[1]), "Expected `object`"),
    (lambda content: content["files"].pop("codes"), "found no codes"),
    (lambda content: content["files"].update(codes=[]), "Expected `object`"),
    (lambda content: content["files"]["codes"].pop("sha256"), "missing required field `sha256`")])
def test_a_manifest_without_sound_files_is_one_sentence(tmp_path, change, sentence):
    save_photos(tmp_path)
    written_again(tmp_path, change)
    with pytest.raises(UserError, match=rf"manifest\.json: .*{sentence}"):
        index.load(tmp_path)


@pytest.mark.parametrize(("name", "content", "sentence"), [
    ("images-1.txt", b"a.jpg\n" * 10, r"images-1\.txt: expected 700 names, one for each code, found 10"),
    ("images-1.txt", b"", "images-1.txt: expected 700 names, one for each code, found 0"),
    ("images-1.txt", b"a.jpg\n" * 5 + b"\n" + b"a.jpg\n" * 694, r"images-1\.txt: line 6: .* found an empty line"),
    ("codes-1.npy", np.zeros((700, 2), np.int8), "uint8 codes of shape"),
    ("codes-1.npy", np.zeros((0, 2), np.uint8), "expected at least one image, found none"),
    ("codes-1.npy", np.zeros((600, 2), np.uint8), "expected 600 names"),
    ("codebooks-1.npy", np.zeros((2, 256, 300)), "codebooks-1.npy: expected float32, found float64"),
    ("codebooks-1.npy", np.full((2, 256, 300), np.inf, np.float32), "codebooks-1.npy: expected finite numbers"),
    ("tag_embeddings-1.npy", np.zeros((12, 5), np.float32), r"found float32 \(12, 5\)"),
    ("tag_embeddings-1.npy", np.full((12, 300), np.nan, np.float32), "tag_embeddings-1.npy: expected finite numbers"),
    ("labels-1.npy", np.full((700, 3), 2, np.uint8), "labels-1.npy: expected 0 and 1, found 2"),
    ("fingerprints-1.npy", np.zeros((700, 3), np.int64), r"expected int64 of shape \(700, 7\), found int64 \(700, 3\)"),
    ("fingerprints-1.npy", np.zeros((700, 7)), r"fingerprints-1\.npy: expected int64 .* found float64"),
    ("embeddings-1.npy", np.zeros((700, 5), np.float16), r"expected float16 of shape \(700, 300\), found .*, 5\)"),
    ("embeddings-1.npy", np.zeros((700, 300), np.float32), r"expected float16 .*, found float32"),
    ("embeddings-1.npy", np.full((700, 300), np.nan, np.float16), r"embeddings-1\.npy: expected finite numbers"),
    ("vocabulary-1.npy", np.zeros((3, 5), np.uint64), r"expected uint64 of shape \(2, V\), found uint64 \(3, 5\)"),
    ("vocabulary-1.npy", np.zeros((2, 5)), r"vocabulary-1\.npy: expected uint64 .*, found float64")])
def test_a_file_that_does_not_fit_the_others_is_named(tmp_path, engine, name, content, sentence):
    save_photos(tmp_path)
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.save(tmp_path / name, content)
    written_again(tmp_path, lambda _: None)
    with pytest.raises(UserError, match=sentence):
        index.load(tmp_path)


@pytest.mark.parametrize("inverted_lists", [0, 8])
@pytest.mark.parametrize(("what", "sentence"), [
    ("no index", "expected an index of FAISS, found something else"), ("another kind", "found kind IndexFlat"),
    ("fewer codes", "expected FAISS's index with images 700, found images 600"),
    ("fewer codebooks", "dimensions 600, codebooks 2.*, found dimensions 300, codebooks 1"),
    ("other lists", "found .*lists 4")])
def test_a_file_of_faiss_that_does_not_fit_is_refused(tmp_path, inverted_lists, what, sentence):
    faiss = pytest.importorskip("faiss")
    content = save_photos(tmp_path, inverted_lists=inverted_lists).content
    codes, codebooks = content.codes, content.codebooks
    if what == "no index":
        (tmp_path / "engine-1.faiss").write_bytes(b"no index")
    else:
        engine = {"another kind": lambda: faiss.IndexFlatIP(2 * D),
                  "fewer codes": lambda: faiss_index.make(codes[:600], codebooks, inverted_lists, 0),
                  "fewer codebooks": lambda: faiss_index.make(codes[:, :1].copy(), codebooks[:1], inverted_lists, 0),
                  "other lists": lambda: faiss_index.make(codes, codebooks, 4, 0)}[what]()
        faiss.write_index(engine, str(tmp_path / "engine-1.faiss"))
    written_again(tmp_path, lambda _: None)
    with pytest.raises(UserError, match=rf"engine-1\.faiss: .*{sentence}"):
        index.load(tmp_path)


@pytest.mark.parametrize("codewords", [2, 16, 128])
def test_an_index_with_codes_of_few_bits_is_read_again(tmp_path, codewords):
    pytest.importorskip("faiss")
    content = make_content(5)
    content.codes %= codewords
    content.codebooks = content.codebooks[:, :codewords].copy()
    index.save(tmp_path, content)
    scores, rows = index.load(tmp_path).search(queries(), 20)
    dense = queries() @ quantizer.reconstruct(content.codes, content.codebooks).T
    assert_same_ranking(rows, scores, dense)


# ---------------------------------------------------------------- a full disk

@pytest.mark.parametrize("size", [30, 700_000])
def test_a_full_disk_is_one_sentence_with_the_file_and_nothing_half_written_stays(tmp_path, size):
    code = (f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, -1))\n"
            f"import util, pathlib; from retrieval import index; from indexes import make_content\n"
            f"content = make_content(images=100_000); content.images = [str(i) for i in range(100_000)]\n"
            f"util.run_program(lambda: index.save({str(tmp_path / 'index')!r}, content))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True,
                          env=ENVIRONMENT)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(rf"error: {tmp_path}/index/\w+-1\.\w+: it could not be written: .*\n", done.stderr), done.stderr
    assert not list((tmp_path / "index").iterdir())
    index.save(tmp_path / "index", make_content())
