"""Checks whether a data set is sound: `python prepare/check.py NAME`. Nothing is changed.

A finding is something that spoils results: files that do not fit together, images that cannot be read, queries that are
in the database. A note is something that is good to know.
"""
import argparse
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dataset import (
    check_links,
    faults_in,
    find_dataset,
    merge_tags,
    read_binary_matrix,
    read_image_list,
    read_lines,
    read_tag_names,
    read_tags,
)
from prepare.split_files import counts, spread, tags_made_from
from storage.files import fingerprint, write_json
from storage.images import list_faults
from util import ROOT, UserError, cores, first_few, progress, run_program, unit_length

SPLITS = ("train", "database", "test")
FIRST_LOSSES = {"flickr": 0.893, "nuswide": 0.895}  # embedding loss of step 1 in the release's logs


@dataclass
class Check:
    """What is known about a data set.

    names: {split: image names}; matrices: {split: CSR uint8 (rows, columns)}; figures: numbers for the report;
    findings, notes: sentences.
    """
    names: dict = field(default_factory=dict)
    matrices: dict = field(default_factory=dict)
    figures: dict = field(default_factory=dict)
    findings: list = field(default_factory=list)
    notes: list = field(default_factory=list)


def main():
    options = parse_options()
    dataset = find_dataset(options.dataset, options.root)
    check = Check()
    read_splits(dataset, check)
    check_columns(dataset, check)
    check_labels(check)
    check_tags(dataset, check)
    unreadable = check_images(dataset, check)
    check_overlap(dataset, check, unreadable)
    print_check(dataset, check)
    if options.json:
        write_json(options.json, {"dataset": dataset.name, "sound": not check.findings, "findings": check.findings,
                                  "notes": check.notes, **check.figures})
    if check.findings:
        sys.exit(1)


def parse_options():
    parser = argparse.ArgumentParser(
        description="Check whether a data set is sound: counts, shapes, tags and labels per image, unreadable images, "
                    "queries that are in the database. The exit code is 0 if it is, 1 if it is not, 2 if it cannot be "
                    "read.")
    parser.add_argument("dataset", metavar="NAME", help="flickr, nuswide, or the name of a folder in data/")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to this file, as JSON")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                        help="folder that holds data/ and datasets/ (default: the folder of train.py)")
    return parser.parse_args()


# ---------------------------------------------------------------- whether the files fit together

def read_splits(dataset, check):
    """Read the splits that exist. Raises UserError if none can be read."""
    for split in SPLITS:
        list_file, matrix_file = dataset.split_files(split)
        if not (list_file.is_file() or matrix_file.is_file()):
            check.notes.append(f"no split {split}")
            continue
        try:
            names, matrix = read_image_list(list_file), read_binary_matrix(matrix_file)
        except UserError as error:
            check.findings.append(str(error))
            continue
        check.names[split], check.matrices[split] = names, matrix
        check.figures[split] = {"images": len(names), "rows": matrix.shape[0], "columns": matrix.shape[1],
                                "ones_of_an_image": spread(counts(matrix))}
        if matrix.shape[0] != len(names):
            check.findings.append(f"{matrix_file} has {matrix.shape[0]:,} rows, but {list_file} lists "
                                  f"{len(names):,} images")
        if repeated := [name for name, number in Counter(names).items() if number > 1]:
            check.notes.append(f"{list_file} names {len(repeated):,} images more than once: {first_few(repeated)}")
    if not check.names:
        raise UserError(check.findings[0] if check.findings else
                        f"{dataset.splits}: expected train_img.txt, database_img.txt or test_img.txt, found none")


def check_columns(dataset, check):
    """Compare the columns of the matrices with the lists that name them."""
    try:
        if "train" in check.matrices:
            compare_columns(check, "train", read_tag_names(dataset.tag_list), dataset.tag_list)
        path = dataset.splits / "labels.txt"
        for split in ("database", "test"):
            if path.is_file() and split in check.matrices:
                compare_columns(check, split, read_lines(path), path)
    except UserError as error:
        check.findings.append(str(error))
    widths = {split: check.matrices[split].shape[1] for split in ("database", "test") if split in check.matrices}
    if len(set(widths.values())) > 1:
        check.findings.append(f"database_label.txt has {widths['database']} columns, test_label.txt {widths['test']}")


def compare_columns(check, split, names, path):
    columns = check.matrices[split].shape[1]
    if columns != len(names):
        check.findings.append(f"the matrix of {split} has {columns:,} columns, but {path} lists {len(names):,}")
    if len(set(names)) != len(names):
        check.findings.append(f"{path} lists some names more than once")


# ---------------------------------------------------------------- labels and tags

def check_labels(check):
    """Note images without a label."""
    for split in ("database", "test"):
        if split in check.figures and (none := check.figures[split]["ones_of_an_image"]["none"]):
            check.notes.append(f"{none:,} images of {split} have no label")


def check_tags(dataset, check):
    """Note training images without a usable tag, and compare `tags/` with the split files."""
    if "train" not in check.matrices:
        return
    raw = check.matrices["train"]
    if none := int((counts(raw) == 0).sum()):
        check.notes.append(f"{none:,} training images have no tag")
    if not (dataset.merge_map.is_file() or dataset.tag_embeddings.is_file()):
        check.notes.append("no tags/ yet: run tag_processing.py")
        return
    try:
        groups, embeddings = read_tags(dataset, raw.shape[1])
    except UserError as error:
        check.findings.append(str(error))
        return
    if made_from_other_tags(dataset):
        check.findings.append(f"{dataset.tag_embeddings.parent} was made from another tag list than "
                              f"{dataset.tag_list}; run tag_processing.py again")
    merged = merge_tags(raw, groups)
    dropped = int(((counts(raw) > 0) & (counts(merged) == 0)).sum())
    check.figures["merged_tags"], check.figures["images_whose_tags_were_all_dropped"] = len(groups), dropped
    check.notes.append(f"{len(groups):,} merged tags; all tags of {dropped:,} training images were dropped")
    margin = check.figures["mean_margin"] = mean_margin(merged, embeddings)
    released = FIRST_LOSSES.get(dataset.name)
    check.notes.append(f"mean margin {margin:.4f}: the embedding loss of WSDQH's first step should be near it"
                       + (f"; the release's is {released:.4f}" if released else ""))


def mean_margin(tags, embeddings):
    """The mean margin 1 − ŵ_i·ŵ_j over all images and all pairs of a tag i that an image has and a tag j that it has
    not, as the loss weights them.

    Args:
        tags: CSR uint8 (N, T).
        embeddings: W, float32 (T, D).
    """
    unit = unit_length(embeddings.astype(np.float64))
    own, own_sum = counts(tags), tags @ unit  # (N,), (N, D)
    pairs = own * (len(unit) - own)
    cosines = (own_sum * (unit.sum(0) - own_sum)).sum()
    return float((pairs.sum() - cosines) / max(1, pairs.sum()))


def made_from_other_tags(dataset):
    """Whether the report in `tags/` names another tag list than the present one."""
    try:
        return tags_made_from(dataset.splits) not in (None, fingerprint(dataset.tag_list))
    except UserError:  # there is no tag list, which check_columns reports
        return False


# ---------------------------------------------------------------- images

def check_images(dataset, check):
    """Find the images that cannot be read; returns their names."""
    names = list(dict.fromkeys(name for split in SPLITS for name in check.names.get(split, ())))
    try:
        check_links(dataset, names)
    except UserError as error:
        check.findings.append(str(error))
    faults = faults_in(dataset.images, names)
    check.figures["unreadable_images"] = len(faults)
    if faults:
        check.findings.append(f"{len(faults):,} of {len(names):,} images in {dataset.images} cannot be used: "
                              + list_faults(faults, names.__getitem__))
    return {names[i] for i in faults}


def check_overlap(dataset, check, unreadable):
    """Find queries that are also database or training images, by name or by the content of the file."""
    test = list(dict.fromkeys(check.names.get("test", ())))
    others = {split: dict.fromkeys(check.names[split]) for split in ("database", "train") if split in check.names}
    hashes = content_hashes(dataset.images, [name for name in test if name not in unreadable],
                            [name for names in others.values() for name in names if name not in unreadable])
    for split, names in others.items():
        same_name = [name for name in test if name in names]
        by_content = {hashes[name]: name for name in names if name in hashes}
        same_content = [f"{name} is {by_content[hashes[name]]}" for name in test
                        if name not in names and hashes.get(name) in by_content]
        check.figures[f"queries_in_{split}"] = {"by_name": len(same_name), "by_content": len(same_content)}
        if same_name:
            check.findings.append(f"{len(same_name):,} queries are also in {split}: {first_few(same_name)}")
        if same_content:
            check.findings.append(f"{len(same_content):,} queries are also in {split}, under another name: "
                                  + first_few(same_content))


def content_hashes(folder, names, others):
    """{name: SHA-256} of those of `names` and `others` whose size occurs in both; only these can be equal."""
    with ThreadPoolExecutor(cores()) as pool:
        both = list(dict.fromkeys((*names, *others)))
        size = dict(zip(both, pool.map(lambda name: (folder / name).stat().st_size, both), strict=True))
        shared = {size[name] for name in names} & {size[name] for name in others}
        candidates = [name for name in both if size[name] in shared]
        found = progress(pool.map(lambda name: fingerprint(folder / name), candidates), total=len(candidates),
                         desc="comparing images", leave=False)
        return dict(zip(candidates, found, strict=True))


# ---------------------------------------------------------------- report

def print_check(dataset, check):
    print(f"{dataset.name}: split files in {dataset.splits}, images in {dataset.images}")
    print("            images  columns  tags or labels per image: least / median / most   none")
    for split in check.names:
        figures, ones = check.figures[split], check.figures[split]["ones_of_an_image"]
        print(f"{split:8}{figures['images']:10,}{figures['columns']:9,}  {ones['min']:31} / {ones['median']:6g} / "
              f"{ones['max']:4}{ones['none']:7,}")
    for note in check.notes:
        print(f"note: {note}")
    for finding in check.findings:
        print(f"finding: {finding}")
    print(f"not sound: {len(check.findings)} finding{'s' * (len(check.findings) > 1)}" if check.findings else "sound")


if __name__ == "__main__":
    run_program(main)
