"""The photos of an index: where they come from, and which of them are new, changed or gone.

Letters: N photos, L labels.
"""
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import dataset
from retrieval import encoded
from storage.fingerprints import NUMBERS, compare_fingerprints
from storage.images import is_image
from util import UserError, first_few, note

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # a file with such a name is meant to be a photo
DESCRIPTIONS = (".xmp", ".json")  # a file with such a name may describe the photo next to it


@dataclass(frozen=True)
class Source:
    """Photos to index.

    names: N paths relative to `folder`; labels: 0/1, uint8 (N, L), or None; label_names: L names; dataset: the
    `dataset.Dataset` whose database they are, or None; encoded: the `encoded.Encoded` that has their codes, or None.
    """
    folder: Path
    names: list
    labels: np.ndarray | None = None
    label_names: list | tuple = ()
    dataset: object = None
    encoded: object = None


def photo_source(name, root):
    """The photos of the data set `name`, of the folder `name`, or those encoded there. Raises UserError."""
    if encoded.writes_to(Path(name)):
        codes = encoded.read_encoded(Path(name))
        return Source(Path(codes.manifest.images), codes.names, encoded=codes)
    if "/" in name or not (root / "data" / dataset.RELEASE_FOLDERS.get(name, name)).is_dir():
        return folder_source(Path(name), dataset.known_datasets(root))
    found = dataset.find_dataset(name, root)
    if not found.split_files("database")[0].is_file():  # the data set is for training only
        return Source(found.images, dataset.read_image_list(found.split_files("train")[0]), dataset=found)
    names, labels = dataset.read_split(found, "database")
    return Source(found.images, names, labels.toarray(), dataset.read_label_names(found, labels.shape[1]), found)


def folder_source(folder, known):
    """The photos in a folder and its subfolders. `known`: names of data sets, for the error if it is no folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is neither a data set nor a folder; data sets: {', '.join(known) or 'none yet'}")
    return Source(folder, photo_names(folder))


def listed_source(images):
    """The photos of a folder, or of a text file of paths relative to its own folder. Raises UserError."""
    if images.is_dir():
        folder, names = images, photo_names(images)
    elif images.is_file():
        folder, names = images.parent, dataset.read_image_list(images, errors="surrogateescape")
    else:
        raise UserError(f"{images}: expected a folder of photos or a list of them, found neither")
    return Source(Path(os.path.realpath(folder)), names)


# ---------------------------------------------------------------- a folder

def photo_names(folder):
    """The photos in a folder and its subfolders, relative to it and sorted. Raises UserError if there are none.

    A photo is a file whose name ends as that of a photo, or that begins as an image that OpenCV reads. Hidden files are
    ignored; other files that are left out are reported on stderr.
    """
    return photos_and_descriptions(folder)[0]


def photos_and_descriptions(folder):
    """The same photos, and the files that may describe them, such as `photo.jpg.xmp`, which are not reported."""
    if not dataset.is_utf_8(os.path.realpath(folder)):
        raise UserError(f"{folder}: expected a folder whose name is UTF-8, found another")
    files, closed = visible_files(folder)
    names, descriptions, others = [], [], []
    for name in files:
        photo = name.lower().endswith(SUFFIXES) or is_image(f"{folder}/{name}")
        (names if photo else descriptions if name.lower().endswith(DESCRIPTIONS) else others).append(name)
    if not names:
        found = _left_out(descriptions + others, closed)
        raise UserError(f"{folder}: expected photos that OpenCV reads, found {found or 'none'}")
    if left_out := _left_out(others, closed):
        note(f"{folder}: left out {left_out}")
    return names, descriptions


def visible_files(folder):
    """The files in a folder and its subfolders that are not hidden, relative to it and sorted; and the subfolders that
    were not searched, each with the reason. Raises UserError if the folder itself cannot be read."""
    files, closed = [], []
    start = len(os.path.join(folder, ""))

    def refused(error):
        name = error.filename[start:]
        if not name:
            raise UserError(f"{folder} cannot be read ({error.strerror})")
        closed.append(f"{name} (cannot be read: {error.strerror})")

    for parent, subfolders, names in os.walk(folder, onerror=refused):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        closed += [f"{path[start:]} (a link to a folder)" for name in subfolders
                   if os.path.islink(path := os.path.join(parent, name))]
        files += [os.path.join(parent, name)[start:] for name in names if not name.startswith(".")]
    return sorted(files), closed


def _left_out(others, closed):
    """Files that are no photos and subfolders that were not searched, in words; empty if there are none."""
    return "; and ".join(f"{len(found):,} {what}: {first_few(found)}"
                         for found, what in ((others, "files that are no photos"), (closed, "folders")) if found)


# ---------------------------------------------------------------- new, changed and gone

@dataclass(frozen=True)
class Changes:
    """What happens to the photos of an index.

    kept: rows of the index whose codes stay, int64 (n,); fingerprints: theirs, int64 (n, 7); to_encode: rows of the
    Source whose photos are new or changed, int64; gone: names of photos that are no longer there.
    """
    kept: np.ndarray
    fingerprints: np.ndarray
    to_encode: np.ndarray
    gone: list


def compare(source, before, out, prune):
    """The Changes from an index's content `before` to the photos of a Source.

    Args:
        out: the folder of the index, for messages.
        prune (bool): whether photos that are gone leave the index.
    Raises UserError if no photo would be left.
    """
    row_of = {name: row for row, name in enumerate(source.names)}
    rows = np.array([row_of.get(name, -1) for name in before.images], np.int64)  # of the source; −1: gone
    stored = before.fingerprints
    stored = np.zeros((len(rows), NUMBERS), np.int64) if stored is None else stored
    if source.encoded:  # no photo is opened
        there, changed = rows >= 0, np.zeros(len(rows), bool)
    else:
        there, changed, stored = compare_fingerprints(
            [source.folder / name if row >= 0 else None for name, row in zip(before.images, rows, strict=True)], stored)
    kept = np.flatnonzero(there & ~changed if prune else ~changed)
    known = set(before.images)
    new = [row for row, name in enumerate(source.names) if name not in known]
    to_encode = np.sort(np.concatenate([np.array(new, np.int64), np.unique(rows[changed])]))
    if not len(kept) + len(to_encode):
        raise UserError(f"{source.folder}: none of the {len(rows):,} photos of {out} is there any more, so the index "
                        "stays as it is")
    return Changes(kept, stored[kept], to_encode, [before.images[row] for row in np.flatnonzero(~there)])


def note_gone(changes, folder, out, prune):
    """Note the photos of an index that are gone."""
    if changes.gone:
        note(f"{len(changes.gone):,} photos of {out} are not in {folder} any more, such as {min(changes.gone)}; they "
             + ("leave the index" if prune else "stay in the index (--prune drops them)"))
