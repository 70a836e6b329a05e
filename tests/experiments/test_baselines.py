"""The table of baselines, its scores compared with plain formulas, and the files that are refused."""
import json
import math
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from experiments import baselines
from retrieval.retrieval_file import read_content
from util import run_program, stream

faiss = pytest.importorskip("faiss")
from retrieval.faiss_index import flat_engine  # noqa: E402

PROGRAM = Path(__file__).resolve().parents[2] / "experiments" / "baselines.py"
IMAGES, QUERIES, CODEBOOKS, CLUSTERS = 600, 20, 2, 6
ROWS = ["AQD", "LSH", "ITQ", "PQ", "OPQ", "RQ", "LSQ", "exact", "random"]


def make_arrays():
    """Embeddings in clusters that are the labels; an image's code is its cluster's codeword and a random small one."""
    rng = stream(0, "baselines test")
    centres = rng.normal(size=(CLUSTERS, 300))
    codebooks = 0.1 * rng.normal(size=(CODEBOOKS, 256, 300))
    codebooks[0, :CLUSTERS] += centres
    arrays = {"codebooks": codebooks.astype(np.float32)}
    for prefix, n in (("db", IMAGES), ("qry", QUERIES)):
        clusters = rng.integers(0, CLUSTERS, n)
        arrays[f"{prefix}_features"] = (centres[clusters] + 1.5 * rng.normal(size=(n, 300))).astype(np.float32)
        arrays[f"{prefix}_label"] = np.eye(CLUSTERS, dtype=np.uint8)[clusters]
        arrays[f"{prefix}_codes"] = np.stack([clusters, rng.integers(0, 256, n)], 1).astype(np.uint8)
    return arrays


def write(path, **changed):
    """A retrieval file with some datasets changed."""
    with h5py.File(path, "w") as file:
        for name, array in (make_arrays() | changed).items():
            file[name] = array
    return path


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return read_content(write(tmp_path_factory.mktemp("h5") / "x_retrieval.h5"))


@pytest.mark.parametrize(("m", "name"), [(2, "OPQ"), (2, "RQ"), (8, "OPQ")])
def test_the_fewest_images_suffice_for_training(m, name):
    vectors = stream(0, "few").normal(size=(baselines.padded(m), 300)).astype(np.float32)
    quantizers = baselines.Quantizers(faiss, m, 0)
    index = baselines.BASELINES[name](quantizers)
    index.train(vectors)
    index.add(vectors)
    assert quantizers.codes(index).shape == (len(vectors), m)


# ---------------------------------------------------------------- the table

@pytest.fixture(scope="module")
def printed_and_saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    done = subprocess.run([sys.executable, PROGRAM, write(folder / "x_retrieval.h5"), "--topk", "300", "--seed", "3",
                           "--json", folder / "table.json"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, json.loads((folder / "table.json").read_text())


def test_the_program_prints_every_row_and_finite_maps(printed_and_saved):
    printed, saved = printed_and_saved
    table = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.split(" ")[0] in ROWS}
    assert list(table) == list(saved["rows"]) == ROWS
    assert [table[name][0] for name in ROWS] == ["2"] * 7 + ["1200", "-"]
    assert all(math.isfinite(float(number)) for row in table.values() for number in row[1:3])
    assert table["AQD"][4] == table["random"][3] == "-"
    assert "few training images: FAISS advises 9,984" in printed


def test_the_json_file_holds_the_numbers_of_the_table_and_where_they_come_from(printed_and_saved):
    printed, saved = printed_and_saved
    for name, row in saved["rows"].items():
        assert f"{row['map']:.4f}" in next(line for line in printed.splitlines() if line.startswith(f"{name} "))
    assert (saved["topk"], saved["bits"], saved["training_images"], saved["seed"]) == (300, 16, 600, 3)
    assert saved["versions"]["faiss"] == faiss.__version__
    assert list(saved["fingerprints"]) == ["x_retrieval.h5"]


def test_every_code_ranks_clusters_better_than_a_random_order(printed_and_saved):
    rows = printed_and_saved[1]["rows"]
    assert all(row["map"] > 1.5 * rows["random"]["map"] for name, row in rows.items() if name != "random")


@pytest.mark.slow
def test_a_seed_repeats_every_map(printed_and_saved, content):
    with threadpool_limits(1):
        again = baselines.measure(content, flat_engine(content.db_codes, content.codebooks),
                                  baselines.Quantizers(faiss, CODEBOOKS, 3), content.db_features, 300)
    assert {name: row["map"] for name, row in again.items()} == {
        name: row["map"] for name, row in printed_and_saved[1]["rows"].items()}


# ---------------------------------------------------------------- scores

@pytest.mark.parametrize("name", ["PQ", "RQ"])
def test_maps_count_the_scores_that_faiss_searches_by(content, name):
    found = []
    search = baselines.search
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(1):
        patch.setattr(baselines, "search", lambda index, queries: found.append(index) or search(index, queries))
        method = baselines.baseline_method(
            name, content, baselines.Quantizers(faiss, CODEBOOKS, 0), content.db_features)
    scores = method.score(slice(0, QUERIES))
    expected = content.qry_features @ found[0].reconstruct_n(0, IMAGES).T
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(method.search()[0], -np.sort(-scores, 1)[:, :100], rtol=1e-4, atol=1e-3)


def test_hamming_scores_are_minus_the_bits_that_differ():
    rng = stream(0, "hamming test")
    codes, queries = (rng.integers(0, 256, (n, 3), np.uint8) for n in (50, 7))
    bits, query_bits = (np.unpackbits(array, axis=1) for array in (codes, queries))
    found = baselines.hamming_score(codes, queries)(slice(2, 7))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, -(query_bits[2:, None] != bits).sum(-1))


def test_product_quantizers_of_7_bytes_pad_with_zeros(content):
    quantizers = baselines.Quantizers(faiss, 7, 0)
    index = quantizers.pq()
    index.train(content.db_features)
    index.add(content.db_features)
    assert (index.d, baselines.padded(7), baselines.padded(6)) == (300, 301, 300)
    assert quantizers.codes(index).shape == (IMAGES, 7)
    spread = np.square(content.db_features - content.db_features.mean(0)).mean()
    assert np.square(index.reconstruct_n(0, IMAGES) - content.db_features).mean() < 0.7 * spread


def test_a_large_database_is_learned_from_by_a_seeded_sample(monkeypatch):
    features = np.arange(400, dtype=np.float32)[:, None]
    assert baselines.training_images(features, 0) is features
    monkeypatch.setattr(baselines, "TRAINING_IMAGES", 300)
    first, again, other = (baselines.training_images(features, seed)[:, 0] for seed in (0, 0, 1))
    assert len(set(first)) == 300
    assert (first == again).all()
    assert (first != other).any()


# ---------------------------------------------------------------- what is refused

def refused(monkeypatch, capsys, *arguments):
    """The one sentence in which the program ends, with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["baselines.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        run_program(baselines.main)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(("changed", "sentence"), [
    (lambda a: {"db_codes": a["db_codes"][1:]}, "expected db_codes with shape (600, 2), found (599, 2)"),
    (lambda a: {name: a[name][:299] for name in ("db_features", "db_label", "db_codes")},
     "expected at least 300 database images and one query, found 299 and 20"),
    (lambda a: {"qry_label": a["qry_label"] * 0}, "no query shares a label with a database image"),
])
def test_a_retrieval_file_that_does_not_fit_is_refused(tmp_path, monkeypatch, capsys, changed, sentence):
    path = write(tmp_path / "x.h5", **changed(make_arrays()))
    error = refused(monkeypatch, capsys, path)
    assert f"{path}: " in error
    assert sentence in error


def test_a_missing_or_damaged_file_is_refused(tmp_path, monkeypatch, capsys):
    path = tmp_path / "x.h5"
    assert f"{path}: no such file" in refused(monkeypatch, capsys, path)
    write(path)
    path.write_bytes(path.read_bytes()[:5000])
    assert "expected an HDF5 file, found one that cannot be read" in refused(monkeypatch, capsys, path)


def test_without_faiss_its_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    error = refused(monkeypatch, capsys, write(tmp_path / "x.h5"))
    assert error == "error: baselines need faiss: pip install -e '.[search]'\n"
