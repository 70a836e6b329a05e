"""A data set whose database photos were not trained on: `python experiments/held_out.py DATASET NAME [options]`.

Where people's photos serve both training and retrieval, MAP counts photos that the network has seen. The new data set
trains on half of them and searches the other half, with the same queries and labels.
"""
import argparse
import os
import shutil

import numpy as np

from dataset import TAG_LISTS, find_dataset, read_image_list, read_split
from prepare.photos import dataset_name
from prepare.split_files import install, link_images, temporary_folder, write_lines, write_matrix
from util import UserError, add_shared_options, run_program, stream


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Make a data set of another one whose database photos are also those that are trained on: half of "
                    "them are trained on, the others are searched. Tags, queries and labels stay the same.")
    parser.add_argument("dataset", metavar="DATASET", help="a data set whose tags were processed")
    parser.add_argument("name", metavar="NAME", type=dataset_name, help="of the new one")
    add_shared_options(parser)
    return parser.parse_args()


def main():
    options = parse_arguments()
    found = find_dataset(options.dataset, options.root)
    splits = options.root / "data" / options.name
    if os.path.lexists(splits):
        raise UserError(f"{splits} already exists: remove it, or choose another name")
    names, tags = read_split(found, "train")
    database, labels = read_split(found, "database")
    row_of = {name: row for row, name in enumerate(database)}
    if missing := [name for name in names if name not in row_of]:
        raise UserError(f"{options.dataset}: expected training photos that are in the database too, found "
                        f"{len(missing):,} others, such as {missing[0]}; MAP on it already counts unseen photos alone")
    order = stream(options.seed, "halves").permutation(len(names))
    trained, others = np.sort(order[:len(names) // 2]), np.sort(order[len(names) // 2:])
    if not len(trained):
        raise UserError(f"{options.dataset}: expected at least two training photos, found {len(names)}")
    link_images(options.root / "datasets" / options.name, found.images, options.root)
    with temporary_folder(splits.with_name(f".{options.name}.tmp")) as new:
        new.mkdir()
        write_half(new, "train_img.txt", names, "train_tag.txt", tags, trained)
        write_half(new, "database_img.txt", names, "database_label.txt", labels[[row_of[name] for name in names]],
                   others)
        copy_rest(found, new)
        install(new, splits, force=False)
    print(f"wrote {splits}: {len(trained):,} photos to train on, {len(others):,} others to search, "
          f"{len(read_image_list(splits / 'test_img.txt')):,} queries")


def write_half(folder, image_list, names, matrix_file, matrix, rows):
    """The image list and the matrix of some rows."""
    write_lines(folder / image_list, (names[row] for row in rows))
    write_matrix(folder / matrix_file, matrix[rows])


def copy_rest(found, folder):
    """The queries, the names of tags and labels, and the processed tags, as the other data set has them."""
    for name in (*TAG_LISTS, "labels.txt", "test_img.txt", "test_label.txt"):
        if (found.splits / name).is_file():
            shutil.copyfile(found.splits / name, folder / name)
    if found.tag_embeddings.parent.is_dir():
        shutil.copytree(found.tag_embeddings.parent, folder / "tags")


if __name__ == "__main__":
    run_program(main)
