"""Imports people's own photos: a CSV file with one photo per row becomes a data set that every program here can use.

It is written to `data/NAME/`, with a link to the photos at `datasets/NAME`, in the formats that dataset.py reads.
Nothing is written before everything has been checked. photo_folder.py imports a folder of photos that carry their own
tags.
"""
import argparse
import csv
import io
import os
import posixpath
import re
import shlex
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dataset import RELEASE_FOLDERS, faults_in, name_fault, read_text
from prepare.split_files import (
    check_faults,
    check_link,
    counts,
    finish_moving,
    install,
    link_images,
    ones_of,
    temporary_folder,
    write_splits,
)
from util import ROOT, UserError, leads_out, number, run_program

REQUIRED = ("image", "tags", "split")
COLUMNS = (*REQUIRED, "labels")
SPLITS = ("train", "database", "query")
RESERVED = {*RELEASE_FOLDERS, *RELEASE_FOLDERS.values()}

DESCRIPTION = """\
Turn photos into a data set: split files in data/NAME, a link to DIR at datasets/NAME. Nothing is written into DIR.

With --from-photos DIR the tags are those that the photos carry: keywords of IPTC, XMP (in the photo, in photo.jpg.xmp
or in photo.xmp) and EXIF, and the tags of Flickr's data export (photo_*.json). Photos with a tag are trained on. Run it
again after photos were added, changed or deleted: only these are read.

Otherwise the tags come from a CSV file. It is UTF-8 and starts with a header row. Its columns, in any order:
  image   path of the photo inside DIR
  tags    separated by spaces, as people typed them; case does not matter
  labels  separated by spaces, the ground truth for validation; may be missing if you only train
  split   train, database or query

Which photos are trained on: if any row says train, those rows and no others, and they are not
searched. If none does, the database photos serve both training and retrieval."""
MIN_TAG_COUNT, MIN_OWN_TAG_COUNT = 1, 3  # defaults: for a CSV file, and for tags that nobody has reviewed


@dataclass(frozen=True, slots=True)
class Photo:
    """A row of the CSV file. row: its number, the header being row 1."""
    row: int
    image: str
    tags: frozenset
    labels: frozenset
    split: str


@dataclass(frozen=True)
class Plan:
    """What is going to be written. tags: (tag, number of training photos that have it), in the order of the columns."""
    training: list
    database: list
    query: list
    tags: list
    dropped_tags: int
    labels: list


def main():
    args = parse_args()
    images = image_folder(args.from_photos or args.images)
    if args.from_photos:
        from prepare.photo_folder import import_photos
        ready = import_photos(args.root, args.name, images, args.min_tag_count, args.skip_bad, args.folder_tags)
    else:
        import_csv(args.root, args.name, args.photos, images, args.min_tag_count, args.skip_bad)
        ready = True  # import_csv raises without tags to learn from
    if ready:
        root = [] if args.root == ROOT else ["--root", str(args.root)]
        print("next: " + shlex.join(["python", "tag_processing.py", args.name, "train", "0", *root]))
        print("      (or, better, a file of word vectors such as GoogleNews or GloVe in place of train)")


def import_csv(root, name, path, images, min_tag_count, skip_bad):
    """Make the data set `name` of the CSV file `path`. Raises UserError."""
    splits, link = root / "data" / name, root / "datasets" / name
    check_link(link, images)
    photos = read_photos(path)
    check_unique(path, photos)
    # decided on all rows, so that leaving out bad photos cannot turn one rule into the other
    training_split = "train" if any(photo.split == "train" for photo in photos) else "database"
    photos = sound_photos(path, photos, images, skip_bad)
    plan = make_plan(path, photos, training_split, min_tag_count)
    write_data_set(plan, splits, link, images, root)
    report(plan, training_split, splits, link)


def parse_args():
    parser = argparse.ArgumentParser(description=DESCRIPTION,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", type=dataset_name, help="name of the data set")
    parser.add_argument("photos", metavar="photos.csv", type=Path, nargs="?", help="the CSV file")
    parser.add_argument("--images", metavar="DIR", type=Path, help="folder of the photos that the CSV file names")
    parser.add_argument("--from-photos", metavar="DIR", type=Path,
                        help="folder of photos that carry their own tags, instead of a CSV file")
    parser.add_argument("--folder-tags", action="store_true",
                        help="with --from-photos: the names of the folders that a photo is in count as its tags too")
    parser.add_argument("--min-tag-count", metavar="n", type=number(int, 1),
                        help="keep the tags that at least n training photos have; each is a column of the tag matrix, "
                             "so with many photos a higher n keeps that file small (default: "
                             f"{MIN_TAG_COUNT}, which keeps all; with --from-photos {MIN_OWN_TAG_COUNT})")
    parser.add_argument("--skip-bad", action="store_true",
                        help="leave out and count photos that are missing, empty, truncated or unreadable")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                        help="folder that holds data/ and datasets/ (default: the folder of train.py)")
    args = parser.parse_intermixed_args()
    if args.from_photos and (args.photos or args.images):
        parser.error("--from-photos replaces photos.csv and --images; give one or the other")
    if not args.from_photos and not (args.photos and args.images):
        parser.error("expected photos.csv and --images DIR, or --from-photos DIR")
    if args.folder_tags and not args.from_photos:
        parser.error("--folder-tags needs --from-photos")
    if args.min_tag_count is None:
        args.min_tag_count = MIN_OWN_TAG_COUNT if args.from_photos else MIN_TAG_COUNT
    return args


def dataset_name(text):
    """An argparse type: a name that is not the paper's, and safe as a folder and in file names."""
    if text in RESERVED:
        raise argparse.ArgumentTypeError(f"expected a name of your own, found {text!r}, which is reserved "
                                         "for the paper's data set")
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError("expected a name of letters, digits, '_', '-' and '.' that does not "
                                         f"start with '-' or '.', found {text!r}")
    return text


# ---------------------------------------------------------------- the CSV file

def read_photos(path):
    """The photos of a CSV file, each row checked by itself. Raises UserError with file and row."""
    rows = csv_rows(path)
    _, header = next(rows, (1, []))
    columns = [cell.strip() for cell in header]
    if not (set(REQUIRED) <= set(columns) <= set(COLUMNS) and len(set(columns)) == len(columns)):
        raise UserError(f"{path}: row 1: expected the columns image,tags,labels,split (labels may be missing)"
                        f", found {','.join(columns) or 'none'}")
    photos = []
    for row, cells in rows:
        if len(cells) != len(columns):
            raise UserError(f"{path}: row {row}: expected {len(columns)} columns, found {len(cells)}")
        photos.append(read_photo(path, row, dict(zip(columns, cells, strict=True))))
    if not photos:
        raise UserError(f"{path}: expected a photo in each row after the header, found no such row")
    return photos


def csv_rows(path):
    """Yield (row number, cells) for each row that is not blank; a byte order mark is skipped."""
    row = 0
    try:
        for row, cells in enumerate(csv.reader(io.StringIO(read_text(path)), strict=True), 1):
            if cells:
                yield row, cells
    except csv.Error as error:
        raise UserError(f"{path}: row {row + 1}: expected comma-separated values, found a row that is not "
                        f"({error})") from error


def read_photo(path, row, cells):
    """The photo in a row, given `{column: text}`."""
    for column, text in cells.items():
        if fault := name_fault(text.strip()):
            raise UserError(f"{path}: row {row}: expected plain text under {column}, found {fault}")
    split = cells["split"].strip()
    if split not in SPLITS:
        raise UserError(f"{path}: row {row}: expected split train, database or query, found {split!r}")
    return Photo(row, image_name(path, row, cells["image"].strip()), frozenset(cells["tags"].lower().split()),
                 frozenset(cells.get("labels", "").split()), split)


def image_name(path, row, text):
    """The normal form of a path inside the image folder: `a/../b.jpg` and `./b.jpg` are `b.jpg`."""
    if not text:
        raise UserError(f"{path}: row {row}: expected the path of a photo under image, found nothing")
    name = posixpath.normpath(text)
    if leads_out(name):
        raise UserError(f"{path}: row {row}: expected the path of a photo inside the image folder, found "
                        f"{text!r}, which leads out of it")
    if fault := name_fault(name):
        raise UserError(f"{path}: row {row}: expected a path that a list can hold, found {name!r} with {fault}")
    return name


def check_unique(path, photos):
    """Refuse a photo that is in two rows, of one split or of two. Raises UserError."""
    first = {}
    for photo in photos:
        other = first.setdefault(photo.image, photo)
        if other is not photo:
            raise UserError(f"{path}: row {photo.row}: expected each photo in one row and one split, found "
                            f"{photo.image!r} as {photo.split} here and as {other.split} in row {other.row}")


# ---------------------------------------------------------------- the images

def image_folder(path):
    """The folder as an absolute path, for the link. Raises UserError."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder, expected the one that holds the photos")
    return path.resolve()


def sound_photos(path, photos, images, skip_bad):
    """The photos whose files can be used. Others raise a UserError, or with `skip_bad` are left out and reported."""
    faults = faults_in(images, [photo.image for photo in photos])
    check_faults(path, faults, len(photos), lambda i: f"{photos[i].image} (row {photos[i].row})", skip_bad)
    return [photo for i, photo in enumerate(photos) if i not in faults]


# ---------------------------------------------------------------- from photos to split files

def make_plan(path, photos, training_split, min_tag_count):
    """Sort photos into splits, choose tags and labels. Raises UserError if that leaves nothing to learn."""
    of = {split: [photo for photo in photos if photo.split == split] for split in SPLITS}
    training, database, query = of[training_split], of["database"], of["query"]
    if not training:
        raise UserError(f"{path}: expected photos to train on (split train or database), found none to use")
    counts = Counter(chain.from_iterable(photo.tags for photo in training))
    kept = [(tag, count) for tag, count in counts.items() if count >= min_tag_count]
    tags = sorted(kept, key=lambda item: (-item[1], item[0]))
    if not tags:
        raise UserError(f"{path}: expected tags that at least {min_tag_count} training photos have, "
                        "found none")
    labels = sorted(set().union(*(photo.labels for photo in database + query)))
    if labels and query and not database:
        raise UserError(f"{path}: expected database photos for the query photos to find, found none to use")
    return Plan(training, database, query, tags, len(counts) - len(tags), labels)


def write_data_set(plan, splits, link, images, root):
    """Write the split files and link the images; a failure leaves neither. Raises UserError."""
    finish_moving(splits)
    with temporary_folder(splits.with_name(f".{splits.name}.{os.getpid()}.tmp")) as new:
        write_splits(new, split_contents(plan), [f"{tag} {count}" for tag, count in plan.tags], plan.labels)
        new_link = link_images(link, images, root)
        try:
            install(new, splits, force=False, remedy="remove this folder, or choose another name")
        except BaseException:
            if new_link:
                link.unlink()
            raise


def split_contents(plan):
    """{split: (image names, 0/1 matrix)} of the splits that have photos; without labels only `train`."""
    contents = {"train": (plan.training, training_tags(plan))}
    if plan.labels:
        contents |= {split: (photos, ones_of((photo.labels for photo in photos), plan.labels))
                     for split, photos in (("database", plan.database), ("test", plan.query)) if photos}
    return {split: ([photo.image for photo in photos], matrix) for split, (photos, matrix) in contents.items()}


def training_tags(plan):
    """The tags of the training photos, a 0/1 matrix, CSR uint8."""
    return ones_of((photo.tags for photo in plan.training), [tag for tag, _ in plan.tags])


# ---------------------------------------------------------------- report

def report(plan, training_split, splits, link):
    """Print the counts, and what was decided or is missing."""
    tags = counts(training_tags(plan))
    rule = ("the rows that say train; they are not searched" if training_split == "train" else
            "the database photos: no row says train, so they serve both training and retrieval")
    print(f"training photos: {len(plan.training):,} ({rule})")
    print(f"database photos: {len(plan.database):,}; query photos: {len(plan.query):,}")
    print(f"tags: {len(plan.tags):,} kept, {plan.dropped_tags:,} dropped; a training photo has {tags.mean():.2f} on "
          f"average, {(tags == 0).sum():,} have none")
    if plan.labels:
        unlabelled = sum(not photo.labels for photo in plan.database + plan.query)
        print(f"labels: {len(plan.labels):,}; {unlabelled:,} database and query photos have none")
    else:
        print("labels: none (the column is missing or empty), so this is for training only: no database and "
              "test files are written")
    if plan.labels and not plan.query:
        print("no query photos, so this is for training only: no test files are written")
    print(f"wrote {splits}, linked {link}")


if __name__ == "__main__":
    run_program(main)
