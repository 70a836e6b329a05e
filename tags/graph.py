"""From raw tags to merged tags, as functions of arrays: the correlation graph and the merging of synonyms.

The paper's parts 2 and 3; section 4 of docs/method.md. Semantic enhancement is the graph times the tags' vectors.
Letters: R' raw tags with a vector, T merged tags, D = 300.
"""
import numpy as np
import scipy.sparse
import sklearn
from sklearn.cluster import DBSCAN

from util import unit_length

BLOCK_ROWS = 1024  # of the cosines, computed at a time: 80 MB for 10,000 tags
DBSCAN_MEMORY = 128  # MB that scikit-learn may use for a block of distances


def correlation_graph(unit, neighbours, tau):
    """The correlation graph: tag j is a neighbour of i if it is among the nearest of i by cosine and the cosine is at
    least τ. Each tag is a neighbour of itself. The entries of a row are 1 / the number of its neighbours.

    Args:
        unit: float (R', D), L2-normalised.
        neighbours (int): how many nearest tags may be neighbours, not counting the tag itself.
        tau (float): the least cosine. If it is at least 0, no tag and its neighbours can average to zero.

    Returns:
        CSR float64 (R', R'), whose rows sum to 1. No dense R'×R' matrix is ever in memory.
    """
    size = len(unit)
    neighbours = min(neighbours, size - 1)
    rows, columns = [np.arange(size)], [np.arange(size)]  # a tag is its own neighbour
    for start in range(0, size if neighbours else 0, BLOCK_ROWS):
        cosines = unit[start:start + BLOCK_ROWS] @ unit.T  # (n, R')
        block = np.arange(len(cosines))
        cosines[block, start + block] = -np.inf  # so that the tag itself is not among its nearest
        nearest = np.argpartition(cosines, size - neighbours, axis=1)[:, size - neighbours:]  # (n, neighbours)
        row, place = np.nonzero(np.take_along_axis(cosines, nearest, 1) >= tau)
        rows.append(start + row)
        columns.append(nearest[row, place])
    rows, columns = np.concatenate(rows), np.concatenate(columns)
    degrees = np.bincount(rows, minlength=size)
    return scipy.sparse.csr_array((1 / degrees[rows], (rows, columns)), shape=(size, size))


def merge_groups(unit, eps):
    """DBSCAN by cosine distance with two points to a core. A noise point is a group of its own.

    Args:
        unit: float (R', D), L2-normalised.
        eps (float): radius, as 1 − cosine.

    Returns:
        T ascending lists of rows, ordered by their first.
    """
    with sklearn.config_context(working_memory=DBSCAN_MEMORY):
        clusters = DBSCAN(eps=eps, min_samples=2, metric="cosine").fit(unit).labels_  # (R',), −1 is noise
    groups = {}
    for row, cluster in enumerate(clusters.tolist()):
        groups.setdefault(("noise", row) if cluster < 0 else cluster, []).append(row)
    return list(groups.values())


def merged_embeddings(unit, groups):
    """W: the mean of each group's L2-normalised embeddings, L2-normalised. (R', D), T groups → (T, D)."""
    return unit_length(np.stack([unit[group].mean(0) for group in groups]))
