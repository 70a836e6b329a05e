"""The correlation graph and the merging of tags, against slow oracles."""
import itertools

import numpy as np
import pytest

import oracles
from tag_inputs import clustered
from tags import graph
from util import unit_length


@pytest.mark.parametrize(("count", "k", "tau"), [
    (1, 5, 0.7), (2, 1, 0.0), (4, 9, 0.5), (60, 1, 0.5), (60, 5, 0.0), (60, 5, 0.9), (60, 59, 0.3),
    (graph.BLOCK_ROWS + 80, 3, 0.6)])
def test_the_graph_is_the_oracles(count, k, tau):
    v = clustered(count, 8)
    links = graph.correlation_graph(unit_length(v), k, tau)
    expected = np.zeros((count, count))
    for i, members in enumerate(oracles.neighbours(v, k, tau)):
        expected[i, sorted(members)] = 1 / len(members)
    np.testing.assert_array_equal(links.toarray() > 0, expected > 0)
    np.testing.assert_allclose(links.toarray(), expected, rtol=1e-14)


def test_the_sizes_tried_have_many_edges_and_lack_many():
    v = unit_length(clustered(60, 8))
    assert 60 < graph.correlation_graph(v, 5, 0.5).nnz < 60 * 6


@pytest.mark.parametrize("eps", [0.005, 0.02, 0.1, 0.3])
def test_groups_are_the_oracles_and_noise_stays(eps):
    v = clustered(200, 8, seed=1)
    groups = graph.merge_groups(unit_length(v), eps)
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
        unit = unit_length(v)
        w = graph.merged_embeddings(unit, [[0, 1]])
        np.testing.assert_allclose(w, oracles.merged_embeddings(short, [[0, 1]]), rtol=1e-12)
