"""Merges the tags of a data set: `python tag_processing.py DATASET WORD_VECTORS GPU [options]`.

Writes `tags/FinalTagEmbs.txt`, `tags/TagIdMergeMap.pkl` and `tags/report.json` next to the split files.
Letters: N images, R raw tags, R' of them with a vector, T merged tags, D = 300.
"""
import argparse
import collections
import pickle
import textwrap

import numpy as np

from dataset import find_dataset, read_binary_matrix, read_tag_names
from storage.files import with_checksums
from storage.log import plain, provenance
from tags.word_vectors import FORMATS, find_vectors
from util import UserError, add_shared_options, gpu_number, number, run_program, unit_length

SHOWN_GROUPS = 20
TRAINED_TAU = 0.75  # for vectors trained on the tag lists, whose cosines spread from −1 to 1


def parse_options():
    parser = argparse.ArgumentParser(
        description="Look up the vector of each tag of a data set, enhance it by its neighbours in the correlation "
                    "graph, merge synonyms, and write tags/ next to the split files.")
    parser.add_argument("dataset", metavar="DATASET", help="flickr, nuswide, or NAME for data/NAME")
    parser.add_argument("word_vectors", metavar="WORD_VECTORS",
                        help=f"file of 300-d word vectors, {FORMATS}; or the word train, to train them on the tag "
                             "lists of the training images")
    parser.add_argument("gpu", metavar="GPU", type=gpu_number,
                        help="accepted as in the other programs, but not used: this program runs on the CPU")
    parser.add_argument("--neighbors", metavar="COUNT", type=number(int, 1), default=5,
                        help="how many of the nearest tags may be neighbours of a tag (default 5)")
    parser.add_argument("--threshold", metavar="TAU", type=number(float, 0, 1),
                        help="tau: the least cosine between neighbours, from 0 to 1 (default: 6 standard deviations "
                             "above the mean cosine of two tags, at most 0.8; "
                             f"{TRAINED_TAU} for vectors that are trained here)")
    parser.add_argument("--merge-radius", metavar="EPS", type=number(float, 1e-9, 1), default=0.05,
                        help="eps: DBSCAN's radius as a cosine distance, at most 1 (default 0.05)")
    parser.add_argument("--merged-to", metavar="T", type=number(int, 1),
                        help="find the tau, and if need be the eps, that leave T merged tags (1178 in the release's "
                             "files of flickr, 928 in those of nuswide)")
    parser.add_argument("--no-graph", action="store_true",
                        help="the paper's ablation: neither enhance nor merge (default: do both)")
    parser.add_argument("--limit", metavar="N", type=number(int, 1),
                        help="read only the first N vectors of the file (default: all)")
    add_shared_options(parser)
    options = parser.parse_args()
    if options.merged_to is not None and (options.no_graph or options.threshold is not None):
        parser.error("--merged-to excludes --threshold and --no-graph")
    return options


def main():
    options = parse_options()
    from tags import graph as method  # loads scikit-learn

    # vectors of the raw tags
    dataset = find_dataset(options.dataset, options.root)
    tags, matrix = read_raw_tags(dataset)
    files = {"tag_list": dataset.tag_list}  # on which the result depends
    if options.word_vectors == "train":
        from tags.trained_vectors import train_vectors  # loads gensim
        files["train_tag"] = dataset.split_files("train")[1]
        vectors, spelled = train_vectors(tags, matrix, options.seed)
    else:
        files["word_vectors"] = options.word_vectors
        vectors, spelled = find_vectors(tags, options.word_vectors, options.limit)
    found = np.flatnonzero([spelling is not None for spelling in spelled])  # (R',) raw columns
    if not len(found):
        raise UserError(f"{options.word_vectors}: none of the {len(tags)} tags in {dataset.tag_list} has a vector")
    unit = unit_length(vectors[found].astype(np.float64))  # (R', D)

    # correlation graph, semantic enhancement, merging of synonyms
    edges, groups, used = 0, [[row] for row in range(len(found))], {}
    if not options.no_graph:
        tau, eps = options.threshold, options.merge_radius
        if options.merged_to is not None:
            tau, eps = method.settings_for(options.merged_to, unit, options.neighbors, eps)
        elif tau is None:
            tau = TRAINED_TAU if options.word_vectors == "train" else method.usual_threshold(unit)
        unit, groups, edges = method.merged_tags(unit, options.neighbors, tau, eps)
        used = {"tau": tau, "eps": eps}
    embeddings = method.merged_embeddings(unit, groups)  # W, (T, D)
    merge_map = make_merge_map(groups, found, len(tags))

    report = {**make_report(tags, spelled, edges, merge_map), **used}
    write_tags(dataset, embeddings, merge_map, {**report, "options": plain(vars(options)), **provenance(files)})
    print_report(report, dataset)
    if options.merged_to is not None:
        print(f"asked for T = {options.merged_to}, found {len(groups)} with tau {tau:.4f} and eps {eps:.4f}")


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


def make_merge_map(groups, found, raw_tags):
    """{merged tag 0 … T−1: raw columns}, and under −1 the raw columns without a vector, if there are any.

    `groups` holds rows of `found` (R',), the ascending raw columns that have a vector, out of `raw_tags`.
    """
    merge_map = {merged: found[group].tolist() for merged, group in enumerate(groups)}
    dropped = np.setdiff1d(np.arange(raw_tags), found).tolist()
    return {**merge_map, -1: dropped} if dropped else merge_map


def write_tags(dataset, embeddings, merge_map, report):
    """Replace the embeddings, the merge map (readable since Python 3.4) and the report of `tags/`, all together."""
    with with_checksums(dataset.tag_report, report, dataset.tag_embeddings, dataset.merge_map) as (text, pickled):
        np.savetxt(text, embeddings, fmt="%.9g")
        pickled.write_bytes(pickle.dumps(merge_map, protocol=4))


def make_report(tags, spelled, edges, merge_map):
    """What became of the tags, as a dict of numbers and names."""
    merged = [columns for merged_tag, columns in merge_map.items() if merged_tag >= 0]
    groups = sorted((columns for columns in merged if len(columns) > 1), key=len, reverse=True)
    return {
        "raw_tags": len(tags),
        "found": sum(map(len, merged)),
        "missing": [tags[column] for column in merge_map.get(-1, [])],
        "respelled": {tag: spelling for tag, spelling in zip(tags, spelled, strict=True)
                      if spelling not in (tag, None)},
        "edges": edges,
        "merged_tags": len(merged),
        "merged_groups": [[tags[column] for column in columns] for columns in groups],
    }


def print_report(report, dataset):
    missing, groups = report["missing"], report["merged_groups"]
    print(f"raw tags     {report['raw_tags']:6}  in {dataset.tag_list}")
    print(f"found        {report['found']:6}  {len(report['respelled'])} of them under another spelling")
    print(f"missing      {len(missing):6}  dropped, because they have no vector")
    if missing:
        print(textwrap.fill(", ".join(missing), 110, initial_indent="    ", subsequent_indent="    "))
    print(f"edges        {report['edges']:6}  from a tag to a neighbour in the correlation graph"
          + (f", tau {report['tau']:.4f}" if "tau" in report else ""))
    print(f"merged tags  {report['merged_tags']:6}  (T); {len(groups)} of them merge two raw tags or more")
    for group in groups[:SHOWN_GROUPS]:
        print(textwrap.fill(", ".join(group), 110, initial_indent="    ", subsequent_indent="        "))
    if len(groups) > SHOWN_GROUPS:
        print(f"    and {len(groups) - SHOWN_GROUPS} smaller ones, see report.json")
    print(f"written to {dataset.tag_embeddings.parent}")


if __name__ == "__main__":
    run_program(main)
