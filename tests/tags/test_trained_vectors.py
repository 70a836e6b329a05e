"""Word vectors trained on the tag lists of images."""
import numpy as np

from tag_inputs import topical_tags
from tags.trained_vectors import train_vectors


def test_trained_vectors_bring_tags_together_that_occur_together():
    tags, labels = topical_tags()
    vectors, spelled = train_vectors(tags, labels, seed=0)
    assert vectors.dtype == np.float32
    assert spelled == [*tags[:12], None]
    assert not vectors[12].any()
    unit = vectors[:12] / np.linalg.norm(vectors[:12], axis=1, keepdims=True)
    cosines = unit @ unit.T
    same = np.kron(np.eye(3), np.ones((4, 4))) == 1
    assert cosines[same].min() > cosines[~same].max() + 0.3
