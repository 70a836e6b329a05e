"""tag_processing.py and word_vectors.py: against slow oracles, gensim's own files, and as real programs."""
import gzip
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from gensim.models import KeyedVectors

import oracles
import tag_processing
from dataset import read_merge_map, read_tag_embeddings, read_tag_names
from tags import graph
from tags.trained_vectors import train_vectors
from tags.word_vectors import find_vectors, read_vectors, spellings
from tiny import call_apart
from util import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the folder shared/ beside the repository")


# ---------------------------------------------------------------- helpers

def random_vectors(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 300)).astype(np.float32)


def clustered(count, dimensions, seed=0):
    """Vectors of which many are near each other, at all distances, of different lengths."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count // 4 + 1, dimensions))[rng.integers(0, count // 4 + 1, count)]
    spread = rng.uniform(0.02, 0.6, (count, 1))
    return (centres + spread * rng.normal(size=centres.shape)) * rng.uniform(0.5, 5, (count, 1))


def write_binary(path, words, vectors, count=None, behind=b""):
    body = b"".join(word.encode() + b" " + vector.astype("<f4").tobytes() + behind
                    for word, vector in zip(words, vectors, strict=True))
    data = f"{len(words) if count is None else count} {vectors.shape[1]}\n".encode() + body
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def text_rows(words, vectors):
    return "".join(f"{word} {' '.join(map(str, vector.tolist()))}\n"
                   for word, vector in zip(words, vectors, strict=True))


def make_dataset(root, tags, image_tags):
    """data/pets under `root`; `image_tags` lists each training image's tags. Returns its folder."""
    folder = root / "data" / "pets"
    folder.mkdir(parents=True)
    (folder / "common_tags.txt").write_text("".join(f"{tag}\n" for tag in tags))
    (folder / "train_tag.txt").write_text(
        "".join(" ".join("01"[tag in own] for tag in tags) + "\n" for own in image_tags))
    return folder


def run(root, *arguments, **environment):
    return subprocess.run([sys.executable, REPOSITORY / "tag_processing.py", *map(str, arguments), "--root", root],
                          capture_output=True, text=True, cwd=root, env={**os.environ, **environment})


@pytest.fixture
def run_in_process(pets, monkeypatch, capsys):
    """The program on the pets data set in this process: its exit code, and what it wrote to stderr."""
    def run(*arguments):
        monkeypatch.chdir(pets)
        code, _, errors = call_apart(monkeypatch, capsys, tag_processing, *arguments, "--root", pets)
        return code, errors
    return run


TAGS = ["dog", "cat", "qzx", "dogs", "newyork", "rain"]
IMAGES = [["dog", "dogs"], ["cat", "rain"], ["newyork"], ["qzx"]]


@pytest.fixture
def pets(tmp_path):
    """A data set whose tags dog and dogs have nearly the same vector, and whose tag qzx has none."""
    vectors = random_vectors(5)
    vectors[1] = vectors[0] + 0.1 * vectors[1]
    make_dataset(tmp_path, TAGS, IMAGES)
    write_binary(tmp_path / "v.bin", ["dog", "dogs", "Cat", "New_York", "rain"], vectors)
    return tmp_path


# ---------------------------------------------------------------- reading word vectors

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


def damaged(name):
    """The bytes of a word-vector file with one fault, and the words its error must hold."""
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
    }[name]


@pytest.mark.parametrize("name", [
    "truncated.bin", "in_a_word.bin", "too_long.bin", "garbage.bin", "empty.bin", "dimension.bin", "nan.bin",
    "inf.bin", "truncated.bin.gz", "flipped.bin.gz", "not_zipped.bin.gz", "not_zipped.txt.gz", "truncated.txt",
    "garbage.txt", "missing_rows.txt", "extra_rows.vec", "dimension.txt", "narrow.txt", "wide.txt", "no_number.txt",
    "nan.txt", "vectors.npy"])
def test_a_damaged_file_is_refused_with_its_name_and_the_place(tmp_path, name):
    content, told = damaged(name)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_vectors(tmp_path / name, {"dog", "cat"})
    for words in [str(tmp_path / name), *told]:
        assert words in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.bin: no such file"):
        read_vectors(tmp_path / "absent.bin", {"dog"})


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


def test_the_best_spelling_wins_wherever_it_stands_in_the_file(tmp_path):
    words = ["New_York", "NEWYORK", "Newyork", "newyork"]
    for order in itertools.permutations(words):
        _, spelled = find_vectors(["newyork"], write_binary(tmp_path / "v.bin", order, random_vectors(4)))
        assert spelled == ["newyork"]


def test_a_vector_of_zeros_counts_as_none(tmp_path):
    vectors = random_vectors(2)
    vectors[0] = 0
    _, spelled = find_vectors(["dog", "cat"], write_binary(tmp_path / "v.bin", ["dog", "cat"], vectors))
    assert spelled == [None, "cat"]


# ---------------------------------------------------------------- training word vectors

def topical_tags(images=300, seed=0):
    """Tags of three topics, four tags each, and one tag that no image has; each image has two or more of a topic."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((images, 13), np.uint8)
    for image in labels:
        topic = rng.integers(3)
        image[4 * topic + rng.permutation(4)[:rng.integers(2, 5)]] = 1
    return [f"topic{i // 4}{'abcd'[i % 4]}" for i in range(12)] + ["unused"], scipy.sparse.csr_array(labels)


def test_trained_vectors_bring_tags_together_that_stand_together():
    tags, labels = topical_tags()
    vectors, spelled = train_vectors(tags, labels, seed=0)
    assert vectors.dtype == np.float32
    assert spelled == [*tags[:12], None]
    assert not vectors[12].any()
    unit = vectors[:12] / np.linalg.norm(vectors[:12], axis=1, keepdims=True)
    cosines = unit @ unit.T
    same = np.kron(np.eye(3), np.ones((4, 4))) == 1
    assert cosines[same].min() > cosines[~same].max() + 0.3


def test_training_without_any_tag_is_refused():
    with pytest.raises(UserError, match="no training image has a tag"):
        train_vectors(["a", "b"], scipy.sparse.csr_array((4, 2), dtype=np.uint8), seed=0)


@pytest.mark.slow
def test_training_depends_on_the_seed_and_on_nothing_else(tmp_path):
    tags, labels = topical_tags()
    folder = make_dataset(tmp_path, tags, [[tags[c] for c in np.flatnonzero(row)] for row in labels.toarray()])
    written = []
    for seed, hash_seed in ((3, "1"), (3, "2"), (4, "1")):
        done = run(tmp_path, "pets", "train", "cpu", "--seed", seed, PYTHONHASHSEED=hash_seed)
        assert done.returncode == 0, done.stderr
        written.append((folder / "tags" / "FinalTagEmbs.txt").read_bytes())
    assert written[0] == written[1]
    assert written[0] != written[2]


# ---------------------------------------------------------------- the method against the oracles

@pytest.mark.parametrize(("count", "k", "tau"), [
    (1, 5, 0.7), (2, 1, 0.0), (4, 9, 0.5), (60, 1, 0.5), (60, 5, 0.0), (60, 5, 0.9), (60, 59, 0.3),
    (graph.BLOCK_ROWS + 80, 3, 0.6)])
def test_the_graph_is_the_oracles(count, k, tau):
    v = clustered(count, 8)
    links = graph.correlation_graph(graph.normalise(v), k, tau)
    expected = np.zeros((count, count))
    for i, members in enumerate(oracles.neighbours(v, k, tau)):
        expected[i, sorted(members)] = 1 / len(members)
    np.testing.assert_array_equal(links.toarray() > 0, expected > 0)
    np.testing.assert_allclose(links.toarray(), expected, rtol=1e-14)


def test_the_sizes_tried_have_many_edges_and_lack_many():
    v = graph.normalise(clustered(60, 8))
    assert 60 < graph.correlation_graph(v, 5, 0.5).nnz < 60 * 6


@pytest.mark.parametrize("eps", [0.005, 0.02, 0.1, 0.3])
def test_groups_are_the_oracles_and_noise_stays(eps):
    v = clustered(200, 8, seed=1)
    groups = graph.merge_groups(graph.normalise(v), eps)
    assert groups == oracles.dbscan_groups(v, eps)
    assert sorted(itertools.chain(*groups)) == list(range(200))
    assert 1 < len(groups) < 200
    assert any(len(group) == 1 for group in groups)


def test_points_that_are_all_noise_are_all_kept():
    assert graph.merge_groups(np.eye(7), 0.5) == [[i] for i in range(7)]


def test_groups_are_ordered_by_their_first_row():
    a, b, c = np.eye(3)
    assert graph.merge_groups(np.array([a, b, c, b, a]), 0.01) == [[0, 4], [1, 3], [2]]


def test_lengths_of_word_vectors_do_not_matter():
    short, long = np.array([[1.0, 0.2], [0.9, 0.3]]), np.array([[1.0, 0.2], [90, 30]])
    for v in (short, long):
        unit = graph.normalise(v)
        w = graph.merged_embeddings(unit, [[0, 1]])
        np.testing.assert_allclose(w, oracles.merged_embeddings(short, [[0, 1]]), rtol=1e-12)


def test_merge_map_keys_follow_the_lowest_raw_column_and_minus_one_lists_the_dropped():
    found = np.array([1, 2, 4, 5, 7])
    groups = [[0, 3], [1], [2, 4]]
    merge_map = graph.make_merge_map(groups, found, 8)
    assert merge_map == {0: [1, 5], 1: [2], 2: [4, 7], -1: [0, 3, 6]}
    assert list(merge_map)[:3] == [0, 1, 2]
    assert {type(column) for columns in merge_map.values() for column in columns} == {int}


def test_minus_one_is_left_out_when_nothing_was_dropped():
    assert graph.make_merge_map([[0], [1]], np.array([0, 1]), 2) == {0: [0], 1: [1]}


# ---------------------------------------------------------------- the program

def test_the_files_hold_what_the_oracles_compute(tmp_path, run_here):
    count = 120
    v = clustered(count, 300, seed=2).astype(np.float32)
    tags = [f"tag{i}" for i in range(count)]
    folder = make_dataset(tmp_path, tags, [tags])
    write_binary(tmp_path / "v.bin.gz", tags, v)
    code, output = run_here("tag_processing.py", "pets", tmp_path / "v.bin.gz", 0, "--neighbors", 3, "--threshold", 0.8,
                            "--merge-radius", 0.03, "--root", tmp_path)
    assert code == 0, output
    enhanced = oracles.enhanced(np.float64(v), 3, 0.8)
    groups = oracles.dbscan_groups(enhanced, 0.03)
    assert 1 < len(groups) < count
    assert read_merge_map(folder / "tags" / "TagIdMergeMap.pkl", count) == groups
    np.testing.assert_allclose(read_tag_embeddings(folder / "tags" / "FinalTagEmbs.txt"),
                               oracles.merged_embeddings(enhanced, groups), atol=1e-7)
    edges = sum(len(members) - 1 for members in oracles.neighbours(np.float64(v), 3, 0.8))
    report = json.loads((folder / "tags" / "report.json").read_text())
    assert (report["edges"], report["merged_tags"]) == (edges, len(groups))


def test_a_run_reports_and_writes_what_became_of_each_tag(pets, monkeypatch, capsys):
    code, printed, errors = call_apart(monkeypatch, capsys, tag_processing, "pets", pets / "v.bin", 0, "--root", pets)
    assert (code, errors) == (0, "")
    folder = pets / "data" / "pets" / "tags"
    with open(folder / "TagIdMergeMap.pkl", "rb") as file:
        assert pickle.load(file) == {0: [0, 3], 1: [1], 2: [4], 3: [5], -1: [2]}
    embeddings = read_tag_embeddings(folder / "FinalTagEmbs.txt")
    assert embeddings.shape == (4, 300)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    report = json.loads((folder / "report.json").read_text())
    assert (report["raw_tags"], report["found"], report["edges"], report["merged_tags"]) == (6, 5, 2, 4)
    assert report["missing"] == ["qzx"]
    assert report["respelled"] == {"cat": "Cat", "newyork": "New_York"}
    assert report["merged_groups"] == [["dog", "dogs"]]
    assert report["options"]["neighbors"] == 5
    for shown in ("raw tags          6", "found             5", "missing           1", "    qzx",
                  "edges             2", "merged tags       4", "    dog, dogs"):
        assert shown in printed


def test_without_the_graph_every_found_tag_keeps_its_own_direction(pets, run_in_process):
    assert run_in_process("pets", "v.bin", "0", "--no-graph") == (0, "")
    folder = pets / "data" / "pets" / "tags"
    assert read_merge_map(folder / "TagIdMergeMap.pkl", 6) == [[0], [1], [3], [4], [5]]
    words = read_vectors(pets / "v.bin", {"dog", "Cat", "dogs", "New_York", "rain"})
    expected = [oracles.mean_direction([words[w]]) for w in ("dog", "Cat", "dogs", "New_York", "rain")]
    np.testing.assert_allclose(read_tag_embeddings(folder / "FinalTagEmbs.txt"), expected, atol=1e-7)


def test_two_processes_write_the_same_bytes(pets, run_in_process):
    folder = pets / "data" / "pets" / "tags"
    written = []
    for code in (lambda *arguments: run(pets, *arguments).returncode, lambda *arguments: run_in_process(*arguments)[0]):
        assert code("pets", "v.bin", "0") == 0
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert set(written[0]) == {"FinalTagEmbs.txt", "TagIdMergeMap.pkl", "report.json"}
    assert written[0] == written[1]


def spoil(root, fault):
    """Put one fault into the pets data set; returns the program's arguments."""
    folder = root / "data" / "pets"
    if fault == "repeated tag":
        (folder / "common_tags.txt").write_text("dog\ncat\nqzx\ndog\nnewyork\ncat\n")
    elif fault == "widths":
        (folder / "common_tags.txt").write_text("dog\ncat\n")
    elif fault == "no matrix":
        (folder / "train_tag.txt").unlink()
    elif fault == "no tag list":
        (folder / "common_tags.txt").unlink()
    elif fault == "no tag found":
        write_binary(root / "v.bin", ["unrelated"], random_vectors(1))
    elif fault == "no tagged image":
        (folder / "train_tag.txt").write_text("0 0 0 0 0 0\n")
    elif fault == "truncated":
        (root / "v.bin").write_bytes((root / "v.bin").read_bytes()[:-1])
    return {"unknown data set": ["birds", "v.bin", "0"], "no vectors": ["pets", "absent.bin", "0"],
            "gpu": ["pets", "v.bin", "first"], "no tagged image": ["pets", "train", "0"],
            "threshold": ["pets", "v.bin", "0", "--threshold", "1.5"],
            "radius": ["pets", "v.bin", "0", "--merge-radius", "0"],
            "neighbors": ["pets", "v.bin", "0", "--neighbors", "0"],
            "limit": ["pets", "v.bin", "0", "--limit", "-1"]}.get(fault, ["pets", "v.bin", "0"])


@pytest.mark.parametrize(("fault", "told"), [
    ("unknown data set", "unknown data set 'birds'"),
    ("no vectors", "absent.bin: no such file"),
    ("repeated tag", "expected each tag once, found more than once: dog, cat"),
    ("widths", "has 6 columns, but"),
    ("no matrix", "train_tag.txt: no such file"),
    ("no tag list", "no tag list"),
    ("no tag found", "none of the 6 tags"),
    ("no tagged image", "no training image has a tag"),
    ("truncated", "row 5: expected 5 vectors"),
    ("gpu", "expected a GPU number"),
    ("threshold", "expected a number from 0 to 1"),
    ("radius", "expected a number from"),
    ("neighbors", "expected a whole number of at least 1"),
    ("limit", "expected a whole number of at least 1"),
])
def test_bad_input_ends_in_one_sentence_and_exit_code_2(pets, run_in_process, fault, told):
    code, errors = run_in_process(*spoil(pets, fault))
    assert code == 2
    assert told in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert not (pets / "data" / "pets" / "tags").exists()


def test_help_tells_the_defaults_and_loads_no_heavy_library(tmp_path):
    done = subprocess.run([sys.executable, "-X", "importtime", REPOSITORY / "tag_processing.py", "--help"],
                          capture_output=True, text=True)
    assert done.returncode == 0
    for default in ("default 5", "default 0.75", "default 0.05", "default: all", "default 0)"):
        assert default in done.stdout
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "numpy" in loaded  # importtime did list modules
    assert not loaded & {"sklearn", "gensim", "tensorflow"}


def test_the_script_serves_both_released_data_sets_from_any_folder(tmp_path):
    project = tmp_path / "project"
    (project / "scripts").mkdir(parents=True)
    for source in [*REPOSITORY.glob("*.py"), *REPOSITORY.glob("storage/*.py"), *REPOSITORY.glob("scripts/*.sh")]:
        (project / source.relative_to(REPOSITORY)).parent.mkdir(exist_ok=True)
        shutil.copy(source, project / source.relative_to(REPOSITORY))
    python = project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for folder, tag_list in (("flickr25k", "common_tags.txt"), ("nus-wide", "TagList1k.txt")):
        (project / "data" / folder).mkdir(parents=True)
        (project / "data" / folder / tag_list).write_text("dog 12\ncat 7\n")
        (project / "data" / folder / "train_tag.txt").write_text("0 1\n1 0\n")
    (project / "datasets").mkdir()
    write_binary(project / "datasets" / "GoogleNews-vectors-negative300.bin.gz", ["dog", "cat"], random_vectors(2))
    done = subprocess.run(["bash", project / "scripts" / "tag_processing.sh", "0"], capture_output=True, text=True,
                          cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for folder in ("flickr25k", "nus-wide"):
        assert read_tag_embeddings(project / "data" / folder / "tags" / "FinalTagEmbs.txt").shape == (2, 300)


@needs_shared
def test_the_defaults_merge_synonyms_on_nus_wides_list(tmp_path, run_here):
    folder = tmp_path / "data" / "nus-wide"
    folder.mkdir(parents=True)
    shutil.copyfile(SHARED / "nus-wide" / "TagList1k.txt", folder / "TagList1k.txt")
    tags = read_tag_names(folder / "TagList1k.txt")
    (folder / "train_tag.txt").write_text(" ".join("1" * len(tags)) + "\n")
    code, output = run_here("tag_processing.py", "nuswide", SHARED / "vectors" / "glove300_nuswide_tags.bin", 0,
                            "--root", tmp_path)
    assert code == 0, output
    report = json.loads((folder / "tags" / "report.json").read_text())
    assert report["found"] == 1000
    assert abs(report["merged_tags"] - 928) <= 5  # the release's T
    groups = [set(group) for group in report["merged_groups"]]
    for synonyms in ({"photo", "photos"}, {"tree", "trees"}, {"color", "colour"}, {"bike", "bicycle"},
                     {"jail", "prison"}, {"film", "movie"}):
        assert synonyms in groups
    assert max(map(len, groups)) <= 7
