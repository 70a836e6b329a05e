"""prepare/check.py on sound data sets and on ones that are spoilt in one way each."""
import json
import shutil

import numpy as np
import pytest
import scipy.sparse

from prepare import check as check_program
from storage.files import write_json
from tiny import QUERIES, TRAINING, call, make_tiny, run
from util import stream


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path)


@pytest.fixture
def check(tiny, capsys, monkeypatch):
    """A function that checks a data set: exit code, what was printed, the JSON report or None."""
    def run_check(name="tiny"):
        report = tiny / "report.json"
        report.unlink(missing_ok=True)
        code, printed = call(monkeypatch, capsys, check_program, name, "--root", tiny, "--json", report)
        return code, printed, json.loads(report.read_text()) if report.exists() else None
    return run_check


def splits(root):
    return root / "data" / "tiny"


def rewrite(name, change):
    def apply(root):
        path = splits(root) / name
        path.write_text(change(path.read_text()))
    return apply


def test_a_sound_data_set_as_people_check_it(tiny):
    tags = np.loadtxt(splits(tiny) / "train_tag.txt", int).sum(1)
    code, printed = run("prepare/check.py", "tiny", "--root", tiny, "--json", tiny / "report.json")
    assert code == 0
    assert "\nsound\n" in printed
    report = json.loads((tiny / "report.json").read_text())
    assert (report["sound"], report["findings"]) == (True, [])
    assert report["train"] == {"images": TRAINING, "rows": TRAINING, "columns": 6, "ones_of_an_image": {
        "min": tags.min(), "median": np.median(tags), "max": tags.max(), "mean": round(tags.mean(), 3), "none": 0}}
    assert report["test"]["images"] == QUERIES
    assert report["images_whose_tags_were_all_dropped"] == 1  # image 2, as tiny.py makes it
    assert "note: 5 merged tags; all tags of 1 training images were dropped" in printed
    assert report["queries_in_database"] == {"by_name": 0, "by_content": 0}


def test_split_files_alone_as_the_release_has_them(tiny, check):
    shutil.rmtree(splits(tiny) / "tags")
    for name in ("data", "datasets"):
        (tiny / name / "tiny").rename(tiny / name / "nus-wide")
    (tiny / "data/nus-wide/common_tags.txt").rename(tiny / "data/nus-wide/TagList1k.txt")
    code, printed, _ = check("nuswide")
    assert code == 0
    assert "note: no tags/ yet: run tag_processing.py" in printed


def test_a_data_set_without_labels(tiny, check):
    for path in (*splits(tiny).glob("database_*"), *splits(tiny).glob("test_*")):
        path.unlink()
    code, printed, report = check()
    assert code == 0
    assert "note: no split test" in printed
    assert "queries_in_train" in report


def copy_query(root):
    shutil.copy(root / "datasets/tiny/11.jpg", root / "datasets/tiny/4.jpg")


def list_query(root):
    for name, line in (("database_img.txt", "12.jpg"), ("database_label.txt", "1 0")):
        rewrite(name, lambda text, line=line: text + line + "\n")(root)


def make_tags_of_another_list(root):
    write_json(splits(root) / "tags" / "report.json", {"fingerprints": {"tag_list": "0" * 64}})


FINDINGS = {
    "copied query": (copy_query, "1 queries are also in database, under another name: 11.jpg is 4.jpg"),
    "listed query": (list_query, "1 queries are also in database: 12.jpg"),
    "image missing": (lambda root: (root / "datasets/tiny/3.jpg").unlink(), "cannot be used: 3.jpg is missing"),
    "image truncated": (lambda root: (root / "datasets/tiny/3.jpg").write_bytes(b"\xff\xd8\xff"),
                        "cannot be used: 3.jpg is truncated"),
    "no folder of images": (lambda root: shutil.rmtree(root / "datasets"), "13 of 13 images in"),
    "row missing": (rewrite("database_label.txt", lambda text: text[4:]), "has 9 rows, but"),
    "matrix missing": (lambda root: (splits(root) / "test_label.txt").unlink(), "test_label.txt: no such file"),
    "not 0 or 1": (rewrite("test_label.txt", lambda text: "2" + text[1:]), "expected 0 or 1, found '2'"),
    "tag list too short": (rewrite("common_tags.txt", lambda text: text[2:]), "the matrix of train has 6 columns, but"),
    "tag twice": (rewrite("common_tags.txt", lambda text: text.replace("b", "a")), "lists some names more than once"),
    "no tag list": (lambda root: (splits(root) / "common_tags.txt").unlink(), "no tag list"),
    "labels of other widths": (rewrite("test_label.txt", lambda _: "1 0 0\n" * QUERIES),
                               "database_label.txt has 2 columns, test_label.txt 3"),
    "label names": (lambda root: (splits(root) / "labels.txt").write_text("sea\n"), "the matrix of test has 2 columns"),
    "embeddings too few": (rewrite("tags/FinalTagEmbs.txt", lambda text: text[text.index("\n") + 1:]),
                           "holds 5 merged tags, but"),
    "merge map missing": (lambda root: (splits(root) / "tags/TagIdMergeMap.pkl").unlink(), "no such file"),
    "tags of another list": (make_tags_of_another_list, "was made from another tag list than"),
}


@pytest.mark.parametrize("case", FINDINGS)
def test_findings(tiny, check, case):
    spoil, sentence = FINDINGS[case]
    spoil(tiny)
    code, printed, report = check()
    assert code == 1
    assert any(sentence in finding for finding in report["findings"])
    assert report["sound"] is False
    assert f"\nnot sound: {len(report['findings'])} finding" in printed


def test_repeated_images_and_images_without_tags_are_notes(tiny, check):
    rewrite("train_img.txt", lambda text: text.replace("9.jpg", "8.jpg"))(tiny)
    rewrite("train_tag.txt", lambda text: "0 0 0 0 0 0\n" + text[12:])(tiny)
    rewrite("test_label.txt", lambda text: "0 0\n" + text[4:])(tiny)
    code, printed, report = check()
    assert (code, report["findings"]) == (0, [])
    assert "train_img.txt names 1 images more than once: 8.jpg" in printed
    assert "note: 1 training images have no tag" in printed
    assert "note: 1 images of test have no label" in printed


def test_a_data_set_that_cannot_be_read(tiny, check):
    code, printed, report = check("other")
    assert (code, report) == (2, None)
    assert printed.startswith("error: unknown data set 'other'")
    for path in splits(tiny).glob("*.txt"):
        path.unlink()
    code, printed, _ = check()
    assert code == 2
    assert printed == (f"error: {splits(tiny)}: expected train_img.txt, database_img.txt or test_img.txt, "
                       "found none\n")
    (splits(tiny) / "test_img.txt").write_bytes(b"\xff\n")
    code, printed, _ = check()
    assert code == 2
    assert printed.startswith(f"error: {splits(tiny) / 'test_img.txt'}: row 1: expected UTF-8 text")


def test_nothing_is_changed(tiny, check):
    before = {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    check()
    (tiny / "report.json").unlink()
    assert {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()} == before


def test_the_mean_margin_is_that_of_all_pairs_of_a_tag_that_an_image_has_and_one_that_it_has_not(tiny, check):
    rng = stream(0, "margin")
    tags, embeddings = (rng.random((9, 6)) < 0.3).astype(np.uint8), rng.normal(size=(6, 300)).astype(np.float32)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    slow = [1 - unit[i] @ unit[j] for row in tags for i in np.flatnonzero(row) for j in np.flatnonzero(row == 0)]
    assert check_program.mean_margin(scipy.sparse.csr_array(tags), embeddings) == pytest.approx(np.mean(slow), rel=1e-6)
    code, printed, report = check()
    assert code == 0
    assert f"mean margin {report['mean_margin']:.4f}: the embedding loss of WSDQH's first step" in printed
    assert "the release's" not in printed
