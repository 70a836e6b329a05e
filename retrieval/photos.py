"""Where photos come from: a data set, a folder, a list of photos, or what encode.py wrote."""
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import dataset
from retrieval import encoded
from storage.images import is_image
from util import UserError, first_few, note

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # a file so named is meant to be a photo
DESCRIPTIONS = (".xmp", ".json")  # a file so named may describe a photo beside it


@dataclass(frozen=True)
class Source:
    """Photos to index. names: N paths relative to `folder`; labels: uint8 (N, L) or None; label_names: L or none;
    dataset: the `dataset.Dataset` whose database they are, or None; encoded: the `encoded.Encoded`, or None."""
    folder: Path
    names: list
    labels: np.ndarray | None = None
    label_names: list | tuple = ()
    dataset: object = None
    encoded: object = None


def photo_source(name, root):
    """The photos of data set `name`, or of the folder of that name. Raises UserError."""
    if encoded.writes_to(Path(name)):
        codes = encoded.read_encoded(Path(name))
        return Source(Path(codes.manifest["images"]), codes.names, encoded=codes)
    if "/" in name or not (root / "data" / dataset.RELEASE_FOLDERS.get(name, name)).is_dir():
        return folder_source(Path(name), dataset.known_datasets(root))
    found = dataset.find_dataset(name, root)
    images, matrix = found.split_files("database")
    if not images.is_file():  # for training only
        return Source(found.images, dataset.read_image_list(found.split_files("train")[0]), dataset=found)
    names = dataset.read_image_list(images)
    labels = dataset.read_binary_matrix(matrix).toarray()
    if len(labels) != len(names):
        raise UserError(f"{matrix} has {len(labels)} rows, but {images} lists {len(names)} images")
    return Source(found.images, names, labels, dataset.read_label_names(found, labels.shape[1]), found)


def folder_source(folder, known):
    """The photos in a folder and its subfolders, by name. `known`: data sets to name if it is no folder."""
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


def name_fault(name):
    """Why a list of photos, which has one on a line, cannot hold this name; or None."""
    return "has a line break in its name" if "\n" in name else None


# ---------------------------------------------------------------- a folder

def photo_names(folder):
    """The photos in a folder and its subfolders, relative to it and sorted. Raises UserError if there are none.

    A photo is a file that is named as one, or that begins as an image that OpenCV reads. What is hidden does not count;
    what else is left out is told on stderr.
    """
    return photos_and_descriptions(folder)[0]


def photos_and_descriptions(folder):
    """The same photos, and the files that may describe them, such as `photo.jpg.xmp`; of these nothing is told."""
    try:
        os.path.realpath(folder).encode()
    except UnicodeEncodeError:
        raise UserError(f"{folder}: expected a folder whose name is UTF-8, found another") from None
    files, closed = visible_files(folder)
    names, descriptions, others = [], [], []
    for name in files:
        photo = name.lower().endswith(SUFFIXES) or is_image(f"{folder}/{name}")
        (names if photo else descriptions if name.lower().endswith(DESCRIPTIONS) else others).append(name)
    if not names:
        found = _left_out(descriptions + others, closed)
        raise UserError(f"{folder}: expected photos that OpenCV reads, found {found or 'none'}")
    if told := _left_out(others, closed):
        note(f"{folder}: left out {told}")
    return names, descriptions


def visible_files(folder):
    """The files in a folder and its subfolders that are not hidden, relative to it and sorted; and the subfolders that
    were not looked into, each with the reason. Raises UserError if the folder itself cannot be read."""
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
    """Files that are no photos and subfolders that were not looked into, in words; empty if there are none."""
    told = [f"{len(found):,} {what}: {first_few(found)}"
            for found, what in ((others, "files that are no photos"), (closed, "folders")) if found]
    return "; and ".join(told)
