"""Makes the data set `flickr` of MIRFLICKR-25K: images at datasets/flickr25k, split files in data/flickr25k.

Images are unpacked, and split files written, under temporary names. They get their own names when they are complete.
"""
import argparse
import contextlib
import os
import posixpath
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path

import numpy as np
import scipy.sparse

from dataset import tag_rows
from prepare.download import check_md5, md5, md5_digits, source
from prepare.split_files import (
    Collection,
    Rows,
    draw_queries,
    draw_training,
    finish,
    link_images,
    ones_of,
    only_preparation,
    temporary_folder,
)
from storage.images import image_faults, list_faults
from util import UserError, add_shared_options, leads_out, number, progress, run_program, stream

FOLDER = "flickr25k"
URL_BASE = "http://press.liacs.nl/mirflickr/mirflickr25k.v3b/"
IMAGES, ANNOTATIONS = "mirflickr25k.zip", "mirflickr25k_annotations_v080.zip"
IMAGES_MD5 = "A23D0A8564EE84CDA5622A6C2F947785"
COUNT = 25_000  # images of the whole collection
LABELS = ["animals", "baby", "bird", "car", "clouds", "dog", "female", "flower", "food", "indoor", "lake", "male",
          "night", "people", "plant_life", "portrait", "river", "sea", "sky", "structures", "sunset", "transport",
          "tree", "water"]
COMMON_TAGS = "doc/common_tags.txt"
# what is unpacked from the archive's folder mirflickr/: no EXIF data, no raw tags, no licenses
PART = re.compile(r"im[1-9]\d*\.jpg|meta/tags/tags[1-9]\d*\.txt|doc/[\w.-]+\.txt")
# what reading a member of a damaged, encrypted or odd archive can raise
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


def main():
    options = parse_options()
    place, splits = options.root / "datasets" / FOLDER, options.root / "data" / FOLDER
    with only_preparation(place, splits):
        labels_url, images_url = (options.url_base + name if options.download else None
                                  for name in (ANNOTATIONS, IMAGES))
        labels_file = source(options.annotations, [place / ANNOTATIONS], labels_url, "--annotations", read_annotations)
        images = source(options.images, [place / "mirflickr", place / IMAGES], images_url, "--images",
                        lambda path: check_md5(path, options.md5 or IMAGES_MD5))
        annotations = read_annotations(labels_file)
        folder = unpacked(images, place / "mirflickr", options.md5) if images.is_file() else images_folder(images)
        collection = read_collection(folder, annotations, labels_file)
        rng = stream(options.seed, "flickr25k splits")
        test, database = draw_queries(len(collection.names), options.queries, rng)  # the same under both protocols
        training = options.training if options.protocol == "sampled" else None
        rows = Rows(draw_training(collection, database, training, rng), database, test)
        link_images(place / "mirflickr", folder, options.root)
        details = {"dataset": "flickr", "protocol": options.protocol, "seed": options.seed}
        finish(collection, rows, splits, details, options.force)
    if len(collection.names) != COUNT:
        print(f"note: these are {len(collection.names):,} images; the whole collection has {COUNT:,}")


def parse_options():
    parser = argparse.ArgumentParser(
        description="Make the data set flickr of MIRFLICKR-25K: split files and report.json in data/flickr25k, "
                    "images at datasets/flickr25k/mirflickr. After an interruption, run it again to continue.")
    parser.add_argument("--images", type=Path, metavar="PATH",
                        help=f"{IMAGES}, or the folder it unpacks to (default: the one in datasets/{FOLDER})")
    parser.add_argument("--annotations", type=Path, metavar="PATH",
                        help=f"{ANNOTATIONS}, or a folder of its files (default: as above)")
    parser.add_argument("--download", action="store_true",
                        help=f"download to datasets/{FOLDER} what is not there (3 GB), and check it")
    parser.add_argument("--url-base", default=URL_BASE, metavar="URL", type=web_address,
                        help=f"address of the folder to download from (default {URL_BASE})")
    parser.add_argument("--md5", type=md5_digits, metavar="HEX",
                        help="refuse an archive of images with another MD5 (default: for a download "
                             f"{IMAGES_MD5}; for your own file, print a note)")
    parser.add_argument("--protocol", choices=("tagged", "sampled"), default="tagged",
                        help="training images: all database images with a common tag (tagged), or --training of them "
                             "(sampled) (default tagged)")
    parser.add_argument("--queries", type=number(int, 1), default=2000, metavar="N",
                        help="random queries; the rest is the database (default 2000)")
    parser.add_argument("--training", type=number(int, 1), default=5000, metavar="N",
                        help="training images of --protocol sampled (default 5000)")
    parser.add_argument("--force", action="store_true", help="replace other split files in data/flickr25k")
    add_shared_options(parser)
    return parser.parse_args()


def web_address(text):
    """An argparse type: an http address to which file names can be appended."""
    if not re.match(r"https?://", text):
        raise argparse.ArgumentTypeError(f"expected an address that starts with http:// or https://, found {text!r}")
    return text.rstrip("/") + "/"


# ---------------------------------------------------------------- archives

@contextlib.contextmanager
def open_archive(path):
    """An open zip archive. Raises UserError if a member's path leads out of it or if two members have the same name."""
    try:
        archive = zipfile.ZipFile(path)
    except (*ZIP_ERRORS, ValueError) as error:
        raise UserError(f"{path}: expected a whole zip archive, found a truncated or other file ({error})") from error
    with archive:
        names = archive.namelist()
        for name in names:
            if leads_out(plain := name.replace("\\", "/")) or re.match(r"\w:/", plain):
                raise UserError(f"{path}: the member {name!r} leads out of the archive, so nothing was unpacked")
        if len(set(names)) != len(names):
            raise UserError(f"{path}: expected each member once, found several with the same name")
        yield archive


def read_member(archive, member):
    """The bytes of a small member."""
    try:
        return archive.read(member)
    except ZIP_ERRORS as error:
        raise UserError(f"{archive.filename}: the member {member} is damaged ({error})") from error


# ---------------------------------------------------------------- annotations

def read_annotations(path):
    """{label: numbers of its images, int64}, from the archive or a folder. Raises UserError."""
    if path.is_dir():
        texts = {file.name: file.read_bytes() for folder in (path, path / ANNOTATIONS.removesuffix(".zip"))
                 for file in folder.glob("[!.]*.txt")}
    else:
        with open_archive(path) as archive:
            members = [name for name in archive.namelist()
                       if re.search(r"(^|/)[^./][^/]*\.txt$", name) and not name.startswith("__MACOSX")]
            texts = {posixpath.basename(name): read_member(archive, name) for name in members}
    missing = [label for label in LABELS if f"{label}.txt" not in texts]
    if missing:
        raise UserError(f"{path}: expected the files of {len(LABELS)} labels such as sky.txt, found none of "
                        f"{', '.join(f'{label}.txt' for label in missing)}")
    return {label: image_numbers(f"{path}: {label}.txt", texts[f"{label}.txt"]) for label in LABELS}


def image_numbers(where, text):
    """The numbers in a file of one image number a line, int64."""
    words = text.split()
    for row, word in enumerate(words, 1):
        if not re.fullmatch(rb"0*[1-9]\d{0,8}", word):
            raise UserError(f"{where}: row {row}: expected the number of an image, found {decoded(word)!r}")
    return np.array([int(word) for word in words], np.int64)


# ---------------------------------------------------------------- the folder mirflickr

def images_folder(path):
    """The folder mirflickr in `path`, or `path` itself if there is none."""
    return path / "mirflickr" if (path / "mirflickr").is_dir() else path


def parts_of_folder(folder):
    """The parts of the collection in a folder: paths relative to it."""
    found = (f"{prefix}{name}" for prefix in ("", "meta/tags/", "doc/") if (folder / prefix).is_dir()
             for name in os.listdir(folder / prefix))
    return {name for name in found if PART.fullmatch(name)}


def parts_of_archive(archive):
    """The parts in an archive: {path relative to mirflickr/: its ZipInfo}; links are not parts."""
    return {info.filename.removeprefix("mirflickr/"): info for info in archive.infolist()
            if info.filename.startswith("mirflickr/") and PART.fullmatch(info.filename.removeprefix("mirflickr/"))
            and not stat.S_ISLNK(info.external_attr >> 16)}


def check_parts(where, parts):
    """The number of images. Raises UserError if an image, its tags or the list of common tags is missing."""
    numbers = {kind: {int(re.search(r"\d+", part)[0]) for part in parts if part.startswith(kind.partition("{")[0])}
               for kind in ("im{}.jpg", "meta/tags/tags{}.txt")}
    count = max(set().union(*numbers.values()), default=0)
    for kind, found in numbers.items():
        if not found:
            raise UserError(f"{where}: expected mirflickr/{kind.format(1)}, …, found none")
        if missing := set(range(1, count + 1)) - found:
            raise UserError(f"{where}: expected mirflickr/{kind.format(1)} to {kind.format(count)}, but "
                            f"{len(missing):,} of them are missing; the first is {kind.format(min(missing))}")
    if COMMON_TAGS not in parts:
        raise UserError(f"{where}: expected mirflickr/{COMMON_TAGS}, found none")
    return count


def unpacked(path, folder, expected_md5):
    """Unpack an archive of images to `folder` unless it was unpacked before. Returns `folder`. Raises UserError."""
    with open_archive(path) as archive:
        parts = parts_of_archive(archive)
        check_parts(path, parts)
        if os.path.lexists(folder):
            if folder.is_symlink() or not same_sizes(parts, folder):
                raise UserError(f"{folder} is already there and is not what {path} holds; remove it or rename it")
            return folder
        if expected_md5:
            check_md5(path, expected_md5)
        elif (found := md5(path)) != IMAGES_MD5:
            print(f"note: {path} has MD5 {found}; the official archive has {IMAGES_MD5}")
        with temporary_folder(folder.with_name(f".{folder.name}.tmp")) as temporary:
            unpack(archive, parts, temporary)
            temporary.rename(folder)
    return folder


def same_sizes(parts, folder):
    """Whether a folder has all parts of an archive, each of the same size."""
    if parts.keys() - parts_of_folder(folder):
        return False
    return all((folder / name).stat().st_size == info.file_size for name, info in parts.items())


def unpack(archive, parts, folder):
    """Write `parts` of an archive below `folder`, synced to the disk. Raises UserError."""
    needed = sum(info.file_size for info in parts.values())
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise UserError(f"{folder.parent}: expected {needed / 1e9:.1f} GB of free disk space to unpack "
                        f"{archive.filename}, found {free / 1e9:.1f} GB")
    for name in ("", "meta", "meta/tags", "doc"):
        (folder / name).mkdir()
    with progress(total=needed, unit="B", unit_scale=True, desc="unpacking") as bar:
        for name, info in parts.items():
            try:
                with archive.open(info) as packed, open(folder / name, "wb") as file:
                    shutil.copyfileobj(packed, file)
            except ZIP_ERRORS as error:
                raise UserError(f"{archive.filename}: the member {info.filename} is damaged ({error})") from error
            bar.update(info.file_size)
    os.sync()  # for tens of thousands of files faster than one by one


# ---------------------------------------------------------------- from the folder to a collection

def read_collection(folder, annotations, labels_file):
    """All images with tags and labels, as a Collection. Raises UserError for anything that is missing or bad."""
    count = check_parts(folder, parts_of_folder(folder))
    labels = label_matrix(annotations, count, labels_file)
    faults = image_faults([folder / f"im{image}.jpg" for image in range(1, count + 1)])
    if faults:
        raise UserError(f"{folder}: {len(faults):,} of {count:,} images cannot be used: "
                        + list_faults(faults, lambda row: f"im{row + 1}.jpg"))
    tag_lines = common_tags(folder / COMMON_TAGS)
    tags = tag_matrix(folder, count, [line.split()[0] for line in tag_lines])
    return Collection([f"mirflickr/im{image}.jpg" for image in range(1, count + 1)], tags, labels,
                      "common_tags.txt", tag_lines, LABELS, {})


def label_matrix(annotations, count, where):
    """The 0/1 labels of `count` images, CSR uint8 (N, L)."""
    for label, images in annotations.items():
        if len(images) and images.max() > count:
            raise UserError(f"{where}: {label}.txt: expected images 1 to {count}, found {images.max()}")
    columns = np.repeat(np.arange(len(annotations)), [len(images) for images in annotations.values()])
    rows = np.concatenate(list(annotations.values())) - 1
    matrix = scipy.sparse.csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape=(count, len(annotations)))
    return (matrix > 0).astype(np.uint8)  # an image may be in a file twice


def common_tags(path):
    """The lines of the list of common tags: a tag, a space, and its count. Raises UserError."""
    rows = tag_rows(path, [line for line in decoded(path.read_bytes()).split("\n") if line.strip()])
    if not rows or len({words[0] for words in rows}) != len(rows):
        raise UserError(f"{path}: expected each tag once, found {'some twice' if rows else 'none'}")
    return [" ".join(words) for words in rows]


def tag_matrix(folder, count, tags):
    """The 0/1 matrix of `count` images and the common tags, CSR uint8 (N, R)."""
    def tags_of(image):
        text = decoded((folder / f"meta/tags/tags{image}.txt").read_bytes())
        return {line.strip() for line in text.split("\n")}

    images = progress(range(1, count + 1), desc="reading tags", leave=False)
    return ones_of((tags_of(image) for image in images), tags)


def decoded(text):
    """Bytes as a string: UTF-8, or Latin-1 if they are not UTF-8."""
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError:
        return text.decode("latin-1")


if __name__ == "__main__":
    run_program(main)
