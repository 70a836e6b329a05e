"""What validation.py measures, and the parts of it that need no trained model."""
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import validation
from dataset import Dataset
from retrieval.retrieval_file import SPLITS
from small_retrieval import Log, small_retrieval
from storage.files import read_json
from util import stream


def test_measure_ranks_by_reconstructions_and_leaves_the_labels_alone():
    retrieval, log = small_retrieval(stream(0, "measure test")), Log()
    labels = retrieval.db_label.copy()
    first = validation.measure(retrieval, 50, 0, log)
    np.testing.assert_array_equal(retrieval.db_label, labels)
    assert log[0].startswith("AQD mAP@50 = [")
    second = validation.measure(retrieval, 50, 0, log)
    assert [quality.map for quality, _ in first.values()] == [quality.map for quality, _ in second.values()]
    assert list(first) == ["AQD", "SQD", "feats", "random"]
    numbers = validation.as_numbers(first, 50)
    assert numbers["AQD"]["map"] == first["AQD"][0].map
    assert list(numbers["AQD"]["precision"]) == ["1", "10"]


def test_the_report_is_a_table_and_a_json_file_and_says_where_there_is_no_map(tmp_path, capsys):
    retrieval, log = small_retrieval(stream(0, "report test")), Log()
    retrieval.qry_label[:] = 0
    results = validation.measure(retrieval, 50, 0, log)
    validation.report(tmp_path / "x_metrics.json", retrieval, results, 50, {"dataset": "x"}, log)
    assert "30 queries, 120 database images, 16 bits an image." in log
    assert "no query shares a label with any of its first 50 results, so there is no MAP." in log
    saved = read_json(tmp_path / "x_metrics.json")
    assert (saved["bits"], saved["topk"], saved["dataset"], saved["AQD"]["map"]) == (16, 50, "x", None)
    assert saved["versions"]["numpy"] == np.__version__
    table = capsys.readouterr().out.split("\n")
    assert table[1].split() == ["MAP@50", "min(R,K)", "P@1", "P@10"]
    assert [line.split()[0] for line in table[2:6]] == ["AQD", "SQD", "feats", "random"]
    assert table[2].split()[1:] == ["none"] * 4


def test_figures_show_the_files_that_skip_bad_kept():
    splits = {split: SimpleNamespace(paths=[f"{split} 2.jpg"]) for split in SPLITS}
    assert validation.image_paths(Dataset("x", Path("data"), Path("images")), splits) == {
        "database": ["database 2.jpg"], "test": ["test 2.jpg"]}


def test_without_bad_images_figures_show_the_listed_files(tmp_path):
    for split in SPLITS:
        (tmp_path / f"{split}_img.txt").write_text(f"{split}/1.jpg\n{split}/2.jpg\n")
    found = validation.image_paths(Dataset("x", tmp_path, Path("images")), None)
    assert found["test"] == [Path("images/test/1.jpg"), Path("images/test/2.jpg")]
