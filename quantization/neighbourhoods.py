"""Neighbourhoods: codes of fitted codebooks represent the average of a photo and the training photos near it. Queries
of such codes are averaged in the same way.

    y = (u + Σ_j w_j·a_j) / (1 + Σ_j w_j)        w_j = exp(β·(u·a_j − 1))

for embeddings u of length 1 and anchors a_j, those of training images. Few bits cannot distinguish a photo from its
neighbours, so they are better spent on what these have in common (database-side augmentation, Arandjelović and
Zisserman 2012; of queries, query expansion, Chum et al. 2007). β is such that a training image has SHARE of its own
average, whatever the loss and the number of images.

Letters: N images, A anchors, D = 300.
"""
import numpy as np

from util import progress

SHARE = 0.8  # chosen by held-out tags: with less, rare tags lose more than frequent ones gain
MOST_ANCHORS = 10_000  # 12 MB of a checkpoint
LOOKED_AT = 500  # anchors by which β is chosen
SHARPEST = 1000  # β, with which only equal photos are averaged
AVERAGED_AT_ONCE = 1024  # images, whose weights of all anchors are in memory


def neighbourhoods(embeddings, rng, share=SHARE):
    """[anchors a, float32 (A, D); β, float32 (1,)] of training images.

    Args:
        embeddings: u, float32 (N, D). Of more than MOST_ANCHORS a random sample is taken.
        share: median part of an image in its own average; it counts as itself and as an anchor.
    """
    anchors = embeddings[np.sort(rng.choice(len(embeddings), min(MOST_ANCHORS, len(embeddings)), replace=False))]
    some = rng.choice(len(anchors), min(LOOKED_AT, len(anchors)), replace=False)
    differences = anchors[some] @ anchors.T - 1  # (n, A), cosines minus 1: 0 for equal anchors, negative for others
    low, high = 0.0, float(SHARPEST)
    for _ in range(20):
        middle = (low + high) / 2
        found = np.median(2 / (1 + np.exp(middle * differences).sum(1)))
        low, high = (middle, high) if found < share else (low, middle)
    return [anchors, np.array([high], np.float32)]


def averages(embeddings, neighbours):
    """y of embeddings u, float32 (N, D) to float32 (N, D).

    `neighbours`: [a, β] as returned by `neighbourhoods`, or None for embeddings that are not averaged.
    """
    if neighbours is None:
        return embeddings
    anchors, sharpness = neighbours
    found = np.empty(embeddings.shape, np.float32)
    for start in progress(range(0, len(embeddings), AVERAGED_AT_ONCE), desc="averaging neighbours", leave=False):
        part = embeddings[start:start + AVERAGED_AT_ONCE]
        weights = np.exp(sharpness * (part @ anchors.T - 1))  # (n, A)
        found[start:start + len(part)] = (part + weights @ anchors) / (1 + weights.sum(1, keepdims=True))
    return found
