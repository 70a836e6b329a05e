"""Split files: drawing the splits, writing the files that dataset.py reads, moving them into place, and the report.

Letters: N images, R raw tags, L labels.
"""
import contextlib
import filecmp
import os
import shutil
from dataclasses import dataclass
from itertools import chain

import numpy as np
import scipy.sparse

from dataset import TAG_LISTS, link_folder, read_tag_names
from storage.files import exclusive_lock, fingerprint, read_json, sync, write_json, write_text
from storage.images import list_faults
from util import UserError

MATRICES = {"train": "train_tag.txt", "database": "database_label.txt", "test": "test_label.txt"}
LEFT_OUT = "left_out.txt"
DROPPED_TAGS = "dropped_tags.txt"
SPLIT_FILES = (*(f"{split}_img.txt" for split in MATRICES), *MATRICES.values(), *TAG_LISTS, "labels.txt", LEFT_OUT,
               DROPPED_TAGS)
REPORT = "report.json"
MOVING = ".prepared"  # folder in data/<name>/ of whole, synced files that are being moved to the folder around it
BLOCK_ROWS = 4096  # of a matrix that are turned into text at a time


@dataclass(frozen=True)
class Collection:
    """All images that can be used, before they are split.

    names: N paths relative to datasets/<name>/; tags: CSR uint8 (N, R); labels: CSR uint8 (N, L);
    tag_list: name of its file; tag_lines: R; label_names: L; left_out: {path: what is wrong} of images not among N.
    """
    names: list
    tags: scipy.sparse.csr_array
    labels: scipy.sparse.csr_array
    tag_list: str
    tag_lines: list
    label_names: list
    left_out: dict


@dataclass(frozen=True)
class Rows:
    """Rows of a collection, ascending int64. The training images are database images too."""
    train: np.ndarray
    database: np.ndarray
    test: np.ndarray


# ---------------------------------------------------------------- drawing the splits

def draw_queries(count, queries, rng):
    """Any `queries` of `count` rows, and the others: two ascending int64 arrays. Raises UserError."""
    if queries >= count:
        raise UserError(f"expected more than {queries:,} images to draw {queries:,} queries from, found {count:,}")
    order = rng.permutation(count)
    return np.sort(order[:queries]), np.sort(order[queries:])


def draw_training(collection, database, wanted, rng):
    """`wanted` of the rows `database` that have a tag, or all if `wanted` is None, ascending. Raises UserError."""
    tagged = database[counts(collection.tags)[database] > 0]
    if not len(tagged):
        raise UserError("expected database images with a tag of the tag list to train on, found none")
    if wanted is None:
        return tagged
    if len(tagged) < wanted:
        raise UserError(f"expected at least {wanted:,} database images with a tag to train on, found "
                        f"{len(tagged):,} (--training takes fewer)")
    return np.sort(rng.choice(tagged, wanted, replace=False))


# ---------------------------------------------------------------- 0/1 matrices

def counts(matrix):
    """How many ones each row of a CSR matrix has, int (N,)."""
    return np.diff(matrix.indptr)


def ones_of(sets, names):
    """A 0/1 matrix, CSR uint8: a row for each set, a column for each of `names`; other members have no column."""
    column = {name: place for place, name in enumerate(names)}
    rows = [sorted(column[member] for member in members if member in column) for members in sets]
    starts = np.cumsum([0, *map(len, rows)])
    columns = np.fromiter(chain.from_iterable(rows), np.int64, starts[-1])
    return scipy.sparse.csr_array((np.ones(len(columns), np.uint8), columns, starts), shape=(len(rows), len(column)))


# ---------------------------------------------------------------- images that cannot be used

def check_faults(where, faults, count, name, skip_bad):
    """Raise UserError if there are photos that cannot be used, or with `skip_bad` print that they are left out.

    Args:
        where: the file or folder that names the photos.
        faults: {row: what is wrong}, of `count` photos.
        name: function of a row.
    """
    if not faults:
        return
    bad, shown = f"{len(faults):,} of {count:,} photos cannot be used", list_faults(faults, name)
    if not skip_bad:
        raise UserError(f"{where}: {bad} (--skip-bad leaves them out): {shown}")
    print(f"left out: {bad}: {shown}")


# ---------------------------------------------------------------- writing

def write_splits(folder, splits, tag_lines=(), label_names=(), left_out=(), tag_list=TAG_LISTS[0]):
    """Write split files into `folder`, which must be new.

    Args:
        splits: {train, database or test: (image names, 0/1 matrix)}; the matrix is CSR uint8 with a row for each image,
            or None.
        left_out: {image: why it cannot be used}.
        tag_list: the name of the file of `tag_lines`.
    """
    folder.mkdir()
    for split, (names, matrix) in splits.items():
        write_lines(folder / f"{split}_img.txt", names)
        if matrix is not None:
            write_matrix(folder / MATRICES[split], matrix)
    if tag_lines:
        write_lines(folder / tag_list, tag_lines)
    if label_names:
        write_lines(folder / "labels.txt", label_names)
    if left_out:  # whose names need not be UTF-8
        write_text(folder / LEFT_OUT, "".join(f"{name} {fault}\n" for name, fault in left_out.items()))


def write_lines(path, lines):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def write_matrix(path, matrix):
    """A CSR matrix (n, columns) as text: single digits between single spaces, a row a line."""
    with open(path, "wb") as file:
        for start in range(0, matrix.shape[0], BLOCK_ROWS):
            block = matrix[start:start + BLOCK_ROWS].tocoo()
            text = np.full((block.shape[0], 2 * block.shape[1]), ord(" "), np.uint8)
            text[:, ::2] = ord("0")
            text[block.row, 2 * block.col] = ord("1")
            text[:, -1] = ord("\n")
            file.write(text)


# ---------------------------------------------------------------- all files in their place, or none

@contextlib.contextmanager
def only_preparation(folder, splits):
    """A lock that keeps other preparations out of `folder` for the block.

    If an interrupted one was moving its files to `splits`, the rest of them is moved first.
    """
    with exclusive_lock(folder.with_name(f".{folder.name}.lock"),
                        f"{folder}: another preparation is running here, wait until it has ended"):
        finish_moving(splits)
        yield


@contextlib.contextmanager
def temporary_folder(path):
    """A path for a temporary folder. What an interrupted run left there is removed first, and the folder at the end."""
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def install(new, splits, force, remedy="--force replaces them"):
    """Move the folder `new` to `splits`, or its files next to the other files there. Returns what was done, in words.

    Raises UserError, which ends with `remedy`, if there are other split files and not `force`.
    """
    for path in (*new.iterdir(), new):
        sync(path)
    if not os.path.lexists(splits):
        new.rename(splits)
        sync(splits.parent)
        return f"wrote {splits}"
    old = {name for name in SPLIT_FILES if (splits / name).is_file()}
    names = {name for name in SPLIT_FILES if (new / name).is_file()}
    if old == names and all(filecmp.cmp(new / name, splits / name, shallow=False) for name in names):
        if (new / REPORT).exists():
            write_json(splits / REPORT, read_json(new / REPORT))
        return f"unchanged: {splits} already holds exactly these split files"
    if old and not force:
        raise UserError(f"{splits} already holds other split files; {remedy}")
    new.rename(splits / MOVING)
    finish_moving(splits)
    return f"replaced the split files in {splits}" if old else f"wrote {splits}"


def finish_moving(splits):
    """Move the files that `install` staged, or those that are left of them after an interruption.

    Old and new files are never mixed: the old ones are deleted first, then the report is moved, then the new files. So
    old files can only be there while the report is staged.
    """
    staged = splits / MOVING
    if not staged.is_dir():
        return
    sync(splits)
    if (staged / REPORT).exists():
        for name in SPLIT_FILES:
            (splits / name).unlink(missing_ok=True)
        os.replace(staged / REPORT, splits / REPORT)
    for path in sorted(staged.iterdir()):
        os.replace(path, splits / path.name)
    staged.rmdir()
    sync(splits)


def tags_made_from(splits):
    """The fingerprint of the tag list that `tags/` was made from; None without a report, as in the release."""
    try:
        return read_json(splits / "tags" / REPORT)["fingerprints"]["tag_list"]
    except (OSError, UserError, KeyError, TypeError):
        return None


def stale_tags_note(splits, tag_list):
    """A line to print if `tags/` was made from another tag list than the file `tag_list`, else an empty text."""
    if not (splits / "tags" / "FinalTagEmbs.txt").is_file():
        return ""
    made_from, old = tags_made_from(splits), splits / tag_list.name
    if made_from is None:
        fits = old.is_file() and read_tag_names(old) == read_tag_names(tag_list)
    else:
        fits = made_from == fingerprint(tag_list)
    return "" if fits else f"\nnote: {splits / 'tags'} was made from another tag list: run tag_processing.py again"


def check_link(link, images):
    """Raise UserError if there is a `link` that does not lead to the folder `images`."""
    if os.path.lexists(link) and os.path.realpath(link) != str(images.resolve()):
        raise UserError(f"{link} is already there and is not {images.resolve()}; remove it or rename it")


def link_images(link, images, root):
    """Make `link` point to the folder `images` (see `link_folder`), unless it does. Returns whether it is new.

    Raises UserError if it points to something else.
    """
    check_link(link, images)
    new = not os.path.lexists(link)
    if new:
        link.parent.mkdir(parents=True, exist_ok=True)
        link_folder(link, images, root)
    return new


# ---------------------------------------------------------------- the last step for MIRFLICKR and NUS-WIDE

def finish(collection, rows, splits, details, force):
    """Write the split files and their report, move them into place, and print a summary. Raises UserError.

    `details`: a dict that begins the report; `force`: whether to replace other split files.
    """
    contents = {split: ([collection.names[row] for row in chosen], matrix[chosen]) for split, chosen, matrix in
                (("train", rows.train, collection.tags), ("database", rows.database, collection.labels),
                 ("test", rows.test, collection.labels))}
    with temporary_folder(splits.with_name(f".{splits.name}.tmp")) as new:
        write_splits(new, contents, collection.tag_lines, collection.label_names, collection.left_out,
                     collection.tag_list)
        report = {**details, **summary(collection, rows),
                  "files": {path.name: fingerprint(path) for path in sorted(new.iterdir())}}
        write_json(new / REPORT, report)
        note = stale_tags_note(splits, new / collection.tag_list)
        done = install(new, splits, force)
    print_report(report)
    print(done + note)


def summary(collection, rows):
    """The counts for the report, as a dict."""
    labelled = counts(collection.labels) > 0
    database_labels = np.asarray(collection.labels[rows.database].sum(0, dtype=np.int64)).ravel()
    return {
        "images": {"queries": len(rows.test), "database": len(rows.database), "training": len(rows.train),
                   "left_out": len(collection.left_out)},
        "without_a_label": {"queries": int((~labelled[rows.test]).sum()),
                            "database": int((~labelled[rows.database]).sum())},
        "tags": len(collection.tag_lines),
        "tags_of_a_training_image": spread(counts(collection.tags)[rows.train]),
        "labels": len(collection.label_names),
        "database_images_of_each_label": dict(zip(collection.label_names, database_labels.tolist(), strict=True)),
    }


def spread(numbers):
    """Minimum, median, maximum and mean of an int array that is not empty, and how many of its numbers are 0."""
    return {"min": int(numbers.min()), "median": float(np.median(numbers)), "max": int(numbers.max()),
            "mean": round(float(numbers.mean()), 3), "none": int((numbers == 0).sum())}


def print_report(report):
    images, without, tags = report["images"], report["without_a_label"], report["tags_of_a_training_image"]
    print(f"queries   {images['queries']:9,}  {without['queries']:,} of them without a label")
    print(f"database  {images['database']:9,}  {without['database']:,} of them without a label")
    print(f"training  {images['training']:9,}  of the database, with {tags['min']} / {tags['median']:g} / "
          f"{tags['max']} tags each (least / median / most)")
    print(f"tags      {report['tags']:9,}")
    print(f"labels    {report['labels']:9,}  {', '.join(report['database_images_of_each_label'])}")
    for name, digest in report["files"].items():
        print(f"    {digest}  {name}")
