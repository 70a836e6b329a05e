"""tag_processing.py as people run it: what it writes and reports, and what it refuses."""
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import oracles
import tag_processing
from dataset import read_merge_map, read_tag_embeddings, read_tag_names
from tag_inputs import clustered, random_vectors, topical_tags, write_binary
from tags import graph
from tags.word_vectors import read_vectors
from tiny import call_apart
from util import unit_length

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the folder shared/ next to the repository")


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


# ---------------------------------------------------------------- the merge map

def test_merge_map_keys_follow_the_lowest_raw_column_and_minus_one_lists_the_dropped():
    found = np.array([1, 2, 4, 5, 7])
    groups = [[0, 3], [1], [2, 4]]
    merge_map = tag_processing.make_merge_map(groups, found, 8)
    assert merge_map == {0: [1, 5], 1: [2], 2: [4, 7], -1: [0, 3, 6]}
    assert list(merge_map)[:3] == [0, 1, 2]
    assert {type(column) for columns in merge_map.values() for column in columns} == {int}


def test_minus_one_is_left_out_when_nothing_was_dropped():
    assert tag_processing.make_merge_map([[0], [1]], np.array([0, 1]), 2) == {0: [0], 1: [1]}


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


def rewritten(name, text):
    return lambda root: (root / "data" / "pets" / name).write_text(text)


def removed(name):
    return lambda root: (root / "data" / "pets" / name).unlink()


PETS = ["pets", "v.bin", "0"]


@pytest.mark.parametrize(("spoil", "arguments", "sentence"), [
    (None, ["birds", "v.bin", "0"], "unknown data set 'birds'"),
    (None, ["pets", "absent.bin", "0"], "absent.bin: no such file"),
    (None, ["pets", "v.bin", "first"], "expected a GPU number"),
    (None, [*PETS, "--threshold", "1.5"], "expected a number from 0 to 1"),
    (None, [*PETS, "--merge-radius", "0"], "expected a number from"),
    (None, [*PETS, "--neighbors", "0"], "expected a whole number of at least 1"),
    (None, [*PETS, "--limit", "-1"], "expected a whole number of at least 1"),
    (rewritten("common_tags.txt", "dog\ncat\nqzx\ndog\nnewyork\ncat\n"), PETS,
     "expected each tag once, found more than once: dog, cat"),
    (rewritten("common_tags.txt", "dog\ncat\n"), PETS, "has 6 columns, but"),
    (removed("train_tag.txt"), PETS, "train_tag.txt: no such file"),
    (removed("common_tags.txt"), PETS, "no tag list"),
    (rewritten("train_tag.txt", "0 0 0 0 0 0\n"), ["pets", "train", "0"], "no training image has a tag"),
    (lambda root: write_binary(root / "v.bin", ["unrelated"], random_vectors(1)), PETS, "none of the 6 tags"),
    (lambda root: (root / "v.bin").write_bytes((root / "v.bin").read_bytes()[:-1]), PETS, "row 5: expected 5 vectors"),
])
def test_bad_input_ends_in_one_sentence_and_exit_code_2(pets, run_in_process, spoil, arguments, sentence):
    if spoil:
        spoil(pets)
    code, errors = run_in_process(*arguments)
    assert code == 2
    assert sentence in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert not (pets / "data" / "pets" / "tags").exists()


@pytest.fixture
def project(tmp_path):
    """A copy of the programs and scripts with both released data sets, of two tags each."""
    project = tmp_path / "project"
    (project / "scripts").mkdir(parents=True)
    for source in (source for pattern in ("*.py", "storage/*.py", "tags/*.py", "scripts/*.sh")
                   for source in REPOSITORY.glob(pattern)):
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
    return project


def test_the_script_serves_both_released_data_sets_from_any_folder(project, tmp_path):
    done = subprocess.run(["bash", project / "scripts" / "tag_processing.sh", "0"], capture_output=True, text=True,
                          cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for folder in ("flickr25k", "nus-wide"):
        assert read_tag_embeddings(project / "data" / folder / "tags" / "FinalTagEmbs.txt").shape == (2, 300)


def test_the_script_does_the_data_set_that_is_there_and_says_which_is_not(project):
    shutil.rmtree(project / "data" / "flickr25k")
    done = subprocess.run(["bash", project / "scripts" / "tag_processing.sh", "0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown data set 'flickr'" in done.stderr
    assert "error: no merged tags of flickr" in done.stderr
    assert read_tag_embeddings(project / "data" / "nus-wide" / "tags" / "FinalTagEmbs.txt").shape == (2, 300)


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


@needs_shared
def test_the_default_threshold_keeps_cat_and_dog_apart_by_google_news():
    """Two of NUS-WIDE's concepts, which 0.75, the threshold that suits GloVe, would merge."""
    words = (SHARED / "nus-wide" / "Concepts81.txt").read_text().split()
    unit = unit_length(np.loadtxt(SHARED / "googlenews" / "nuswide_81_wordvec.txt"))
    pets = [words.index("cat"), words.index("dog")]
    assert any(set(pets) <= set(group) for group in graph.merged_tags(unit, 5, 0.75, 0.05)[1])
    tau = graph.usual_threshold(unit)
    assert not any(set(pets) <= set(group) for group in graph.merged_tags(unit, 5, tau, 0.05)[1])


def test_as_many_merged_tags_are_left_as_asked_for(pets, monkeypatch, capsys):
    for count in (2, 4, 5):
        code, printed, errors = call_apart(monkeypatch, capsys, tag_processing, "pets", pets / "v.bin", 0,
                                           "--merged-to", count, "--root", pets)
        assert (code, errors) == (0, "")
        report = json.loads((pets / "data" / "pets" / "tags" / "report.json").read_text())
        assert report["merged_tags"] == count
        assert (f"asked for T = {count}, found {count} with tau {report['tau']:.4f} and eps {report['eps']:.4f}"
                in printed)
    code, printed, _ = call_apart(monkeypatch, capsys, tag_processing, "pets", pets / "v.bin", 0, "--merged-to", 9,
                                  "--root", pets)
    assert code == 0
    assert "asked for T = 9, found 5 with" in printed


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
