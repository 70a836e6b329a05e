"""The metrics against tables made by hand, their oracle and the released program."""
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import parity_inputs as parity
from quantization import quantizer
from retrieval import metrics
from util import stream


def _evaluate(scores, query_labels, database_labels, topk):
    scores = np.asarray(scores, np.float32)
    return metrics.evaluate(lambda queries: scores[queries], query_labels, database_labels, topk)


def test_average_precision_of_a_table_made_by_hand():
    database = np.array([[1, 0], [0, 1], [1, 1], [0, 1], [1, 0]])
    scores = [[5, 4, 3, 2, 1]]  # relevant for label 0: ranks 1, 3, 5
    quality = _evaluate(scores, [[1, 0]], database, 5)
    assert quality.map == pytest.approx((1 / 1 + 2 / 3 + 3 / 5) / 3)
    top = _evaluate(scores, [[1, 0]], database, 2)  # only rank 1 is left
    assert top.map == pytest.approx(1.0)  # of the one relevant result among two
    assert top.map_min_rk == pytest.approx(0.5)  # of min(3, 2)
    np.testing.assert_allclose(quality.precision, [1, 1 / 2, 2 / 3, 2 / 4, 3 / 5])
    np.testing.assert_allclose(quality.recall, [1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])


def test_a_query_without_a_relevant_result_leaves_the_mean():
    database = np.array([[1, 0, 0], [0, 1, 0]])
    quality = _evaluate([[1, 2], [1, 2], [2, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]], database, 1)
    assert quality.left_out == 3
    assert np.isnan(quality.map)
    assert quality.map_min_rk == 0
    quality = _evaluate([[1, 2], [1, 2], [2, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]], database, 2)
    assert quality.left_out == 1
    assert quality.map == pytest.approx(0.5)


def test_ties_go_to_the_lower_row_and_minus_zero_is_zero():
    scores = np.array([[0.0, -0.0, 1.0, -1.0, 0.0, -1.0]], np.float32)
    np.testing.assert_array_equal(metrics.rank(scores, 6), [[2, 0, 1, 4, 3, 5]])
    np.testing.assert_array_equal(metrics.rank(scores, 3), [[2, 0, 1]])


@pytest.mark.parametrize("order", ["random", "ascending", "descending", "every 16th is high", "every 16th is low",
                                   "one tie", "a tie at the cut", "infinite"])
@pytest.mark.parametrize("topk", [1, 100, 5000, 20_000])
def test_rank_is_a_stable_sort_whatever_the_sample_of_the_scores_shows(order, topk):
    scores = stream(0, "sample test").normal(size=20_000).astype(np.float32)
    sixteenth = np.arange(len(scores)) % metrics.SAMPLE == 0
    scores = {"random": scores, "ascending": np.sort(scores), "descending": -np.sort(scores),
              "every 16th is high": scores + 9 * sixteenth, "every 16th is low": scores - 9 * sixteenth,
              "one tie": 0 * scores, "a tie at the cut": np.maximum(scores, 0.5),
              "infinite": np.where(scores > 2, np.inf, np.where(scores < 0, -np.inf, scores))}[order]
    scores = scores.astype(np.float32)
    np.testing.assert_array_equal(metrics.rank(scores[None], topk)[0], np.argsort(-scores, kind="stable")[:topk])


def test_the_quality_does_not_depend_on_the_threads():
    rng = stream(0, "thread test")
    queries, database = (rng.normal(size=(n, 300)).astype(np.float32) for n in (130, 3000))
    labels = [rng.random((n, 21)) < 0.1 for n in (130, 3000)]
    found = []
    for threads in (1, 4):
        with threadpool_limits(threads):
            found.append(metrics.evaluate(lambda q: queries[q] @ database.T, *labels, 500))
    assert found[0].map == found[1].map
    np.testing.assert_array_equal(found[0].precision, found[1].precision)


@pytest.mark.parametrize("labels", [1, 24, 64, 81, 200])
def test_packed_labels_show_who_shares_a_label(labels):
    rng = stream(0, "label test", labels)
    a, b = (rng.random((n, labels)) < 2 / labels for n in (30, 40))
    shared = (metrics.pack_labels(a)[:, None] & metrics.pack_labels(b)).any(-1)
    np.testing.assert_array_equal(shared, a.astype(int) @ b.T.astype(int) > 0)
    np.testing.assert_array_equal(metrics.count_relevant(metrics.pack_labels(a), metrics.pack_labels(b)),
                                  shared.sum(1))


@pytest.mark.parametrize("topk", [50, 400])
@pytest.mark.parametrize("kind", ["AQD", "SQD", "feats"])
def test_evaluate_gives_the_released_map_and_curves(topk, kind):
    database, queries = parity.features(parity.SEED + 11, 400), parity.features(parity.SEED + 12, 30)
    c = parity.codebooks(parity.SEED + 5, 2)
    database_codes, query_codes = parity.codes(parity.SEED + 26, 400, 2), parity.codes(parity.SEED + 27, 30, 2)
    if kind == "feats":
        scores = queries @ database.T
    else:
        queries = quantizer.reconstruct(query_codes, c) if kind == "SQD" else queries
        scores = quantizer.quantized_scores(queries, database_codes, c)
    labels = parity.CASES["map/qry_label"], parity.CASES["map/db_label"]
    copies = [array.copy() for array in labels]
    quality = _evaluate(scores, *labels, topk)
    assert quality.map == pytest.approx(float(parity.CASES[f"map/top{topk}/{kind}"]), abs=1e-6)
    np.testing.assert_allclose(quality.precision, parity.CASES[f"map/top{topk}/{kind}_precision"], atol=1e-6)
    np.testing.assert_allclose(quality.recall, parity.CASES[f"map/top{topk}/{kind}_recall"], atol=1e-6)
    for array, copy in zip(labels, copies, strict=True):
        np.testing.assert_array_equal(array, copy)  # the release writes into the labels it is given
