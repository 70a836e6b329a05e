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
from prepare.split_files import install, link_images, temporary_folder, write_splits
from util import UserError, add_shared_options, run_program, stream


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Make the data set NAME from another one, DATASET, in which the same photos are trained on and "
                    "searched: NAME trains on half of them and searches the others. Queries, tags and labels stay the "
                    "same.")
    parser.add_argument("dataset", metavar="DATASET", help="a data set whose tags were processed")
    parser.add_argument("name", metavar="NAME", type=dataset_name, help="name of the new data set")
    add_shared_options(parser)
    return parser.parse_args()


def main():
    options = parse_arguments()
    found = find_dataset(options.dataset, options.root)
    splits = options.root / "data" / options.name
    if os.path.lexists(splits):
        raise UserError(f"{splits} already exists; remove it, or choose another name")
    names, tags = read_split(found, "train")
    database, labels = read_split(found, "database")
    row_of = {name: row for row, name in enumerate(database)}
    if missing := [name for name in names if name not in row_of]:
        raise UserError(f"{options.dataset}: expected training photos that are in the database too, found "
                        f"{len(missing):,} others, such as {missing[0]}; MAP on this data set counts only photos that "
                        "were not trained on")
    order = stream(options.seed, "halves").permutation(len(names))
    trained, others = np.sort(order[:len(names) // 2]), np.sort(order[len(names) // 2:])
    if not len(trained):
        raise UserError(f"{options.dataset}: expected at least two training photos, found {len(names)}")
    labels = labels[[row_of[name] for name in names]]
    with temporary_folder(splits.with_name(f".{options.name}.tmp")) as new:
        write_splits(new, {"train": ([names[row] for row in trained], tags[trained]),
                           "database": ([names[row] for row in others], labels[others])})
        copy_rest(found, new)
        link_images(options.root / "datasets" / options.name, found.images, options.root)
        install(new, splits, force=False)
    print(f"wrote {splits}: {len(trained):,} photos to train on, {len(others):,} others to search, "
          f"{len(read_image_list(splits / 'test_img.txt')):,} queries")


def copy_rest(found, folder):
    """Copy the queries, the names of tags and labels, and the processed tags of the Dataset `found` to `folder`."""
    for name in (*TAG_LISTS, "labels.txt", "test_img.txt", "test_label.txt"):
        if (found.splits / name).is_file():
            shutil.copyfile(found.splits / name, folder / name)
    if found.tag_embeddings.parent.is_dir():
        shutil.copytree(found.tag_embeddings.parent, folder / "tags")


if __name__ == "__main__":
    run_program(main)
