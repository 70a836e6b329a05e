"""Validation: the released ten-crop embeddings, the retrieval file and what refuses it."""
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np

import net_val
from quantization import quantizer
from retrieval.retrieval_file import read_content
from small_retrieval import small_retrieval
from util import stream


def test_the_retrieval_file_holds_the_release_s_datasets_and_comes_back_whole(tmp_path):
    retrieval = small_retrieval(stream(0, "h5 test"))
    path = tmp_path / "x_retrieval.h5"
    net_val.write_retrieval(path, retrieval, {"sha256 of checkpoint": "abc", "crops": 10})
    with h5py.File(path) as file:
        assert set(file) == {"db_features", "db_reconstr", "db_label", "qry_features", "qry_reconstr", "qry_label",
                             "db_codes", "qry_codes", "codebooks"}
        assert file["db_codes"].dtype == np.uint8
        np.testing.assert_allclose(file["qry_reconstr"][()],
                                   quantizer.reconstruct(retrieval.qry_codes, retrieval.codebooks))
    back, same_labels, _ = net_val.read_retrieval(path, {"sha256 of checkpoint": "abc", "crops": 10}, {})
    assert same_labels
    for name in net_val.Retrieval.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(back, name), getattr(retrieval, name))


def test_queries_of_codes_are_their_averages_where_a_file_has_them(tmp_path):
    retrieval = small_retrieval(stream(0, "h5 averages"))
    net_val.write_retrieval(tmp_path / "plain.h5", retrieval, {})
    np.testing.assert_array_equal(read_content(tmp_path / "plain.h5").queries, retrieval.qry_features)
    averaged = replace(retrieval, qry_averages=retrieval.qry_features[::-1].copy())
    net_val.write_retrieval(tmp_path / "averaged.h5", averaged, {})
    back = read_content(tmp_path / "averaged.h5")
    np.testing.assert_array_equal(back.queries, averaged.qry_averages)
    np.testing.assert_array_equal(back.qry_features, retrieval.qry_features)


def test_a_retrieval_file_of_another_checkpoint_is_not_used_and_it_is_said_why(tmp_path):
    path = tmp_path / "x_retrieval.h5"

    def refusal(**expected):
        expected = {f"sha256 of {name}": value for name, value in expected.items()}
        retrieval, _, why = net_val.read_retrieval(path, expected, {})
        assert retrieval is None
        return why

    assert "not there" in refusal()
    net_val.write_retrieval(path, small_retrieval(stream(0, "h5 test")), {"sha256 of checkpoint": "abc"})
    assert "another checkpoint" in refusal(checkpoint="def")
    assert "another database_img.txt" in refusal(checkpoint="abc", **{"database_img.txt": "abc"})
    path.write_bytes(path.read_bytes()[:5000])
    assert f"{path} was altered since it was written" in refusal(checkpoint="abc")
    path.with_suffix(".json").unlink()
    assert "cannot be read" in refusal(checkpoint="abc")


def test_a_retrieval_file_whose_arrays_do_not_fit_is_not_used_and_it_is_said_why(tmp_path):
    path = tmp_path / "x_retrieval.h5"
    retrieval = small_retrieval(stream(0, "h5 test"))
    net_val.write_retrieval(path, replace(retrieval, db_label=retrieval.db_label[1:]), {})
    content, same_labels, why = net_val.read_retrieval(path, {}, {})
    assert (content, same_labels) == (None, False)
    assert "expected db_label with shape (120, L), found (119, 4)" in why


def test_measure_ranks_by_reconstructions_and_leaves_the_labels_alone():
    retrieval = small_retrieval(stream(0, "measure test"))
    labels = retrieval.db_label.copy()
    log = SimpleNamespace(info=lambda line: lines.append(line))
    lines = []
    first = net_val.measure(retrieval, 50, 0, log)
    np.testing.assert_array_equal(retrieval.db_label, labels)
    assert lines[0].startswith("AQD mAP@50 = [")
    second = net_val.measure(retrieval, 50, 0, log)
    assert [quality.map for quality, _ in first.values()] == [quality.map for quality, _ in second.values()]
    assert list(first) == ["AQD", "SQD", "feats", "random"]
    numbers = net_val.as_numbers(first, 50)
    assert numbers["AQD"]["map"] == first["AQD"][0].map
    assert list(numbers["AQD"]["precision"]) == ["1", "10"]
