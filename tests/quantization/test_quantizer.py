"""The quantizer against its oracles and against the released program."""
import numpy as np
import pytest

import oracles
import parity_inputs as parity
from quantization import quantizer
from quantization.codebooks import final_fit, fit_codebooks, initial_codebooks, random_codebooks, update_codebooks
from util import stream, unit_length

W = parity.tags(parity.SEED + 1, 8, 20)[0]


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_icm_gives_the_released_codes_and_update_the_released_codebooks(m):
    r, c = parity.features(parity.SEED + 6, 32), parity.codebooks(parity.SEED + 5, m)
    case = {key: parity.CASES[f"icm/M{m}/{key}"] for key in
            ("orders", "codes", "updated_rows", "updated_centers", "updated_norm")}
    codes = quantizer.icm_encode(r, c, quantizer.semantic_factor(W), case["orders"])
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, case["codes"])
    updated = update_codebooks(r, codes, c).reshape(-1, 300)
    np.testing.assert_allclose(updated[case["updated_rows"]], case["updated_centers"], atol=5e-4)
    np.testing.assert_allclose(np.linalg.norm(updated), case["updated_norm"], rtol=5e-4)


@pytest.mark.parametrize(("tags", "m"), [(20, 1), (20, 3), (400, 2), (400, 4)])
def test_icm_is_the_search_over_all_tags(tags, m):
    rng = stream(0, "icm test", tags, m)
    w, r = rng.normal(size=(tags, 300)), rng.normal(size=(6, 300)).astype(np.float32)
    c = rng.normal(size=(m, 256, 300)).astype(np.float32) / m
    orders = [rng.permutation(m) for _ in range(3)]
    np.testing.assert_array_equal(quantizer.icm_encode(r, c, quantizer.semantic_factor(w), orders),
                                  oracles.icm_encode(r, c, w, orders))


def test_semantic_factor_keeps_distances_to_tags_when_there_are_fewer_tags_than_dimensions():
    rng = stream(0, "factor test")
    for tags in (1, 20, 300, 500):
        w, x = rng.normal(size=(tags, 300)), rng.normal(size=(5, 300))
        factor = quantizer.semantic_factor(w)
        assert factor.shape == (300, min(tags, 300))
        np.testing.assert_allclose(np.linalg.norm(x @ factor, axis=1), np.linalg.norm(x @ w.T, axis=1), rtol=1e-5)


@pytest.mark.parametrize("m", [1, 2, 4, 8])
def test_update_solves_the_ridge_regression_and_leaves_unused_codewords(m):
    rng = stream(0, "update test", m)
    u, codes = rng.normal(size=(90, 300)).astype(np.float32), rng.integers(0, 40, (90, m)).astype(np.uint8)
    old = random_codebooks(m, rng)
    new = update_codebooks(u, codes, old)
    np.testing.assert_allclose(new, oracles.update_codebooks(u, codes, old), atol=1e-4)
    np.testing.assert_array_equal(new[:, 40:], old[:, 40:])
    before = np.square(u - quantizer.reconstruct(codes, old)).sum()
    assert np.square(u - quantizer.reconstruct(codes, new)).sum() < before


@pytest.mark.parametrize("m", [1, 3, 8])
def test_first_codebooks_know_only_their_own_columns(m):
    rng = stream(0, "kmeans test", m)
    c = initial_codebooks(rng.normal(size=(600, 300)).astype(np.float32), np.ones((m, 256, 300)), rng)
    width = 300 // m
    for i in range(m):
        assert np.abs(c[i, :, i * width:(i + 1) * width]).sum(1).all()
        assert not np.delete(c[i], np.s_[i * width:(i + 1) * width], axis=1).any()


def test_fewer_images_than_codewords_leave_the_other_codewords_alone():
    rng = stream(0, "few images test")
    u, old = rng.normal(size=(30, 300)).astype(np.float32), random_codebooks(2, rng)
    new = initial_codebooks(u, old, rng)
    np.testing.assert_array_equal(new[:, 30:], old[:, 30:])
    assert (np.abs(new[:, :30] - old[:, :30]).sum(2) > 0).all()


def test_initialising_and_encoding_are_reproducible():
    rng = stream(0, "repeat test")
    u, factor = rng.normal(size=(700, 300)).astype(np.float32), quantizer.semantic_factor(W)
    old = random_codebooks(2, rng)
    runs = []
    for _ in range(2):
        c = initial_codebooks(u, old, stream(3, "first"))
        runs.append((c, quantizer.encode(u, c, factor, stream(3, "icm"), 500)))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][1], runs[1][1])


def test_every_image_gets_a_code_whatever_the_chunk():
    rng = stream(0, "chunk test")
    u, c = rng.normal(size=(37, 300)).astype(np.float32), random_codebooks(1, rng)
    factor = quantizer.semantic_factor(W)
    whole = quantizer.encode(u, c, factor, rng, 1000)
    np.testing.assert_array_equal(quantizer.encode(u, c, factor, rng, 10), whole)  # one codebook: order is moot


@pytest.mark.parametrize("score", [quantizer.quantized_scores, quantizer.product_scores])
def test_scores_are_the_sums_of_the_table_in_the_order_of_the_codebooks_to_the_last_bit(score):
    rng = stream(0, "table test")
    m, images = 4, 2 * quantizer.SCORED_AT_ONCE + 3
    c = random_codebooks(m, rng)
    q = rng.normal(size=(5, 300 if score is quantizer.quantized_scores else m * 300)).astype(np.float32)
    codes = rng.integers(0, 256, (images, m)).astype(np.uint8)
    parts = q.reshape(5, -1, 300).transpose(1, 2, 0)  # (1 or M, D, Q)
    tables = c @ parts  # (M, K, Q)
    expected = tables[0][codes[:, 0]]
    for i in range(1, m):
        expected = expected + tables[i][codes[:, i]]
    np.testing.assert_array_equal(score(q, codes, c), expected.T)


# ---------------------------------------------------------------- codes of fitted codebooks

def vectors_near_codewords(count, codebooks, words, seed=0):
    """Vectors, float32 (count, 300), and codebooks (M, K, 300) of which all but `words` codewords are far away."""
    rng = stream(seed, "local search")
    books = np.full((codebooks, quantizer.CODEWORDS, 300), 100, np.float32)
    books[:, :words] = rng.normal(size=(codebooks, words, 300)) / 10
    return rng.normal(size=(count, 300)).astype(np.float32) / 10, books


def test_local_search_finds_the_nearest_reconstruction_of_nearly_every_vector():
    vectors, books = vectors_near_codewords(60, 3, 5)
    codes = quantizer.local_search(vectors, books, stream(1, "codes"), rounds=400)
    errors = np.square(vectors - quantizer.reconstruct(codes, books)).sum(1)
    nearest = oracles.nearest_reconstruction(vectors, books[:, :5])
    assert (errors >= nearest * (1 - 1e-4)).all()
    assert np.isclose(errors, nearest, rtol=1e-4).mean() > 0.9


def test_codes_are_found_in_the_distance_of_a_factor():
    vectors, books = vectors_near_codewords(60, 1, 256)
    queries = stream(5, "queries").normal(size=(400, 300)) * np.linspace(0.1, 3, 300)
    factor = quantizer.query_factor(queries.astype(np.float32))
    errors = vectors[0] - books[0]
    np.testing.assert_allclose(np.square(errors @ factor).sum(1), oracles.query_error(errors, queries), rtol=1e-4)
    codes = quantizer.local_search(vectors, books, stream(1, "codes"), factor=factor)
    errors = oracles.query_error((vectors[:, None] - books[0]).reshape(-1, 300), queries).reshape(60, 256)
    np.testing.assert_array_equal(codes[:, 0], errors.argmin(1))
    assert (codes != quantizer.local_search(vectors, books, stream(1, "codes"))).any()


def test_codebooks_fitted_in_a_distance_come_nearer_in_it():
    vectors = (stream(6, "fit").normal(size=(900, 300)) * np.linspace(0.1, 3, 300)).astype(np.float32)
    factor, errors = quantizer.query_factor(vectors), []
    for s in (factor, None):
        fitted = fit_codebooks(vectors, 2, stream(0, "slices"), s)
        codes = quantizer.local_search(vectors, fitted, stream(1, "codes"), factor=s)
        errors.append(oracles.query_error(vectors - quantizer.reconstruct(codes, fitted), vectors).mean())
    assert errors[0] < errors[1]


def test_more_rounds_of_local_search_bring_no_vector_farther_away():
    rng = stream(2, "local search")
    vectors, books = (rng.normal(size=size).astype(np.float32) for size in ((50, 300), (4, 256, 300)))
    codes = quantizer.local_search(vectors, books, rng, rounds=0)
    better = quantizer.local_search(vectors, books, rng, codes, rounds=8)
    before, after = (np.square(vectors - quantizer.reconstruct(c, books)).sum(1) for c in (codes, better))
    assert (after <= before * (1 + 1e-5)).all()
    assert after.mean() < before.mean()


def test_codes_of_fitted_codebooks_do_not_depend_on_how_many_vectors_are_searched_at_once(monkeypatch):
    vectors, books = vectors_near_codewords(10, 1, 7)
    whole = quantizer.local_search(vectors, books, stream(0, "codes"))
    monkeypatch.setattr(quantizer, "SEARCHED_AT_ONCE", 3)
    np.testing.assert_array_equal(quantizer.local_search(vectors, books, stream(0, "codes")), whole)
    distances = np.square(vectors[:, None] - books[0][None]).sum(2)
    np.testing.assert_array_equal(whole[:, 0], distances.argmin(1))
    assert quantizer.local_search(vectors[:0], books, stream(0, "codes")).shape == (0, 1)


def test_encoding_takes_three_sweeps_in_orders_drawn_anew_for_each_chunk():
    rng = stream(0, "sweeps")
    vectors, books = (rng.normal(size=shape).astype(np.float32) for shape in ((7, 300), (4, 256, 300)))
    factor, orders = np.eye(300, dtype=np.float32), stream(1, "orders")
    expected = [quantizer.icm_encode(chunk, books, factor, [orders.permutation(4) for _ in range(3)])
                for chunk in (vectors[:4], vectors[4:])]
    found = quantizer.encode(vectors, books, factor, stream(1, "orders"), 4)
    np.testing.assert_array_equal(found, np.concatenate(expected))
    orders = stream(1, "orders")
    fewer = quantizer.icm_encode(vectors[:4], books, factor, [orders.permutation(4)])
    assert (fewer != found[:4]).any()  # later sweeps change codes here


def test_fitted_codebooks_come_nearer_than_slices_of_k_means():
    rng = stream(3, "fit")
    centres = rng.normal(size=(40, 300))
    vectors = (centres[rng.integers(40, size=900)] + 0.3 * rng.normal(size=(900, 300))).astype(np.float32)
    sliced = initial_codebooks(vectors, np.zeros((2, 256, 300), np.float32), stream(0, "slices"))
    fitted = fit_codebooks(vectors, 2, stream(0, "slices"))
    np.testing.assert_array_equal(fitted, fit_codebooks(vectors, 2, stream(0, "slices")))

    def error(codebooks):
        codes = quantizer.local_search(vectors, codebooks, stream(1, "codes"))
        return np.square(vectors - quantizer.reconstruct(codes, codebooks)).sum(1).mean()
    assert error(fitted) < 0.9 * error(sliced)


def test_codebooks_are_fitted_to_a_sample_of_many_vectors(monkeypatch):
    monkeypatch.setattr("quantization.codebooks.FIT_IMAGES", 30)
    vectors = stream(4, "fit").normal(size=(90, 300)).astype(np.float32)
    fitted, factor, neighbours = final_fit(unit_length(vectors), 1, 0)
    assert fitted[0].any(1).sum() == 30  # a centre for each vector of the sample
    assert (factor.shape, neighbours[0].shape[1], neighbours[1].shape) == ((300, 300), 300, (1,))
