"""The tag metric: codes that stand for what an embedding says of the tags, not for the embedding itself (opt-in).

With u = r/‖r‖ of the training images, μ its mean, U = u − μ and T their 0/1 tags,

    A = UᵀU + λ·tr(UᵀU)/D·I        B = A⁻¹UᵀT        G = BBᵀ

codes stand for (y − μ)G, where y is u averaged with its neighbours (neighbourhoods.py) and (u − μ)G is scaled to a mean
length of 1; queries are y. B is ridge regression of the tags on the embeddings, so that scores are large where the tags
that are expected of two images agree.

Letters: N images, T tags, D = 300.
"""
import numpy as np

import metrics

CANDIDATES = (0.1, 0.3, 1, 3, 10)  # of λ
HELD_OUT = 500  # images whose tags tell which λ is best, at most a tenth of all
MOST_IMAGES = 5000  # by which λ is chosen


def tag_metric(embeddings, tags, ridge):
    """[kernel (D, D), bias (D,)] with (u − μ)G = u @ kernel + bias, float32.

    Args:
        embeddings: u, float32 (N, D).
        tags: CSR uint8 (N, T).
        ridge: λ.
    """
    mean = embeddings.mean(0, dtype=np.float64)
    centred = embeddings - mean  # U; its sum is 0, so the means of the tags' columns drop out of UᵀT
    gram = centred.T @ centred
    ridge = ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights = np.linalg.solve(gram + ridge, (tags.T.astype(np.float64) @ centred).T)  # B, (D, T)
    kernel = weights @ weights.T
    kernel /= np.linalg.norm(centred @ kernel, axis=1).mean()
    return [kernel.astype(np.float32), (-mean @ kernel).astype(np.float32)]


def chosen_metric(embeddings, tags, rng, log):
    """The metric of the λ that ranks held-out training images best by their tags; None if it is better without.

    Labels and queries of the data set have no say in it.
    """
    rows = rng.permutation(len(embeddings))[:MOST_IMAGES]
    count = min(HELD_OUT, len(rows) // 10)
    held_out, others = np.sort(rows[:count]), np.sort(rows[count:])
    labels = [tags[part].toarray() for part in (held_out, others)]

    def quality(database):
        return metrics.evaluate(lambda q: embeddings[held_out][q] @ database.T, *labels, len(others)).map

    plain = quality(embeddings[others])
    found = {}
    for ridge in CANDIDATES:
        kernel, bias = tag_metric(embeddings[others], tags[others], ridge)
        found[ridge] = quality(embeddings[others] @ kernel + bias)
    best = max(found, key=found.get)
    told = f"{count} held-out images: MAP by their tags {plain:.4f} without the tag metric, {found[best]:.4f} with " \
           f"λ {best:g}"
    if not found[best] > plain:
        log.info(f"{told}; so it is left out.")
        return None
    log.info(f"{told}.")
    return tag_metric(embeddings, tags, best)
