"""Data sets: where they lie, their split files, their images, and the batches made of them.

Letters: N images, T merged tags, D = 300. Section numbers are those of the paper's description in README.md.
"""
import collections
import itertools
import mmap
import os
import stat
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(2**27)  # MOST_PIXELS; OpenCV looks at it once, when it is loaded

import cv2
import numpy as np
import scipy.sparse

from util import DIMENSIONS, UserError, check_seal, first_few, note, progress, read_pickle

IMAGE_SIDE = 256  # pixels of a stored image
CROP_SIDE = 227  # pixels of what the network sees
THUMBNAIL_SIDE = 160  # pixels of a thumbnail's longer side
CROP_RANGE = IMAGE_SIDE - CROP_SIDE + 1  # a crop starts at 0 … 29 in each axis
IMAGE_BYTES = IMAGE_SIDE * IMAGE_SIDE * 3
MOST_PIXELS = int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])  # of an image file; decoding takes 6 bytes for each
SURE_SIDE = 65500  # pixels: OpenCV reads no longer side of a JPEG, and any PNG up to there
MOST_SHOWN = 80  # characters of a faulty text

RELEASE_FOLDERS = {"flickr": "flickr25k", "nuswide": "nus-wide"}
TAG_LISTS = ("common_tags.txt", "TagList1k.txt")  # MIRFLICKR's and NUS-WIDE's; own data sets use the first

cv2.setNumThreads(1)  # images are decoded side by side, one thread each
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong is told here, with the file's name


# ---------------------------------------------------------------- where a data set lies

@dataclass(frozen=True)
class Dataset:
    """A data set's name and its two folders: split files and images."""
    name: str
    splits: Path
    images: Path

    @property
    def tag_list(self):
        """The file that names the raw tag of each column of `train_tag.txt`."""
        for name in TAG_LISTS:
            if (self.splits / name).is_file():
                return self.splits / name
        raise UserError(f"{self.splits}: no tag list: expected {' or '.join(TAG_LISTS)}")

    @property
    def tag_embeddings(self):
        return self.splits / "tags" / "FinalTagEmbs.txt"

    @property
    def merge_map(self):
        return self.splits / "tags" / "TagIdMergeMap.pkl"

    @property
    def tag_report(self):
        return self.splits / "tags" / "report.json"

    def check_tags(self):
        """Raise UserError if the files in `tags/` were altered since tag_processing.py; the release's are noted."""
        if not check_seal(self.tag_report):
            note(f"{self.tag_report} tells no checksums, so damage to the files in {self.tag_report.parent} would go "
                 "unnoticed")

    def split_files(self, split):
        """The image list and the 0/1 matrix of split `train`, `database` or `test`."""
        matrix = "train_tag.txt" if split == "train" else f"{split}_label.txt"
        return self.splits / f"{split}_img.txt", self.splits / matrix


def find_dataset(name, root):
    """The data set called `name` under `root`. Raises UserError with the known names if there is none."""
    folder = RELEASE_FOLDERS.get(name, name)
    splits = root / "data" / folder
    if "/" in name or name in ("", ".", "..") or not splits.is_dir():
        known = ", ".join(known_datasets(root)) or "none yet"
        raise UserError(f"unknown data set {name!r}: there is no folder {splits}; known here: {known}")
    return Dataset(name, splits, root / "datasets" / folder)


def known_datasets(root):
    """Names of the data sets under `root` that have an image list, sorted."""
    names = {folder: name for name, folder in RELEASE_FOLDERS.items()}
    folders = {path.parent.name for path in (root / "data").glob("[!.]*/*_img.txt")}
    return sorted(names.get(folder, folder) for folder in folders)


# ---------------------------------------------------------------- split files

def read_text(path, errors="strict"):
    """A UTF-8 text file without its byte order mark, every line ended by \\n. Raises UserError with the row.

    `errors`: as of `bytes.decode`.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    try:
        text = content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: row {row}: expected UTF-8 text, found something else ({error})") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if (nul := text.find("\0")) >= 0:
        row = text.count("\n", 0, nul) + 1
        raise UserError(f"{path}: row {row}: expected text, found a NUL byte")
    return text


def read_lines(path, errors="strict"):
    """The lines of a text file without their ends; blank ones at the end of the file do not count."""
    text = read_text(path, errors).rstrip()
    return text.split("\n") if text else []


def shown(text):
    """A text from outside as it stands in a message: in quotes, not longer than a line."""
    return repr(text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "…")


def read_image_list(path, errors="strict"):
    """Image paths relative to the data set's image folder, one a line. Raises UserError for one that leads out."""
    names = [line.strip() for line in read_lines(path, errors)]
    if not names:
        raise UserError(f"{path}: expected one image path a line, found none")
    for row, name in enumerate(names, 1):
        if not name:
            raise UserError(f"{path}: row {row} is empty, expected an image path")
        if leads_out(name):
            raise UserError(f"{path}: row {row}: expected a path inside the image folder, found {shown(name)}, which "
                            "leads out of it")
    return names


def leads_out(name):
    """Whether a path is absolute or climbs by `..`, if only for a while."""
    return name[0] == "/" or (".." in name and ".." in name.split("/"))


def read_tag_names(path):
    """The raw tag of each column. A line is a tag, or a tag and its count as in MIRFLICKR's list."""
    lines = [line.split() for line in read_lines(path)]
    for row, words in enumerate(lines, 1):
        if not (len(words) == 1 or (len(words) == 2 and words[1].isdecimal())):
            raise UserError(f"{path}: row {row}: expected a tag, or a tag and its count, found "
                            + shown(" ".join(words)))
    return [words[0] for words in lines]


def read_label_names(dataset, columns):
    """The name of each label column, from `labels.txt` if there is one."""
    path = dataset.splits / "labels.txt"
    if not path.is_file():
        return [f"label {column}" for column in range(columns)]
    names = [line.strip() for line in read_lines(path)]
    if len(names) != columns:
        raise UserError(f"{path} has {len(names)} rows, but the label matrix has {columns} columns")
    return names


def read_binary_matrix(path):
    """A 0/1 matrix of whitespace-separated text as scipy CSR, uint8, one row a line.

    Fast where every number is a single digit; other spellings of 0 and 1, such as 1.0, are read too.
    """
    try:
        text = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    if text.size and text[-1] != ord("\n"):
        text = np.append(text, np.uint8(ord("\n")))
    digit = (text == ord("0")) | (text == ord("1"))
    newline = text == ord("\n")
    crlf = np.append((text[:-1] == ord("\r")) & newline[1:], False)[:len(text)]
    plain = digit | newline | crlf | (text == ord(" ")) | (text == ord("\t"))
    if not plain.all() or (digit[1:] & digit[:-1]).any():
        return _read_spelled_matrix(path)
    ends = np.flatnonzero(newline)  # (lines,)
    starts = np.append(0, ends + 1)[:-1]
    widths = np.array([np.count_nonzero(digit[start:end]) for start, end in zip(starts, ends, strict=True)], int)
    rows = _count_rows(path, widths)
    ones = text[digit].reshape(rows, -1) == ord("1")  # (rows, columns)
    return scipy.sparse.csr_array(ones.view(np.uint8))


def _count_rows(path, widths):
    """How many rows there are, given the numbers on each line; they must be as many on each but empty last ones."""
    filled = np.flatnonzero(widths)
    if not len(filled):
        raise UserError(f"{path}: expected a matrix of 0 and 1, found nothing")
    widths = widths[:filled[-1] + 1]
    odd = np.flatnonzero(widths != widths[0])
    if len(odd):
        raise UserError(f"{path}: row {odd[0] + 1} has {widths[odd[0]]} numbers, expected {widths[0]} "
                        "as in row 1")
    return len(widths)


def _read_spelled_matrix(path):
    rows = []
    for row, line in enumerate(read_lines(path), 1):
        values = []
        for word in line.split():
            try:
                value = float(word)
            except ValueError:
                value = None
            if value not in (0, 1):
                raise UserError(f"{path}: row {row}: expected 0 or 1, found {shown(word)}")
            values.append(int(value))
        rows.append(values)
    _count_rows(path, np.array([len(values) for values in rows]))
    return scipy.sparse.csr_array(np.array(rows, np.uint8))


def read_tag_embeddings(path):
    """W, the merged tags' embeddings: float32 (T, 300), every entry finite."""
    lines = read_lines(path)
    try:
        embeddings = np.array([line.split() for line in lines], np.float32)
    except ValueError:
        _check_embedding_rows(path, lines)
        raise
    if embeddings.ndim != 2 or embeddings.shape[1] != DIMENSIONS:
        _check_embedding_rows(path, lines)
        raise UserError(f"{path}: expected rows of {DIMENSIONS} numbers, found none")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(1))
    if len(bad):
        raise UserError(f"{path}: row {bad[0] + 1} holds NaN or infinite numbers, expected {DIMENSIONS} finite ones")
    return embeddings


def _check_embedding_rows(path, lines):
    for row, line in enumerate(lines, 1):
        words = line.split()
        if len(words) != DIMENSIONS:
            raise UserError(f"{path}: row {row}: expected {DIMENSIONS} numbers, found {len(words)}")
        for word in words:
            try:
                float(word)
            except ValueError:
                raise UserError(f"{path}: row {row}: expected a number, found {shown(word)}") from None


def read_merge_map(path, raw_tags):
    """The raw tag columns of each merged tag, as T lists, in the order of the embeddings' rows.

    That order is the dict's own once key −1 (the dropped tags) is removed. `raw_tags` is the number of columns.
    """
    merge_map = read_pickle(path)
    if not isinstance(merge_map, dict):
        raise UserError(f"{path}: expected a dict of merged tags, found {type(merge_map).__name__}")
    groups = []
    for key, columns in merge_map.items():
        if key == -1:
            continue
        columns = columns.tolist() if isinstance(columns, np.ndarray) else columns
        columns = columns if isinstance(columns, list | tuple) else [columns]
        if not columns or not all(type(column) is int or isinstance(column, np.integer) for column in columns):
            raise UserError(f"{path}: merged tag {key!r:.80}: expected a list of raw tag columns, found none or others")
        bad = [column for column in columns if not 0 <= column < raw_tags]
        if bad:
            raise UserError(f"{path}: merged tag {key!r:.80} names raw tag column {bad[0]!s:.80}, expected 0 to "
                            f"{raw_tags - 1}")
        groups.append([int(column) for column in columns])
    return groups


def read_tags(dataset, raw_tags):
    """The raw tag columns of each merged tag, as T lists, and their embeddings W, float32 (T, 300). Raises UserError.

    `raw_tags`: how many raw tag columns there are.
    """
    dataset.check_tags()
    groups = read_merge_map(dataset.merge_map, raw_tags)
    embeddings = read_tag_embeddings(dataset.tag_embeddings)
    if len(groups) != len(embeddings):
        raise UserError(f"{dataset.merge_map} holds {len(groups)} merged tags, but {dataset.tag_embeddings} "
                        f"has {len(embeddings)} rows; run tag_processing.py again")
    return groups, embeddings


def merge_tags(raw, groups):
    """Merged labels: the logical OR of each group's raw columns. CSR uint8 (N, columns) → CSR uint8 (N, T)."""
    columns = np.concatenate([np.asarray(group, np.int64) for group in groups])
    merged = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    belongs = scipy.sparse.csr_array((np.ones(len(columns), np.int32), (columns, merged)),
                                     shape=(raw.shape[1], len(groups)))
    labels = raw.astype(np.int32) @ belongs
    return (labels > 0).astype(np.uint8).sorted_indices()


# ---------------------------------------------------------------- splits

@dataclass(frozen=True)
class TrainingSet:
    """Images with their merged tags. paths: N; tags: CSR uint8 (N, T); embeddings: W, float32 (T, 300)."""
    paths: list
    tags: scipy.sparse.csr_array
    embeddings: np.ndarray
    skipped: int  # bad images left out

    @property
    def untagged(self):
        """How many images have no usable tag; they stay in and add nothing to the embedding loss."""
        return int((np.diff(self.tags.indptr) == 0).sum())


@dataclass(frozen=True)
class RetrievalSet:
    """Images with their ground-truth labels. paths: N; labels: uint8 (N, L); rows: int64 (N,) in the image list."""
    paths: list
    labels: np.ndarray
    rows: np.ndarray
    skipped: int  # bad images left out


def load_training(dataset, skip_bad=False):
    """The training set, every image checked. Raises UserError for whatever does not fit together."""
    names, raw = read_split(dataset, "train")
    groups, embeddings = read_tags(dataset, raw.shape[1])
    tags = merge_tags(raw, groups)  # (N, T)
    paths, keep = _sound_images(dataset.images, names, skip_bad)
    tags = tags[keep]
    if tags.nnz == 0:
        raise UserError(f"{dataset.split_files('train')[1]}: no image has a usable tag, so there is nothing to learn")
    return TrainingSet(paths, tags, embeddings, len(names) - len(paths))


def load_retrieval(dataset, split, skip_bad=False):
    """Split `database` or `test` with its labels, every image checked. Raises UserError."""
    names, labels = read_split(dataset, split)
    paths, keep = _sound_images(dataset.images, names, skip_bad)
    return RetrievalSet(paths, labels[keep].toarray(), keep, len(names) - len(paths))


def read_split(dataset, split):
    """The image names of a split and its 0/1 matrix, CSR uint8, row for row. Raises UserError."""
    list_file, matrix_file = dataset.split_files(split)
    names = read_image_list(list_file)
    matrix = read_binary_matrix(matrix_file)
    if matrix.shape[0] != len(names):
        raise UserError(f"{matrix_file} has {matrix.shape[0]} rows, but {list_file} lists {len(names)} images")
    return names, matrix


# ---------------------------------------------------------------- sound images

def _sound_images(folder, names, skip_bad):
    """Paths of the sound images and their rows. Bad ones are refused by name, or left out if `skip_bad`."""
    paths = [folder / name for name in names]
    faults = faults_in(folder, names)
    if faults and not skip_bad:
        raise UserError(f"{len(faults)} of {len(paths)} images cannot be used (--skip-bad leaves them out): "
                        + list_faults(faults, lambda row: f"{paths[row]} (row {row + 1})"))
    keep = np.array([row for row in range(len(paths)) if row not in faults], np.int64)
    if not len(keep):
        raise UserError(f"{folder}: none of the {len(paths)} listed images can be used")
    return [paths[row] for row in keep], keep


def faults_in(folder, names):
    """{row: what is wrong} of a data set's images as of `image_faults`, and of links out of its folder."""
    outside = links_out(folder, names)
    rows = [row for row in range(len(names)) if row not in outside]
    faults = image_faults([folder / names[row] for row in rows])
    return dict(sorted({**outside, **{rows[i]: why for i, why in faults.items()}}.items()))


def links_out(folder, names):
    """{row: where it leads} of the images that a link puts outside `folder`.

    `folder` itself may be a link, and so may the folders directly in it: they are there to tell where images are.
    """
    places = {parent: _places(folder, parent) for parent in {os.path.dirname(name) for name in names}}
    outside = {}
    for row, name in enumerate(names):
        path = f"{folder}/{name}"
        place, own = places[os.path.dirname(name)]
        if os.path.islink(path):
            place = os.path.realpath(path)
        if not any(place == root or place.startswith(f"{root}/") for root in own):
            outside[row] = f"is a link to {place}, expected an image inside {own[0]}"
    return outside


def _places(folder, parent):
    """Where a parent folder of images really is, and in which folders it may be."""
    first = os.path.normpath(parent).split("/")[0]
    return os.path.realpath(f"{folder}/{parent}"), [os.path.realpath(folder), os.path.realpath(f"{folder}/{first}")]


def image_faults(paths):
    """{row: what is wrong} of the files that are missing, empty, truncated or no image; headers and ends only."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = progress(pool.map(image_fault, paths), total=len(paths), desc="checking images", leave=False)
        return {row: why for row, why in enumerate(found) if why}


def list_faults(faults, name):
    """The first of `{row: what is wrong}` in words, and how many more there are; `name` gives a row's image."""
    return first_few([f"{name(row)} {why}" for row, why in faults.items()])


def image_fault(path):
    """What is wrong with an image file, or None. Usual JPEG and PNG are not decoded: their structure tells."""
    fault, sure = _structural_fault(path)
    return fault if fault or sure else decode(path)[1]


def _structural_fault(path):
    """What is wrong with an image file as far as can be told without decoding it, or None; and whether that is all."""
    try:
        status = os.stat(path)  # follows links, and does not wait for a FIFO as opening it would
        if not stat.S_ISREG(status.st_mode):
            return "cannot be read (it is no regular file)", True
        if not status.st_size:
            return "is empty", True
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:3] == b"\xff\xd8\xff":
                structure = _jpeg_structure(data)
            elif data[:8] == b"\x89PNG\r\n\x1a\n":
                structure = _png_structure(data)
            else:
                return None, False
    except FileNotFoundError:
        return "is missing", True
    except OSError as error:
        return f"cannot be read ({error.strerror})", True
    if structure is None:
        return "is truncated", True
    width, height, usual = structure
    if width * height > MOST_PIXELS:
        return f"has {width:,}×{height:,} pixels, more than {MOST_PIXELS:,}", True
    return None, usual and 0 < width <= SURE_SIDE and 0 < height <= SURE_SIDE


def _jpeg_structure(data):
    """Width, height, and whether the coding is a usual one; None if the start or the end of a scan is not there.

    In a scan FF D9 is always the end, never data; before it, it may be a thumbnail's.
    """
    at, frame = 2, (0, 0, 0, 0, 0)
    while (at := data.find(b"\xff", at)) >= 0 and at + 10 <= len(data):
        kind = data[at + 1]
        if kind == 0xDA:  # start of scan
            marker, bits, height, width, channels = frame
            usual = 0xC0 <= marker <= 0xC2 and bits == 8 and channels in (1, 3, 4)
            return (width, height, usual) if data.rfind(b"\xff\xd9", at) >= 0 else None
        if kind == 0xFF:  # fill byte
            at += 1
        elif kind < 0xC0 or 0xD0 <= kind <= 0xD8:  # these have no length
            at += 2
        else:
            if kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
                frame = struct.unpack(">BxxBHHB", data[at + 1:at + 10])
            at += 2 + int.from_bytes(data[at + 2:at + 4], "big")
    return None


def _png_structure(data):
    """Width, height and True; None if the chunks do not lead from one to the next up to the last.

    OpenCV makes room for a chunk as long as it says it is, up to 4 GB, before it finds the file to be shorter.
    """
    at, kind = 8, b""
    while kind != b"IEND" and at + 12 <= len(data):
        kind = data[at + 4:at + 8]
        at += 12 + int.from_bytes(data[at:at + 4], "big")
    if data[12:16] != b"IHDR" or kind != b"IEND" or at > len(data):
        return None
    return *struct.unpack(">II", data[16:24]), True


# ---------------------------------------------------------------- images and batches

def decode(path):
    """An image as OpenCV reads it, upright, BGR, uint8 (h, w, 3), and None; or None and what is wrong."""
    fault, _ = _structural_fault(path)
    if fault:
        return None, fault
    try:
        image = cv2.imread(os.fsencode(path))  # of a str, a name that is not UTF-8 would crash it
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE_PIXELS" in str(error):
            return None, f"has more than {MOST_PIXELS:,} pixels"
        return None, f"cannot be decoded ({error.err})"
    return (image, None) if image is not None else (None, "is not an image that OpenCV reads")


def read_image(path):
    """An image as the release reads it: BGR, bilinearly resized, uint8 (256, 256, 3). Raises UserError."""
    image, fault = try_image(path)
    if fault:
        raise UserError(f"{path} {fault}")
    return image


def try_image(path):
    """The same and None; or None and what is wrong."""
    image, fault = decode(path)
    return (None, fault) if fault else (cv2.resize(image, (IMAGE_SIDE, IMAGE_SIDE)), None)


def sound_images(paths):
    """The images that can be decoded, uint8 (n, 256, 256, 3), and {row: what is wrong} of the others."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images, faults = zip(*pool.map(try_image, paths), strict=True)
    sound = [image for image in images if image is not None]
    return np.array(sound), {row: fault for row, fault in enumerate(faults) if fault}


def thumbnail(path):
    """An image file as uint8 RGB (h, w, 3) of at most 160 pixels, or None if it is missing or no sound image."""
    image, fault = decode(path)
    if fault:
        return None
    scale = min(1, THUMBNAIL_SIDE / max(image.shape[:2]))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)


class ImageStore:
    """The N images of a split, decoded on demand in threads and kept up to a budget, each at most once.

    Args:
        paths: N image files.
        cache_bytes (int): memory for decoded images of 192 KiB each; the first ones that fit are kept.
    """

    def __init__(self, paths, cache_bytes=0):
        self.paths = paths
        room = min(len(paths), int(cache_bytes) // IMAGE_BYTES)
        self._cache = np.empty((room, IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
        self._cached = np.zeros(room, bool)
        self._pool = ThreadPoolExecutor(os.cpu_count())

    def __len__(self):
        return len(self.paths)

    def image(self, row):
        """Image `row`, uint8 (256, 256, 3); not to be written to."""
        if row >= len(self._cache):
            return read_image(self.paths[row])
        if not self._cached[row]:
            self._cache[row] = read_image(self.paths[row])
            self._cached[row] = True
        return self._cache[row]

    def images(self, rows):
        """The images of `rows`, uint8 (len(rows), 256, 256, 3)."""
        return np.stack(list(self._pool.map(self.image, rows)))

    def crops(self, rows, offsets, flips):
        """One 227×227 crop of each image of `rows` after its flip, uint8 (B, 227, 227, 3).

        Args:
            offsets: int (B, 2), top and left of the crop in the flipped image.
            flips: bool (B,), whether left and right are exchanged first.
        """
        batch = np.empty((len(rows), CROP_SIDE, CROP_SIDE, 3), np.uint8)

        def fill(i):
            image = self.image(rows[i])
            if flips[i]:
                image = image[:, ::-1]
            top, left = offsets[i]
            batch[i] = image[top:top + CROP_SIDE, left:left + CROP_SIDE]

        list(self._pool.map(fill, range(len(rows))))
        return batch


def random_crops(store, rows, rng):
    """A training batch: each image flipped with probability ½, then cropped anywhere. uint8 (B, 227, 227, 3)."""
    flips = rng.random(len(rows)) < 0.5
    offsets = rng.integers(0, CROP_RANGE, (len(rows), 2))
    return store.crops(rows, offsets, flips)


def made_ahead(make, keys, ahead=1):
    """An iterator over make(key) for each key in order; the next `ahead` ones are made in the background.

    The first are begun by the call itself, before anyone asks for them.
    """
    pool = ThreadPoolExecutor(1)
    keys = iter(keys)
    pending = collections.deque(pool.submit(make, key) for key in itertools.islice(keys, ahead + 1))

    def results():
        try:
            while pending:
                made = pending.popleft().result()
                pending.extend(pool.submit(make, key) for key in itertools.islice(keys, 1))
                yield made
        finally:
            pool.shutdown(cancel_futures=True)
    return results()
