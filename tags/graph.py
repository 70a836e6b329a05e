"""From raw tags to merged tags, as functions of arrays: the correlation graph and the merging of synonyms.

The paper's parts 2 and 3; section 4 of docs/method.md. Semantic enhancement is the graph times the tags' vectors.
Letters: R' raw tags with a vector, T merged tags, D = 300.
"""
import numpy as np
import scipy.sparse
import sklearn
from sklearn.cluster import DBSCAN

from util import progress, unit_length

DEVIATIONS = 6  # leaves 930 of NUS-WIDE's 1,000 tags with GloVe, and cat and dog apart with Google News
MOST_TAU = 0.8  # of a dozen tags the deviation says little
BISECTIONS = 14  # steps of 1/16,384
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


def usual_threshold(unit):
    """τ by the vectors' own cosines: DEVIATIONS standard deviations above the mean of two tags, at most MOST_TAU.

    Vectors of one kind have larger cosines than those of another, so no number fits all.

    Args:
        unit: float (R', D), L2-normalised.
    """
    size, sums, squares = len(unit), 0.0, 0.0
    for start in range(0, size, BLOCK_ROWS):
        cosines = unit[start:start + BLOCK_ROWS] @ unit.T  # (n, R')
        sums, squares = sums + cosines.sum(), squares + np.square(cosines).sum()
    pairs = max(1, size * (size - 1))
    mean = (sums - size) / pairs  # each tag with itself is left out
    deviation = np.sqrt(max(0, (squares - size) / pairs - mean**2))
    return min(MOST_TAU, max(0.0, mean + DEVIATIONS * deviation))


def merged_tags(unit, neighbours, tau, eps):
    """The enhanced vectors of tags, L2-normalised, float (R', D), their groups (see `merge_groups`), and the number of
    edges in the correlation graph from one tag to another. Arguments: see the functions above and below."""
    graph = correlation_graph(unit, neighbours, tau)
    enhanced = unit_length(graph @ unit)
    return enhanced, merge_groups(enhanced, eps), graph.nnz - len(unit)


def settings_for(count, unit, neighbours, eps):
    """τ and ε that leave `count` merged tags, or come nearest to it: τ by bisection, and then ε, if τ alone cannot."""
    def merged(tau, eps):
        return len(merged_tags(unit, neighbours, tau, eps)[1])

    def distance(setting):
        return abs(merged(*setting) - count)

    thresholds = bisect(lambda tau: merged(tau, eps) < count)
    best = min(((tau, eps) for tau in thresholds), key=distance)
    for tau in thresholds if distance(best) else ():
        radii = [radius for radius in bisect(lambda radius, tau=tau: merged(tau, radius) >= count) if radius > 0]
        best = min([best, *((tau, radius) for radius in radii)], key=distance)
    return best


def bisect(is_below):
    """Two numbers from 0 to 1 next to each other, where `is_below`, true of small numbers, becomes false."""
    low, high = 0.0, 1.0
    for _ in progress(range(BISECTIONS), desc="trying settings", leave=False):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return low, high


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
