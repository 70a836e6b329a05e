"""People's own photos: a CSV file with a photo a row becomes a data set that every program here can use.

What belongs here: the options, reading and checking the CSV file, and writing `data/NAME/` with a link at
`datasets/NAME`. The formats are those that dataset.py reads. Nothing is written before everything has been checked.
A folder of photos that carry their own tags is imported by photo_folder.py.
"""
import argparse
import csv
import filecmp
import io
import os
import posixpath
import re
import shlex
import shutil
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dataset import RELEASE_FOLDERS, TAG_LISTS, faults_in, link_folder, read_text
from prepare.split_files import write_lines
from storage.files import sync
from storage.images import list_faults
from util import ROOT, UserError, leads_out, number, run_program

REQUIRED = ("image", "tags", "split")
COLUMNS = (*REQUIRED, "labels")
SPLITS = ("train", "database", "query")
RESERVED = {*RELEASE_FOLDERS, *RELEASE_FOLDERS.values()}
# tabs and line ends among them: the split files have one image or tag a line, and separate numbers by spaces
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

DESCRIPTION = """\
Turn photos into a data set: split files in data/NAME, a link to DIR at datasets/NAME. Nothing is written into DIR.

With --from-photos DIR the tags are those that the photos carry: keywords of IPTC, XMP (in the photo, in photo.jpg.xmp
or in photo.xmp) and EXIF, and the tags of Flickr's data export (photo_*.json). Photos with a tag are trained on. Run it
again after photos were added, changed or deleted: only these are read.

Without it a CSV file tells the tags. It is UTF-8 and starts with a header row. Its columns, in any order:
  image   path of the photo inside DIR
  tags    separated by spaces, as people typed them; upper and lower case are alike
  labels  separated by spaces, the ground truth for validation; may be missing if you only train
  split   train, database or query

Which photos are trained on: if any row says train, the rows that say so and only those, and they are not
searched. If none does, the database photos serve both training and retrieval."""
MIN_TAG_COUNT, MIN_OWN_TAG_COUNT = 1, 3  # defaults: of a CSV file, and of tags that nobody has gone through


@dataclass(frozen=True, slots=True)
class Photo:
    """A row of the CSV file. row: as a spreadsheet counts, the header being row 1; tags, labels: sets."""
    row: int
    image: str
    tags: frozenset
    labels: frozenset
    split: str


@dataclass(frozen=True)
class Plan:
    """What is going to be written. tags: (tag, training photos that have it), in the order of the columns."""
    training: list
    database: list
    query: list
    tags: list
    dropped_tags: int
    labels: list


def main():
    args = parse_args()
    if args.from_photos:
        from prepare import photo_folder
        ready = photo_folder.import_photos(args, image_folder(args.from_photos))
    else:
        ready = import_csv(args, image_folder(args.images))
    if ready:
        root = [] if args.root == ROOT else ["--root", str(args.root)]
        print("next: " + shlex.join(["python", "tag_processing.py", args.name, "train", "0", *root]))
        print("      (or, better, a file of word vectors such as GoogleNews or GloVe in place of train)")


def import_csv(args, images):
    """Make the data set of a CSV file. Returns True, for then there is something to learn from. Raises UserError."""
    splits, link = args.root / "data" / args.name, args.root / "datasets" / args.name
    check_link(link, images)
    photos = read_photos(args.photos)
    check_unique(args.photos, photos)
    # decided on all rows, so that leaving out bad photos cannot turn one rule into the other
    training_split = "train" if any(photo.split == "train" for photo in photos) else "database"
    photos = sound_photos(args.photos, photos, images, args.skip_bad)
    plan = make_plan(args.photos, photos, training_split, args.min_tag_count)
    install(plan, splits, link, images, args.root)
    report(plan, training_split, splits, link)
    return True


def parse_args():
    parser = argparse.ArgumentParser(description=DESCRIPTION,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", type=dataset_name, help="what to call the data set")
    parser.add_argument("photos", metavar="photos.csv", type=Path, nargs="?", help="the CSV file")
    parser.add_argument("--images", metavar="DIR", type=Path, help="folder of the photos that the CSV file names")
    parser.add_argument("--from-photos", metavar="DIR", type=Path,
                        help="folder of photos that carry their own tags, in place of a CSV file")
    parser.add_argument("--folder-tags", action="store_true",
                        help="with --from-photos: the names of the folders around a photo count as its tags too")
    parser.add_argument("--min-tag-count", metavar="n", type=number(int, 1),
                        help="keep the tags that at least n training photos have; each is a column of the tag matrix, "
                             "so with many photos a higher n keeps that file small (default: "
                             f"{MIN_TAG_COUNT}, which is all; with --from-photos {MIN_OWN_TAG_COUNT})")
    parser.add_argument("--skip-bad", action="store_true",
                        help="leave out and count photos that are missing, empty, truncated or unreadable")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                        help="folder that holds data/ and datasets/ (default: the folder of train.py)")
    args = parser.parse_intermixed_args()
    if args.from_photos and (args.photos or args.images):
        parser.error("--from-photos takes the place of photos.csv and --images; give one or the other")
    if not args.from_photos and not (args.photos and args.images):
        parser.error("expected photos.csv and --images DIR, or --from-photos DIR")
    if args.folder_tags and not args.from_photos:
        parser.error("--folder-tags is an option of --from-photos")
    if args.min_tag_count is None:
        args.min_tag_count = MIN_OWN_TAG_COUNT if args.from_photos else MIN_TAG_COUNT
    return args


def dataset_name(text):
    """An argparse type: a name that is free, and safe as a folder and in file names."""
    if text in RESERVED:
        raise argparse.ArgumentTypeError(f"expected a name of your own, found {text!r}, which is kept for "
                                         "the paper's data set")
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
    """Yield (row number, cells) for each row that is not blank; a byte order mark is passed over."""
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
        if found := CONTROL.search(text):
            raise UserError(f"{path}: row {row}: expected plain text under {column}, found the control "
                            f"character {found[0]!r}")
    split = cells["split"].strip()
    if split not in SPLITS:
        raise UserError(f"{path}: row {row}: expected split train, database or query, found {split!r}")
    return Photo(row, image_name(path, row, cells["image"].strip()), frozenset(cells["tags"].lower().split()),
                 frozenset(cells.get("labels", "").split()), split)


def image_name(path, row, text):
    """The one spelling of a path inside the image folder: `a/../b.jpg` and `./b.jpg` are `b.jpg`."""
    if not text:
        raise UserError(f"{path}: row {row}: expected the path of a photo under image, found nothing")
    name = posixpath.normpath(text)
    if leads_out(name):
        raise UserError(f"{path}: row {row}: expected the path of a photo inside the image folder, found "
                        f"{text!r}, which leads out of it")
    if name != name.strip():
        raise UserError(f"{path}: row {row}: expected a path without a space before it, found {name!r}")
    return name


def check_unique(path, photos):
    """Refuse a photo that stands in two rows, be it in one split or in two."""
    first = {}
    for photo in photos:
        other = first.setdefault(photo.image, photo)
        if other is not photo:
            raise UserError(f"{path}: row {photo.row}: expected each photo in one row and one split, found "
                            f"{photo.image!r} as {photo.split} here and as {other.split} in row {other.row}")


# ---------------------------------------------------------------- the images

def image_folder(path):
    """The folder as an absolute path, for the link."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder, expected the one that holds the photos")
    return path.resolve()


def sound_photos(path, photos, images, skip_bad):
    """The photos whose files can be used. Others are refused by name, or left out and told if `skip_bad`."""
    faults = faults_in(images, [photo.image for photo in photos])
    if not faults:
        return photos
    shown = list_faults(faults, lambda i: f"{photos[i].image} (row {photos[i].row})")
    bad = f"{len(faults):,} of {len(photos):,} photos cannot be used"
    if not skip_bad:
        raise UserError(f"{path}: {bad} (--skip-bad leaves them out): {shown}")
    print(f"left out: {bad}: {shown}")
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


def write_splits(plan, folder):
    """Write the split files into a new folder, each safe on the disk."""
    folder.mkdir()
    tags = [tag for tag, _ in plan.tags]
    write_lines(folder / TAG_LISTS[0], (f"{tag} {count}" for tag, count in plan.tags))
    write_lines(folder / "train_img.txt", (photo.image for photo in plan.training))
    write_matrix(folder / "train_tag.txt", (photo.tags for photo in plan.training), tags)
    if plan.labels:
        write_lines(folder / "labels.txt", plan.labels)
        for split, photos in (("database", plan.database), ("test", plan.query)):
            if photos:
                write_lines(folder / f"{split}_img.txt", (photo.image for photo in photos))
                write_matrix(folder / f"{split}_label.txt", (photo.labels for photo in photos), plan.labels)
    for path in (*folder.iterdir(), folder):
        sync(path)


def write_matrix(path, rows, names):
    """A 0/1 matrix: a line for each set in `rows`, a column for each of `names`; other names have none."""
    place = {name: 2 * column for column, name in enumerate(names)}
    zeros = b" ".join([b"0"] * len(names)) + b"\n"
    with open(path, "wb") as file:
        for row in rows:
            line = bytearray(zeros)
            for name in place.keys() & row:
                line[place[name]] = ord("1")
            file.write(line)


# ---------------------------------------------------------------- both folders, or neither

def check_link(link, images):
    """Refuse a `datasets/NAME` that is there and is not the folder of the photos."""
    if os.path.lexists(link) and os.path.realpath(link) != str(images):
        raise UserError(f"{link} is already there and is not {images}; remove it, or choose another name")


def install(plan, splits, link, images, root):
    """Write `data/NAME` beside its place, link the images, move it there; a failure leaves neither."""
    temporary = splits.with_name(f".{splits.name}.{os.getpid()}.tmp")
    new_link, installed = not os.path.lexists(link), False
    for path in (splits, link):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_splits(plan, temporary)
        if os.path.lexists(splits) and not same_splits(temporary, splits):
            raise UserError(f"{splits} is already there and holds something else; remove this folder, or "
                            "choose another name")
        if new_link:
            link_folder(link, images, root)
        if not os.path.lexists(splits):
            temporary.rename(splits)
            sync(splits.parent)
        installed = True
    finally:
        if new_link and not installed:
            link.unlink(missing_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)


def same_splits(new, old):
    """Whether `old` holds the split files of `new` and no others; its folder `tags` may be there or not."""
    names, old_names = ({path.name for path in folder.glob("*.txt")} for folder in (new, old))
    return names == old_names and all(filecmp.cmp(new / name, old / name, shallow=False) for name in names)


# ---------------------------------------------------------------- what a person wants to know

def report(plan, training_split, splits, link):
    """Print the counts, and what was decided or is missing."""
    tags = {tag for tag, _ in plan.tags}
    kept = [len(photo.tags & tags) for photo in plan.training]
    rule = ("the rows that say train; they are not searched" if training_split == "train" else
            "the database photos: no row says train, so they serve both training and retrieval")
    print(f"training photos: {len(plan.training):,} ({rule})")
    print(f"database photos: {len(plan.database):,}; query photos: {len(plan.query):,}")
    print(f"tags: {len(tags):,} kept, {plan.dropped_tags:,} dropped; a training photo has "
          f"{sum(kept) / len(kept):.2f} on average, {kept.count(0):,} have none")
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
