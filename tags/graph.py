"""From raw tags to merged tags: correlation graph, semantic enhancement, merging of synonyms.

What belongs here: what tag_processing.py does, section 4 of the method. How word vectors are read stands in
word_vectors.py, how they are trained in trained_vectors.py.
Letters: N images, R raw tags, R' of them with a vector, T merged tags, D = 300.
"""
import collections
import pickle
import textwrap

import numpy as np
import scipy.sparse
import sklearn
from sklearn.cluster import DBSCAN

from dataset import find_dataset, read_binary_matrix, read_tag_names
from storage.files import with_checksums
from storage.log import provenance
from tags.word_vectors import find_vectors
from util import UserError

BLOCK_ROWS = 1024  # cosines are computed so many rows at a time: 80 MB for 10,000 tags
DBSCAN_MEMORY = 128  # MB that scikit-learn may use for a block of distances
SHOWN_GROUPS = 20


def process(options, train=None):
    """Make the files in `tags/`. `train`: `trained_vectors.train_vectors` where vectors are trained, not read."""
    dataset = find_dataset(options.dataset, options.root)
    tags, matrix = read_raw_tags(dataset)

    if train:
        vectors, spelled = train(tags, matrix, options.seed)
    else:
        vectors, spelled = find_vectors(tags, options.word_vectors, options.limit)
    found = np.flatnonzero([spelling is not None for spelling in spelled])  # (R',) raw columns
    if not len(found):
        raise UserError(f"{options.word_vectors}: none of the {len(tags)} tags in {dataset.tag_list} has a vector")
    unit = normalise(vectors[found].astype(np.float64))  # (R', D)

    if options.no_graph:
        graph, enhanced, groups = None, unit, [[i] for i in range(len(found))]
    else:
        graph = correlation_graph(unit, options.neighbors, options.threshold)
        enhanced = normalise(graph @ unit)  # (R', D), semantic enhancement
        groups = merge_groups(enhanced, options.merge_radius)
    embeddings = merged_embeddings(enhanced, groups)  # (T, D)
    merge_map = make_merge_map(groups, found, len(tags))

    report = make_report(tags, spelled, graph, merge_map)
    write_tags(dataset, embeddings, merge_map, {
        **report, "options": {**vars(options), "root": str(options.root)},
        **provenance(input_files(dataset, options.word_vectors))})
    print_report(report, dataset)


# ---------------------------------------------------------------- read

def read_raw_tags(dataset):
    """The R raw tags and their 0/1 matrix over the training images, CSR uint8 (N, R). Raises UserError."""
    tags = read_tag_names(dataset.tag_list)
    repeated = [tag for tag, count in collections.Counter(tags).items() if count > 1]
    if repeated:
        raise UserError(f"{dataset.tag_list}: expected each tag once, found more than once: {', '.join(repeated)}")
    matrix_file = dataset.split_files("train")[1]
    matrix = read_binary_matrix(matrix_file)
    if matrix.shape[1] != len(tags):
        raise UserError(f"{matrix_file} has {matrix.shape[1]} columns, but {dataset.tag_list} lists {len(tags)} tags")
    return tags, matrix


def input_files(dataset, word_vectors):
    """What the result depends on, as {name: path}."""
    files = {"tag_list": dataset.tag_list}
    if word_vectors == "train":
        return {**files, "train_tag": dataset.split_files("train")[1]}
    return {**files, "word_vectors": word_vectors}


# ---------------------------------------------------------------- the method, as functions of arrays

def normalise(vectors):
    """Rows divided by their L2 norms; none may be zero. (n, D) → (n, D)."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def correlation_graph(unit, neighbours, tau):
    """The correlation graph: tag j is a neighbour of i if it is among the nearest of i by cosine and the cosine is at
    least τ. Each tag is a neighbour of itself. The entries of a row are 1 / the number of its neighbours.

    Args:
        unit: float (R', D), L2-normalised.
        neighbours (int): how many nearest tags are looked at, the tag itself not counted.
        tau (float): least cosine. From 0 on, no tag and its neighbours can average to zero.

    Returns:
        CSR float64 (R', R'), rows sum to 1. R'×R' is never dense in memory.
    """
    size = len(unit)
    neighbours = min(neighbours, size - 1)
    rows, columns = [np.arange(size)], [np.arange(size)]  # a tag is its own neighbour
    for start in range(0, size if neighbours else 0, BLOCK_ROWS):
        cosines = unit[start:start + BLOCK_ROWS] @ unit.T  # (n, R')
        block = np.arange(len(cosines))
        cosines[block, start + block] = -np.inf  # the tag itself takes none of the places
        nearest = np.argpartition(cosines, size - neighbours, axis=1)[:, size - neighbours:]  # (n, neighbours)
        row, place = np.nonzero(np.take_along_axis(cosines, nearest, 1) >= tau)
        rows.append(start + row)
        columns.append(nearest[row, place])
    rows, columns = np.concatenate(rows), np.concatenate(columns)
    degrees = np.bincount(rows, minlength=size)
    return scipy.sparse.csr_array((1 / degrees[rows], (rows, columns)), shape=(size, size))


def merge_groups(unit, eps):
    """DBSCAN by cosine distance, two points to a core. A noise point is a group of its own.

    Args:
        unit: float (R', D), L2-normalised.
        eps (float): radius, 1 − cosine.

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
    return normalise(np.stack([unit[group].mean(0) for group in groups]))


def make_merge_map(groups, found, raw_tags):
    """{merged tag 0 … T−1: raw columns}, and under −1 the raw columns without a vector, if there are any.

    `groups` holds rows of `found` (R',), the ascending raw columns that have a vector, out of `raw_tags`.
    """
    merge_map = {merged: found[group].tolist() for merged, group in enumerate(groups)}
    dropped = np.setdiff1d(np.arange(raw_tags), found).tolist()
    return {**merge_map, -1: dropped} if dropped else merge_map


# ---------------------------------------------------------------- files

def write_tags(dataset, embeddings, merge_map, report):
    """Replace the embeddings, the merge map (readable since Python 3.4) and the report of `tags/`, all together."""
    with with_checksums(dataset.tag_report, report, dataset.tag_embeddings, dataset.merge_map) as (text, pickled):
        np.savetxt(text, embeddings, fmt="%.9g")
        pickled.write_bytes(pickle.dumps(merge_map, protocol=4))


# ---------------------------------------------------------------- report

def make_report(tags, spelled, graph, merge_map):
    """What became of the tags, as a dict of plain numbers and names."""
    merged = [columns for merged_tag, columns in merge_map.items() if merged_tag >= 0]
    groups = sorted((columns for columns in merged if len(columns) > 1), key=len, reverse=True)
    return {
        "raw_tags": len(tags),
        "found": sum(map(len, merged)),
        "missing": [tags[column] for column in merge_map.get(-1, [])],
        "respelled": {tag: spelling for tag, spelling in zip(tags, spelled, strict=True)
                      if spelling not in (tag, None)},
        "edges": 0 if graph is None else graph.nnz - graph.shape[0],  # without the loops
        "merged_tags": len(merged),
        "merged_groups": [[tags[column] for column in columns] for columns in groups],
    }


def print_report(report, dataset):
    missing, groups = report["missing"], report["merged_groups"]
    print(f"raw tags     {report['raw_tags']:6}  in {dataset.tag_list}")
    print(f"found        {report['found']:6}  of them {len(report['respelled'])} under another spelling")
    print(f"missing      {len(missing):6}  without a vector, dropped")
    if missing:
        print(textwrap.fill(", ".join(missing), 110, initial_indent="    ", subsequent_indent="    "))
    print(f"edges        {report['edges']:6}  from a tag to a neighbour in the correlation graph")
    print(f"merged tags  {report['merged_tags']:6}  (T); {len(groups)} of them merge two raw tags or more")
    for group in groups[:SHOWN_GROUPS]:
        print(textwrap.fill(", ".join(group), 110, initial_indent="    ", subsequent_indent="        "))
    if len(groups) > SHOWN_GROUPS:
        print(f"    and {len(groups) - SHOWN_GROUPS} smaller ones, see report.json")
    print(f"written to {dataset.tag_embeddings.parent}")
