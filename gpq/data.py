"""CIFAR-10: the official files, the split of the semi-supervised protocol, and the batches of a training.

Letters: N images, B images of a batch, L classes.
"""
from dataclasses import dataclass

import numpy as np

from storage.arrays import read_pickle
from util import UserError, prefetch, stream

FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
META = "batches.meta"
SIDE = 32
PADDING = 4  # zeros around an image before it is cropped
QUERY_EVERY = 60
MEAN = np.float32([125.642, 123.738, 114.46])  # RGB
DEVIATION = np.float32([63.01, 62.157, 66.94])


# ---------------------------------------------------------------- files

def _read_fields(path, names):
    """The named fields of a file. Their names are bytes in files that Python 2 wrote, and str or bytes in others."""
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dict, found {type(content).__name__}")
    content = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    missing = [name for name in names if name not in content]
    if missing:
        raise UserError(f"{path}: expected {' and '.join(map(repr, names))}, found no {missing[0]!r}")
    return [content[name] for name in names]


def read_class_names(folder):
    """The names of the classes, a list of str. Raises UserError."""
    path = folder / META
    names, = _read_fields(path, ["label_names"])
    if not (isinstance(names, list) and names and all(isinstance(name, str | bytes) for name in names)):
        raise UserError(f"{path}: expected a list of names under 'label_names', found something else")
    return [name.decode("latin1") if isinstance(name, bytes) else name for name in names]


def read_batch(path, classes):
    """Images, RGB uint8 (N, 32, 32, 3), and labels, int64 (N,), of one file. Raises UserError."""
    pixels, labels = _read_fields(path, ["data", "labels"])
    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 2
            and pixels.shape[1] == 3 * SIDE * SIDE):
        raise UserError(f"{path}: expected rows of {3 * SIDE * SIDE} bytes under 'data', found "
                        f"{getattr(pixels, 'shape', type(pixels).__name__)}")
    if not (isinstance(labels, list) and len(labels) == len(pixels)
            and all(isinstance(label, int) and 0 <= label < classes for label in labels)):
        raise UserError(f"{path}: expected {len(pixels)} labels from 0 to {classes - 1}, found something else")
    return pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), np.array(labels, np.int64)


# ---------------------------------------------------------------- split

@dataclass(frozen=True)
class Part:
    """Images, RGB uint8 (N, 32, 32, 3), their classes, int64 (N,), and names: N of `<file>/<row>`."""
    images: np.ndarray
    labels: np.ndarray
    names: list

    def __len__(self):
        return len(self.labels)


@dataclass(frozen=True)
class Split:
    """Queries, the labelled source set, and the unlabelled target set, which is the database too."""
    query: Part
    labelled: Part
    database: Part
    class_names: list


def split_rows(labels, labelled_per_class=500):
    """Rows of the queries, the labelled images and the database in the concatenated files, three int64 arrays.

    Images are sorted by class, and every 60th is a query; the first of the rest of each class are labelled. The
    sort is stable: with the release's, the split depends on the version of NumPy.
    """
    order = np.argsort(labels, kind="stable")
    rest = np.delete(order, np.s_[::QUERY_EVERY])
    classes = labels[rest]
    place = np.arange(len(rest)) - np.searchsorted(classes, classes)  # of an image among those of its class
    return order[::QUERY_EVERY], rest[place < labelled_per_class], rest[place >= labelled_per_class]


def load_split(folder, labelled_per_class=500, most=None, seed=0):
    """The Split of the files in `folder`. Raises UserError if a file is missing or damaged, or a part is empty.

    Args:
        most: how many images to use, drawn by the seed; all if there are fewer, or if it is None.
    """
    missing = [name for name in (META, *FILES) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: expected CIFAR-10's python-format batches, and {', '.join(missing)} "
                        f"{'is' if len(missing) == 1 else 'are'} missing (prepare/cifar10.py installs them)")
    classes = read_class_names(folder)
    parts = [read_batch(folder / name, len(classes)) for name in FILES]
    images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    names = [f"{name}/{row}" for name, (_, part) in zip(FILES, parts, strict=True) for row in range(len(part))]
    used = np.sort(stream(seed, "gpq images").permutation(len(labels))[:most])
    chosen = [used[rows] for rows in split_rows(labels[used], labelled_per_class)]
    for what, rows in zip(("queries", "labelled images", "database images"), chosen, strict=True):
        if not len(rows):
            raise UserError(f"{folder}: {len(used)} images, with {labelled_per_class} labelled images a class, leave "
                            f"no {what}")
    return Split(*(Part(images[rows], labels[rows], [names[row] for row in rows]) for rows in chosen), classes)


# ---------------------------------------------------------------- batches

def standardize(images):
    """Pixels with mean 0 and deviation 1 in each channel over CIFAR-10, float32 (B, 32, 32, 3)."""
    return (images - MEAN) / DEVIATION


def augment(images, rng):
    """Images that are flipped (½), padded with 4 zeros on each side and cropped at random, (B, 32, 32, 3)."""
    count = len(images)
    flips = rng.random(count) < 0.5
    tops, lefts = rng.integers(0, 2 * PADDING + 1, (2, count))
    padded = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    columns = np.arange(SIDE) + lefts[:, None]  # (B, 32)
    columns = np.where(flips[:, None], SIDE + 2 * PADDING - 1 - columns, columns)  # columns of the flipped image
    rows = np.arange(SIDE) + tops[:, None]
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def draw(part, size, what, seed, step):
    """The batch of a 0-based step: `size` different images, augmented, float32 (B, 32, 32, 3), and labels, int64 (B,).

    It depends on nothing but the part, its name `what`, the seed and the step.
    """
    rng = stream(seed, f"gpq {what}", step)
    rows = rng.choice(len(part), size, replace=False)
    return augment(standardize(part.images[rows]), rng), part.labels[rows]


def batches(split, size, size_unlabelled, seed, steps):
    """An iterator over the batches of 0-based `steps`, each made in the background during the step before.

    It gives labelled images, float32 (B, 32, 32, 3), their labels, int64 (B,), and unlabelled images, float32
    (U, 32, 32, 3), or None if `size_unlabelled` is 0.
    """
    def load(step):
        images, labels = draw(split.labelled, size, "labelled", seed, step)
        unlabelled = None
        if size_unlabelled:
            unlabelled, _ = draw(split.database, size_unlabelled, "unlabelled", seed, step)
        return images, labels, unlabelled
    return prefetch(load, steps)
