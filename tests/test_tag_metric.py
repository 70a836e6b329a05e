"""The tag metric against its oracle, and when it is left out."""
import numpy as np
import pytest
import scipy.sparse

import oracles
from features import unit_length
from storage.arrays import FIT, METRIC, write_weights
from storage.checkpoint import read_checkpoint
from tag_metric import chosen_metric, tag_metric
from util import UserError, stream


def images_with_tags(noise, count=400, tags=12):
    """Unit embeddings, float32 (N, 300): sums of the directions of their tags, and noise; tags, CSR (N, T)."""
    rng = stream(0, "tag metric test")
    labels = (rng.random((count, tags)) < 0.2).astype(np.uint8)
    embeddings = labels @ rng.normal(size=(tags, 300)) + noise * rng.normal(size=(count, 300))
    return unit_length(embeddings.astype(np.float32)), scipy.sparse.csr_array(labels)


class Log(list):
    info = list.append


@pytest.mark.parametrize("ridge", [0.3, 3])
def test_the_metric_is_that_of_the_formulas(ridge):
    embeddings, tags = images_with_tags(3)
    kernel, bias = tag_metric(embeddings, tags, ridge)
    mean, g = oracles.tag_metric(embeddings, tags.toarray(), ridge)
    np.testing.assert_allclose(embeddings @ kernel + bias, (embeddings - mean) @ g, rtol=0, atol=1e-4)
    assert np.linalg.norm(embeddings @ kernel + bias, axis=1).mean() == pytest.approx(1, rel=1e-3)


def test_it_is_used_where_held_out_images_are_ranked_better_and_its_line_says_so():
    log = Log()
    metric = chosen_metric(*images_with_tags(3), stream(0, "choice"), log)
    assert metric is not None
    assert "held-out images: MAP by their tags" in log[0]


def test_it_is_left_out_where_tags_tell_nothing_and_its_line_says_so():
    embeddings, tags = images_with_tags(0.01)
    rng, log = stream(1, "shuffled tags"), Log()
    shuffled = scipy.sparse.csr_array(tags.toarray()[rng.permutation(tags.shape[0])])
    found = [chosen_metric(embeddings, shuffled, stream(seed, "choice"), log) for seed in range(4)]
    assert any(metric is None for metric in found)
    assert [line.endswith("so it is left out.") for line in log] == [metric is None for metric in found]


def test_codes_of_a_checkpoint_with_a_metric_stand_for_what_it_makes_of_embeddings(tmp_path):
    embeddings, tags = images_with_tags(3)
    kernel, bias = tag_metric(embeddings, tags, 1)
    seen = embeddings @ kernel + bias
    codebooks = seen[:256]
    entries = {"fc8": [np.zeros((5, 300), np.float32), np.zeros(300, np.float32)], "C": codebooks, FIT: np.eye(300)}
    write_weights(tmp_path / "x.npy", {**entries, METRIC: [kernel, bias]})
    codes = read_checkpoint(tmp_path / "x.npy").encode(embeddings[:256], None, stream(0, "codes"))
    np.testing.assert_array_equal(codebooks[codes[:, 0]], codebooks)
    write_weights(tmp_path / "y.npy", {**entries, METRIC: [kernel[:9], bias]})
    with pytest.raises(UserError, match=r"expected tag_metric with shapes \(300, 300\) and \(300,\)"):
        read_checkpoint(tmp_path / "y.npy")
