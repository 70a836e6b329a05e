"""GPQ's codes, distances and mAP against the released functions and their oracles."""
import time
import tracemalloc

import numpy as np
import pytest

import gpq_inputs as parity
import gpq_oracles as oracles
from gpq import retrieval
from gpq_inputs import ALPHA, BOOKS
from util import stream

X, QUERIES = parity.arrays(parity.SEED), parity.arrays(parity.SEED + 1)


def released_codes():
    return retrieval.hard_codes(X["features"], retrieval.intra_normalize(X["Z"], BOOKS), BOOKS)


def test_normalised_features_and_soft_codebooks_are_the_released_ones():
    np.testing.assert_allclose(retrieval.intra_normalize(X["features"], BOOKS), parity.CASES["gpq/intra_norm"],
                               rtol=0, atol=1e-6)
    found = retrieval.soft_codebooks(X["prototypes"], X["Z"], BOOKS, ALPHA)
    np.testing.assert_allclose(found, parity.CASES["gpq/soft_prototypes"], rtol=0, atol=1e-5)
    assert found.dtype == np.float32


def test_codes_are_the_released_ones():
    codes = released_codes()
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, parity.CASES["gpq/codes"])
    np.testing.assert_array_equal(codes, oracles.codes(X["features"], oracles.intra(X["Z"], BOOKS), BOOKS))


def test_codes_do_not_depend_on_how_many_images_are_encoded_at_once(monkeypatch):
    codes = released_codes()
    monkeypatch.setattr(retrieval, "ENCODED_AT_ONCE", 3)
    np.testing.assert_array_equal(released_codes(), codes)


def test_distance_and_map_of_raw_features_and_raw_codewords_are_the_released_ones():
    codes = released_codes()
    found = retrieval.distances(QUERIES["features"], codes, X["Z"])
    expected = parity.CASES["gpq/asymmetric_distance"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert found[3, 7] == pytest.approx(oracles.distance(QUERIES["features"][3], codes[7], X["Z"]), rel=1e-5)
    assert retrieval.mean_average_precision(
        lambda rows: -found[rows], QUERIES["labels"], X["labels"], parity.CLASSES
    ) == pytest.approx(float(parity.CASES["gpq/map"]), abs=1e-9)


def test_a_query_without_relevant_images_counts_as_zero():
    rng = stream(0, "gpq map test")
    scores = rng.integers(0, 6, (7, 50)).astype(np.float32)  # with many ties
    query_labels, database_labels = rng.integers(0, 5, 7), rng.integers(0, 3, 50)
    query_labels[:2] = 4
    expected = [oracles.average_precision(row, database_labels == label)
                for row, label in zip(scores, query_labels, strict=True)]
    found = retrieval.mean_average_precision(lambda rows: scores[rows], query_labels, database_labels, 5)
    assert found == pytest.approx(np.mean(expected), abs=1e-12)
    assert retrieval.mean_average_precision(lambda rows: scores[rows], np.full(7, 4), database_labels, 5) == 0


@pytest.mark.slow
def test_map_of_1000_queries_and_54000_images_takes_less_than_20_seconds_and_2_gb():
    rng = stream(0, "gpq speed test")
    codebooks = rng.standard_normal((16, 144), np.float32)
    codes = rng.integers(0, 16, (54000, 12), dtype=np.uint8)
    queries = rng.standard_normal((1000, 144), np.float32)
    labels, database_labels = rng.integers(0, 10, 1000), rng.integers(0, 10, 54000)

    def measure(count):
        return retrieval.mean_average_precision(
            lambda rows: -retrieval.distances(queries[:count][rows], codes, codebooks), labels[:count],
            database_labels, 10)

    began = time.process_time()  # of all threads, so that other work on the machine does not count
    found = measure(1000)
    assert time.process_time() - began < 20
    tracemalloc.start()
    measure(256)  # more than are ranked at once; the memory does not depend on how many there are
    assert tracemalloc.get_traced_memory()[1] < 2e9
    tracemalloc.stop()
    assert found == pytest.approx(0.1, abs=0.005)
