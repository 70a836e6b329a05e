"""Training photos held out, to choose options without labels: `python prepare/held_out.py DATASET NAME [options]`.

The new data set trains on the other photos, which are its database too. Its queries are the held-out ones, and its
labels are tags.
"""
import argparse
import os
import shutil

import numpy as np

from dataset import TAG_LISTS, find_dataset, read_split, read_tag_names
from prepare.photos import dataset_name
from prepare.split_files import install, link_images, temporary_folder, write_lines, write_matrix
from util import UserError, add_shared_options, number, run_program, stream


def main():
    options = parse_arguments()
    found = find_dataset(options.dataset, options.root)
    splits = options.root / "data" / options.name
    if os.path.lexists(splits):
        raise UserError(f"{splits} is already there; remove it, or choose another name")
    names, tags = read_split(found, "train")
    if not 0 < options.photos < len(names):
        raise UserError(f"{options.dataset} has {len(names):,} training photos: --photos must be fewer, found "
                        f"{options.photos:,}")
    order = stream(options.seed, "held-out photos").permutation(len(names))
    held_out, rest = np.sort(order[:options.photos]), np.sort(order[options.photos:])
    labels = np.flatnonzero(tags[rest].sum(0) >= options.fewest)
    if not len(labels):
        raise UserError(f"{options.dataset}: no tag is on {options.fewest} of the photos that are kept")
    link_images(options.root / "datasets" / options.name, found.images, options.root)
    with temporary_folder(splits.with_name(f".{options.name}.tmp")) as new:
        new.mkdir()
        write_photos(new, found, names, tags, {"train": rest, "database": rest, "test": held_out}, labels)
        install(new, splits, force=False)
    print(f"wrote {splits}: {len(rest):,} photos to train on and to search, {len(held_out):,} queries, {len(labels):,} "
          "tags as labels")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Make a data set of another one's training photos: some are held out as queries, the others are "
                    "trained on and searched, and tags are the labels. By MAP on it options can be chosen without a "
                    "look at the labels or queries of the first one.")
    parser.add_argument("dataset", metavar="DATASET", help="a data set whose tags were processed")
    parser.add_argument("name", metavar="NAME", type=dataset_name, help="of the new one")
    parser.add_argument("--photos", type=number(int, 1), default=700, metavar="N",
                        help="photos that are held out (default 700)")
    parser.add_argument("--fewest", type=number(int, 1), default=5, metavar="N",
                        help="other photos that a tag is on which counts as a label (default 5)")
    add_shared_options(parser)
    return parser.parse_args()


def write_photos(folder, found, names, tags, rows, labels):
    """Split files of `rows`, `{split: rows of the training photos}`, and the tags as the other data set has them."""
    tag_names = read_tag_names(found.tag_list)
    write_lines(folder / "labels.txt", (tag_names[column] for column in labels))
    for split, chosen in rows.items():
        write_lines(folder / f"{split}_img.txt", (names[row] for row in chosen))
    write_matrix(folder / "train_tag.txt", tags[rows["train"]])
    for split in ("database", "test"):
        write_matrix(folder / f"{split}_label.txt", tags[rows[split]][:, labels])
    for name in TAG_LISTS:
        if (found.splits / name).is_file():
            shutil.copyfile(found.splits / name, folder / name)
    if found.tag_embeddings.parent.is_dir():
        shutil.copytree(found.tag_embeddings.parent, folder / "tags")


if __name__ == "__main__":
    run_program(main)
