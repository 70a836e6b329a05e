"""A last layer for photos without tags: principal components of their features, in place of one learned from tags.

Letters: N images, F features, D = 300.
"""
import numpy as np
from sklearn.decomposition import PCA

from util import DIMENSIONS

SMALL = 0.1  # the largest number before the activation tanh, which hardly bends such small ones
LEAST = 1e-9  # part of the first component's variance that a component must have


def last_layer(features):
    """The last layer that gives an image its coordinates along the D directions in which `features`, float32 (N, F),
    differ most: [kernel (F, D), bias (D,)]. Where they differ in fewer directions, the other coordinates are 0."""
    with np.errstate(all="ignore"):  # a single image has no variance
        found = PCA(min(DIMENSIONS, *features.shape), svd_solver="covariance_eigh").fit(features.astype(np.float64))
    kept = found.components_[found.explained_variance_ > LEAST * found.explained_variance_[0]]
    kernel = np.zeros((features.shape[1], DIMENSIONS))
    kernel[:, :len(kept)] = kept.T
    kernel *= SMALL / max(np.abs((features - found.mean_) @ kernel).max(), 1e-9)
    return [kernel.astype(np.float32), (-found.mean_ @ kernel).astype(np.float32)]
