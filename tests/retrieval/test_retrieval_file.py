"""The retrieval file: what it holds, what it depends on, and which one is not used again."""
import re
from dataclasses import fields, replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from dataset import find_dataset
from quantization import quantizer
from retrieval.retrieval_file import Retrieval, read_content, read_retrieval, sources, write_retrieval
from small_retrieval import small_retrieval
from storage.files import fingerprint
from tiny import make_tiny
from util import UserError, stream


def test_the_retrieval_file_holds_the_release_s_datasets_and_comes_back_whole(tmp_path):
    retrieval = small_retrieval(stream(0, "h5 test"))
    path = tmp_path / "x_retrieval.h5"
    write_retrieval(path, retrieval, {"sha256 of checkpoint": "abc", "crops": 10})
    with h5py.File(path) as file:
        assert set(file) == {"db_features", "db_reconstr", "db_label", "qry_features", "qry_reconstr", "qry_label",
                             "db_codes", "qry_codes", "codebooks"}
        assert file["db_codes"].dtype == np.uint8
        np.testing.assert_allclose(file["qry_reconstr"][()],
                                   quantizer.reconstruct(retrieval.qry_codes, retrieval.codebooks))
    back, same_labels, _ = read_retrieval(path, {"sha256 of checkpoint": "abc", "crops": 10}, {})
    assert same_labels
    for field in fields(Retrieval):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(retrieval, field.name))


def test_queries_of_codes_are_their_averages_where_a_file_has_them(tmp_path):
    retrieval = small_retrieval(stream(0, "h5 averages"))
    write_retrieval(tmp_path / "plain.h5", retrieval, {})
    np.testing.assert_array_equal(read_content(tmp_path / "plain.h5").queries, retrieval.qry_features)
    averaged = replace(retrieval, qry_averages=retrieval.qry_features[::-1].copy())
    write_retrieval(tmp_path / "averaged.h5", averaged, {})
    back = read_content(tmp_path / "averaged.h5")
    np.testing.assert_array_equal(back.queries, averaged.qry_averages)
    np.testing.assert_array_equal(back.qry_features, retrieval.qry_features)


def test_a_retrieval_file_of_another_checkpoint_is_not_used_and_the_reason_is_reported(tmp_path):
    path = tmp_path / "x_retrieval.h5"

    def refusal(**expected):
        expected = {f"sha256 of {name}": value for name, value in expected.items()}
        retrieval, _, why = read_retrieval(path, expected, {})
        assert retrieval is None
        return why

    assert "not there" in refusal()
    write_retrieval(path, small_retrieval(stream(0, "h5 test")), {"sha256 of checkpoint": "abc"})
    assert "another checkpoint" in refusal(checkpoint="def")
    assert "another database_img.txt" in refusal(checkpoint="abc", **{"database_img.txt": "abc"})
    path.write_bytes(path.read_bytes()[:5000])
    assert f"{path} was altered since it was written" in refusal(checkpoint="abc")
    path.with_suffix(".json").unlink()
    assert "cannot be read" in refusal(checkpoint="abc")


def test_a_retrieval_file_whose_arrays_do_not_fit_is_not_used_and_the_reason_is_reported(tmp_path):
    path = tmp_path / "x_retrieval.h5"
    retrieval = small_retrieval(stream(0, "h5 test"))
    write_retrieval(path, replace(retrieval, db_label=retrieval.db_label[1:]), {})
    content, same_labels, why = read_retrieval(path, {}, {})
    assert (content, same_labels) == (None, False)
    assert re.search(r"expected db_label with shape \(120, .*found \(119, 4\)", why)


@pytest.mark.parametrize(("name", "change", "sentence"), [
    ("db_codes", None, "expected the datasets .*, found no db_codes"),
    ("db_features", lambda array: np.where(array == array[5, 7], np.nan, array), "db_features holds NaN or infinite"),
    ("db_features", lambda array: array.astype(int), "expected db_features of floats, found int64"),
    ("db_label", lambda array: array[:-1], r"expected db_label with shape \(120, L\), found \(119, 4\)"),
    ("db_label", lambda array: array * 2, "expected db_label of 0 and 1"),
    ("db_codes", lambda array: array.astype(np.int64), "expected db_codes of uint8, found int64"),
    ("qry_codes", lambda array: array[:9], r"expected qry_codes with shape \(30, 2\), found \(9, 2\)"),
    ("qry_label", lambda array: array[:, :3], r"expected qry_label with shape \(30, 4\), found \(30, 3\)"),
    ("qry_features", lambda array: array[:, :9], r"expected qry_features with shape \(Q, 300\), found \(30, 9\)"),
    ("qry_averages", lambda array: array * np.inf, "qry_averages holds NaN or infinite values"),
    ("qry_averages", lambda array: array[:9], r"expected qry_averages with shape \(30, 300\), found \(9, 300\)"),
    ("codebooks", lambda array: array[0], r"expected codebooks with shape \(M, 256, 300\), found \(256, 300\)"),
    ("codebooks", lambda array: array[:, :9], r"expected codebooks with shape .*, found \(2, 9, 300\)")])
def test_content_that_does_not_fit_is_refused(tmp_path, name, change, sentence):
    path, retrieval = tmp_path / "x.h5", small_retrieval(stream(0, "h5 misfits"))
    write_retrieval(path, replace(retrieval, qry_averages=retrieval.qry_features), {})
    path.with_suffix(".json").unlink()
    with h5py.File(path, "a") as file:
        array = file.pop(name)[()] if change else file.pop(name)
        if change:
            file[name] = change(array)
    with pytest.raises(UserError, match=rf"x\.h5: {sentence}"):
        read_content(path)


def test_it_depends_on_checkpoint_tags_lists_crops_seed_and_choice_of_images_and_apart_on_labels(tmp_path):
    folder, checkpoint, features = find_dataset("tiny", make_tiny(tmp_path)), tmp_path / "x.npy", tmp_path / "x.h5"
    checkpoint.write_text("a checkpoint")
    features.write_text("features")
    made, labels = sources(folder, checkpoint, 10, 3, features=features)
    assert labels == {f"sha256 of {split}_label.txt": fingerprint(folder.splits / f"{split}_label.txt")
                      for split in ("database", "test")}
    assert {"crops": 10, "seed": 3, "sha256 of checkpoint": fingerprint(checkpoint),
            "sha256 of features": fingerprint(features), "choice of database images": "all",
            "sha256 of FinalTagEmbs.txt": fingerprint(folder.tag_embeddings),
            "sha256 of test_img.txt": fingerprint(folder.splits / "test_img.txt")}.items() <= made.items()
    splits = {"database": SimpleNamespace(skipped=1, rows=np.arange(1, 10)), "test": SimpleNamespace(skipped=0)}
    chosen, _ = sources(folder, checkpoint, 10, 3, splits)
    assert chosen["choice of database images"] not in ("all", None)
    assert chosen["choice of test images"] == "all"
    checkpoint.unlink()
    with pytest.raises(UserError, match=r"x\.npy: no such file"):
        sources(folder, checkpoint, 10, 3)
