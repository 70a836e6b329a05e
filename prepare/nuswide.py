"""Makes the data set `nuswide` of NUS-WIDE: a link to its images, and split files in data/nus-wide.

Files get their names when they are complete. Letters: N images, R raw tags, L labels.
"""
import argparse
from pathlib import Path

import numpy as np
import scipy.sparse

from dataset import read_binary_matrix, read_image_list, read_tag_names
from prepare.split_files import (
    Collection,
    Rows,
    counts,
    draw_queries,
    draw_training,
    finish,
    link_images,
    only_preparation,
)
from storage.images import image_faults, list_faults
from util import UserError, add_shared_options, leads_out, number, progress, run_program, stream

FOLDER = "nus-wide"
COUNT = 269_648  # images of the whole collection
LABELS = 21  # the most frequent concepts
PER_CONCEPT_QUERIES = 2100  # --queries 2100 means 100 of each of the 21 concepts


def main():
    options = parse_options()
    place, splits = options.root / "datasets" / FOLDER, options.root / "data" / FOLDER
    images = options.images or options.release / "Flickr"
    for folder in (options.release, images):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
    with only_preparation(place, splits):
        collection, total = read_collection(options.release, images)
        rows = draw(collection, options.queries, options.per_concept, options.training,
                    stream(options.seed, "nus-wide splits"))
        link_images(place / "Flickr", images, options.root)
        details = {"dataset": "nuswide", "queries_of_each_label": options.per_concept, "seed": options.seed}
        finish(collection, rows, splits, details, options.force)
    if total != COUNT:
        print(f"note: the lists name {total:,} images; the whole collection has {COUNT:,}")


def parse_options():
    parser = argparse.ArgumentParser(
        description="Make the data set nuswide of NUS-WIDE: split files and report.json in data/nus-wide, a link to "
                    "the images at datasets/nus-wide/Flickr. The labels are the 21 most frequent concepts; images "
                    "that have none of them or cannot be read are left out.")
    parser.add_argument("release", metavar="ROOT", type=Path,
                        help="folder that holds ImageList/, NUS_WID_Tags/, Groundtruth/ and ConceptsList/")
    parser.add_argument("--images", type=Path, metavar="DIR",
                        help="folder that holds actor/0001_2124494179.jpg and so on (default ROOT/Flickr)")
    queries = parser.add_mutually_exclusive_group()
    queries.add_argument("--queries", type=number(int, 1), default=5000, metavar="N",
                         help="random queries; the rest is the database (default 5000). 2100 means --per-concept 100, "
                              "as other papers do")
    queries.add_argument("--per-concept", type=number(int, 1), metavar="N",
                         help="N queries of each concept, instead of --queries")
    parser.add_argument("--training", type=number(int, 1), default=10_000, metavar="N",
                        help="number of database images with a tag to train on (default 10000)")
    parser.add_argument("--force", action="store_true", help="replace other split files in data/nus-wide")
    add_shared_options(parser)
    options = parser.parse_args()
    if options.queries == PER_CONCEPT_QUERIES and options.per_concept is None:
        options.per_concept = PER_CONCEPT_QUERIES // LABELS
    return options


# ---------------------------------------------------------------- reading NUS-WIDE's files

def read_collection(release, images):
    """The images that have a label and can be read, as a Collection; and how many images the lists name."""
    image_list = release / "ImageList" / "Imagelist.txt"
    names = image_names(image_list)
    label_names, labels = read_labels(release, image_list, len(names))
    tag_list = either(release / "NUS_WID_Tags", release / "ConceptsList", release, name="TagList1k.txt")
    tag_names = read_tag_names(tag_list)
    if not tag_names:
        raise UserError(f"{tag_list}: expected one tag a line, found none")
    tags = read_matrix(release / "NUS_WID_Tags" / "AllTags1k.txt", len(tag_names), f"{tag_list} lists tags",
                       len(names), image_list)
    labelled = np.flatnonzero(counts(labels))
    faults = image_faults([images / names[row] for row in labelled])
    if len(faults) == len(labelled):
        raise UserError(f"{images}: expected the images that {image_list} names, but none of "
                        f"{len(labelled):,} can be used: {names[labelled[0]]} {faults[0]}")
    if faults:
        print(f"left out: {len(faults):,} of {len(labelled):,} images cannot be used: "
              + list_faults(faults, lambda i: names[labelled[i]]))
    kept = np.delete(labelled, list(faults))
    return Collection([f"Flickr/{names[row]}" for row in kept], tags[kept], labels[kept], "TagList1k.txt", tag_names,
                      label_names, {f"Flickr/{names[labelled[i]]}": why for i, why in faults.items()}), len(names)


def either(*folders, name):
    """The path of file `name` in the first of `folders` that has it, or else in the first."""
    return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)


def image_names(path):
    r"""The images' paths, with `actor\0001_2124494179.jpg` as `actor/0001_2124494179.jpg`. Raises UserError."""
    names = [name.replace("\\", "/") for name in read_image_list(path)]
    for row, name in enumerate(names, 1):
        if leads_out(name):
            raise UserError(f"{path}: row {row}: expected a path inside the folder of the images, found {name!r}")
    return names


def read_labels(release, image_list, count):
    """The most frequent concepts: their L names, in the order of the list of concepts, and CSR uint8 (N, L)."""
    path = either(release / "ConceptsList", release, name="Concepts81.txt")
    concepts = read_tag_names(path)
    if len(concepts) < LABELS:
        raise UserError(f"{path}: expected at least {LABELS} concepts, found {len(concepts)}")
    folder = release / "Groundtruth" / "AllLabels"
    columns = [read_matrix(folder / f"Labels_{concept}.txt", 1, "the file is of one concept", count, image_list)
               for concept in progress(concepts, desc="reading labels", leave=False)]
    frequent = np.argsort([-column.nnz for column in columns], kind="stable")[:LABELS]
    frequent.sort()
    return [concepts[i] for i in frequent], scipy.sparse.csr_array(scipy.sparse.hstack([columns[i] for i in frequent]))


def read_matrix(path, columns, why, rows, rows_list):
    """A 0/1 matrix, CSR uint8 (rows, columns). Raises UserError if it does not fit the file that lists `rows` images.

    `why`: see `read_binary_matrix`.
    """
    matrix = read_binary_matrix(path, columns, why)
    if matrix.shape[0] != rows:
        raise UserError(f"{path} has {matrix.shape[0]:,} rows, but {rows_list} lists {rows:,} images")
    return matrix


# ---------------------------------------------------------------- the splits

def draw(collection, queries, per_concept, training, rng):
    """The rows of each split. Raises UserError if there are too few images.

    `per_concept`: number of queries of each concept, or None for `queries` of all images.
    """
    count = len(collection.names)
    if per_concept:
        test = draw_per_concept(collection, per_concept, rng)
        database = np.setdiff1d(np.arange(count), test)
    else:
        test, database = draw_queries(count, queries, rng)
    return Rows(draw_training(collection, database, training, rng), database, test)


def draw_per_concept(collection, each, rng):
    """`each` rows of each label, ascending, none twice; rows of the rarest label are drawn first. Raises UserError."""
    by_label = collection.labels.tocsc()
    free = np.ones(len(collection.names), bool)
    for label in np.argsort(counts(by_label), kind="stable"):
        rows = by_label.indices[by_label.indptr[label]:by_label.indptr[label + 1]]
        rows = np.sort(rows[free[rows]])
        if len(rows) < each:
            raise UserError(f"expected at least {each:,} images of {collection.label_names[label]} that are not "
                            f"queries yet, found {len(rows):,}")
        free[rng.choice(rows, each, replace=False)] = False
    return np.flatnonzero(~free)


if __name__ == "__main__":
    run_program(main)
