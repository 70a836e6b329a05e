"""Data sets: where they are, their split files, and what is read from them.

Letters: N images, T merged tags, D = 300. Section numbers are those of docs/method.md.
"""
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse

from storage.arrays import read_pickle
from storage.files import check_checksums
from storage.images import image_faults, list_faults
from util import DIMENSIONS, UserError, leads_out, note, progress

MOST_SHOWN = 80  # characters of a faulty text in an error message
BLOCK = 2**20  # bytes of a 0/1 matrix that are parsed at a time, up to the next line end

# line ends among them, and the tabs that lists with columns are separated by
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

RELEASE_FOLDERS = {"flickr": "flickr25k", "nuswide": "nus-wide"}
TAG_LISTS = ("common_tags.txt", "TagList1k.txt")  # MIRFLICKR's and NUS-WIDE's; own data sets use the first


# ---------------------------------------------------------------- where a data set is

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
        """Raise UserError if the files in `tags/` were altered since tag_processing.py wrote them.

        A note says so if they have no checksums, as the release's have none.
        """
        if not check_checksums(self.tag_report):
            note(f"{self.tag_report} holds no checksums, so damage to the files in {self.tag_report.parent} would go "
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


# ---------------------------------------------------------------- links to images

def link_folder(link, folder, root):
    """Make `link` point to a folder, by a relative path if both are below `root`, so that the project can be moved."""
    place, folder, root = link.parent.resolve(), folder.resolve(), root.resolve()
    inside = place.is_relative_to(root) and folder.is_relative_to(root)
    link.symlink_to(os.path.relpath(folder, place) if inside else folder, target_is_directory=True)


def check_links(dataset, names):
    """Check that the image folder, and the folders directly in it that `names` use, lead to images of this project.

    A link to nothing raises UserError. A note warns of a link into another project that also has this data set: the
    absolute links of a copied project lead to the original.
    """
    images = dataset.images
    project = dataset.splits.parent.parent.resolve()
    used = sorted({name.split("/")[0] for name in names if "/" in name})
    for link in filter(Path.is_symlink, (images, *(images / name for name in used))):
        place = Path(os.path.realpath(link))
        found = f"{link} is a link to {os.readlink(link)}"
        repair = f"make the link again: ln -sfn FOLDER {link}"
        if not place.is_dir():
            raise UserError(f"{found}, and there is no such folder; if the images were moved, {repair}")
        for other in place.parents:
            if other != project and any((other / "data" / dataset.splits.name).glob("*_img.txt")):
                note(f"{found}, in another project, {other}; if this project is a copy of that one, {repair}")


# ---------------------------------------------------------------- split files

def read_text(path, errors="strict"):
    """A UTF-8 text file without its byte order mark, with \\n at the end of each line. Raises UserError with the row.

    `errors`: see `bytes.decode`.
    """
    with _opened(path) as file:
        return _decoded(path, file.read(), errors)


def _opened(path):
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None


def _decoded(path, content, errors="strict", rows=0):
    """The text of a file, or of a block of its lines that comes after `rows` others, as returned by `read_text`."""
    try:
        text = content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        row = rows + content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: row {row}: expected UTF-8 text, found something else ({error})") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if (nul := text.find("\0")) >= 0:
        row = rows + text.count("\n", 0, nul) + 1
        raise UserError(f"{path}: row {row}: expected text, found a NUL byte")
    return text


def read_lines(path, errors="strict"):
    """The lines of a text file without their line ends, and without blank lines at the end of the file."""
    text = read_text(path, errors).rstrip()
    return text.split("\n") if text else []


def shown(text):
    """A text from a file as error messages show it: in quotes, not longer than a line."""
    return repr(text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "…")


def read_image_list(path, errors="strict"):
    """Image paths relative to the data set's image folder, one a line. Raises UserError if one is absolute or contains
    `..`."""
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


def name_fault(name):
    """Why a split file, a list of one name a line, cannot hold a name, as a noun phrase: "a name with …"; or None."""
    if found := CONTROL.search(name):
        return f"the control character {found[0]!r}"
    if name != name.strip():
        return "a space at its start or end"
    return None if is_utf_8(name) else "bytes that are not UTF-8"


def photo_name_fault(name, utf_8=False):
    """Why an index cannot hold the name of a photo, or None. It can hold more names than a split file, since its lines
    end in a line feed alone and keep their spaces. `utf_8`: whether the name has to be UTF-8, as in shards of codes."""
    if utf_8 and not is_utf_8(name):
        return "has a name that is not UTF-8"
    return "has a line break in its name" if "\n" in name else None


def is_utf_8(name):
    """Whether a file's name, as Python gives it, is UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_tag_names(path):
    """The raw tag of each column. A line is a tag, or a tag and its count as in MIRFLICKR's list."""
    return [words[0] for words in tag_rows(path, read_lines(path))]


def tag_rows(path, lines):
    """The words of each line of a tag list: a tag, or a tag and its count. Raises UserError for any other."""
    rows = [line.split() for line in lines]
    for row, words in enumerate(rows, 1):
        if not (len(words) == 1 or (len(words) == 2 and words[1].isdecimal())):
            raise UserError(f"{path}: row {row}: expected a tag, or a tag and its count, found "
                            + shown(" ".join(words)))
    return rows


def read_label_names(dataset, columns):
    """The name of each label column, from `labels.txt` if there is such a file."""
    path = dataset.splits / "labels.txt"
    if not path.is_file():
        return [f"label {column}" for column in range(columns)]
    names = [line.strip() for line in read_lines(path)]
    if len(names) != columns:
        raise UserError(f"{path} has {len(names)} rows, but the label matrix has {columns} columns")
    return names


def read_binary_matrix(path, columns=None, why="in row 1"):
    """A 0/1 matrix of whitespace-separated text as scipy CSR, uint8 (rows, columns), one row a line.

    Only one block of lines is in memory as text. Spellings such as 1.0 are read too, but more slowly.

    Args:
        columns (int): how many numbers each row must have; None takes as many as row 1 has.
        why: where that number comes from, for the error message: "expected 5 as …".
    """
    blocks, rows = [], 0
    for lines in _line_blocks(path):
        if columns is None:
            columns = len(lines[0].split())
            if not columns:
                raise UserError(f"{path}: row 1 is blank, expected numbers")
        blocks.append(_parse_block(path, lines, rows, columns, why))
        rows += len(lines)
    if not blocks:
        raise UserError(f"{path}: expected a matrix of 0 and 1, found nothing")
    return scipy.sparse.csr_array(scipy.sparse.vstack(blocks))


def _line_blocks(path):
    """Yield the lines of a text file in lists, without the blank lines at its end."""
    rows = blank = 0  # blank: lines at the end of what was read so far, which count only if others follow
    with _opened(path) as file, progress(total=os.path.getsize(path), unit="B", unit_scale=True, leave=False,
                                         desc=os.path.basename(path)) as bar:
        while block := file.read(BLOCK) + file.readline():
            bar.update(len(block))
            lines = _decoded(path, block, rows=rows).removesuffix("\n").split("\n")
            rows += len(lines)
            end = next((count for count in range(len(lines), 0, -1) if lines[count - 1].strip()), 0)
            if end:
                yield [""] * blank + lines[:end]
                blank = 0
            blank += len(lines) - end


def _parse_block(path, lines, rows, columns, why):
    """A block of lines, which comes after `rows` others: CSR uint8 (lines, columns). Raises UserError with the row."""
    try:
        block = np.loadtxt(lines, np.uint8, comments=None, ndmin=2)  # skips blank lines
    except ValueError:
        block = None
    if block is None or block.shape != (len(lines), columns) or block.max() > 1:  # other spellings, or errors
        block = np.array([_parse_row(path, row, line, columns, why) for row, line in enumerate(lines, rows + 1)],
                         np.uint8)
    return scipy.sparse.csr_array(block)


def _parse_row(path, row, line, columns, why):
    numbers = []
    for word in line.split():
        number = _as_float(word)
        if number not in (0, 1):
            raise UserError(f"{path}: row {row}: expected 0 or 1, found {shown(word)}")
        numbers.append(int(number))  # of which Python keeps one 0 and one 1 in memory, unlike floats
    if len(numbers) != columns:
        raise UserError(f"{path}: row {row} has {len(numbers)} numbers, expected {columns} as {why}")
    return numbers


def _as_float(word):
    """The number that a word spells, or None."""
    try:
        return float(word)
    except ValueError:
        return None


def read_tag_embeddings(path):
    """W, the merged tags' embeddings: float32 (T, 300), every entry finite. Raises UserError with the row."""
    embeddings = [_parse_embedding(path, row, line) for row, line in enumerate(read_lines(path), 1)]
    if not embeddings:
        raise UserError(f"{path}: expected rows of {DIMENSIONS} numbers, found none")
    return np.stack(embeddings)


def _parse_embedding(path, row, line):
    words = line.split()
    if len(words) != DIMENSIONS:
        raise UserError(f"{path}: row {row}: expected {DIMENSIONS} numbers, found {len(words)}")
    numbers = [_as_float(word) for word in words]
    if None in numbers:
        raise UserError(f"{path}: row {row}: expected a number, found {shown(words[numbers.index(None)])}")
    with np.errstate(over="ignore"):  # values beyond float32 are refused below
        embedding = np.array(numbers, np.float32)
    if not np.isfinite(embedding).all():
        raise UserError(f"{path}: row {row} holds NaN or infinite numbers, expected {DIMENSIONS} finite ones")
    return embedding


def read_merge_map(path, raw_tags):
    """The raw tag columns of each merged tag, as T lists, in the order of the embeddings' rows.

    That order is the dict's own without the key −1 (the dropped tags). `raw_tags` is the number of columns.
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

    `raw_tags`: the number of raw tag columns.
    """
    dataset.check_tags()
    groups = read_merge_map(dataset.merge_map, raw_tags)
    embeddings = read_tag_embeddings(dataset.tag_embeddings)
    if len(groups) != len(embeddings):
        raise UserError(f"{dataset.merge_map} holds {len(groups)} merged tags, but {dataset.tag_embeddings} "
                        f"has {len(embeddings)} rows; run tag_processing.py again")
    return groups, embeddings


def merge_tags(raw, groups):
    """Merged tags: the logical OR of each group's raw columns. CSR uint8 (N, columns) → CSR uint8 (N, T)."""
    columns = np.concatenate([np.asarray(group, np.int64) for group in groups])
    merged = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    belongs = scipy.sparse.csr_array((np.ones(len(columns), np.int32), (columns, merged)),
                                     shape=(raw.shape[1], len(groups)))
    tags = raw.astype(np.int32) @ belongs
    return (tags > 0).astype(np.uint8).sorted_indices()


# ---------------------------------------------------------------- splits

@dataclass(frozen=True)
class TrainingSet:
    """Images with their merged tags. paths: N; tags: CSR uint8 (N, T); embeddings: W, float32 (T, 300);
    rows: of the image list, int64 (N,)."""
    paths: list
    tags: scipy.sparse.csr_array
    embeddings: np.ndarray
    rows: np.ndarray
    skipped: int  # bad images left out

    @property
    def untagged(self):
        """How many images have no usable tag. They stay in and add nothing to the embedding loss."""
        return int((np.diff(self.tags.indptr) == 0).sum())


@dataclass(frozen=True)
class RetrievalSet:
    """Images with their ground-truth labels. paths: N; labels: uint8 (N, L); rows: of the image list, int64 (N,)."""
    paths: list
    labels: np.ndarray
    rows: np.ndarray
    skipped: int  # bad images left out


def load_training(dataset, skip_bad=False, check_images=True):
    """The training set. Raises UserError if the files do not fit together.

    `check_images`: whether to check every image file, which is not needed if features are given.
    """
    names, raw = read_split(dataset, "train")
    groups, embeddings = read_tags(dataset, raw.shape[1])
    tags = merge_tags(raw, groups)  # (N, T)
    paths, keep = _usable_images(dataset.images, names, skip_bad, check_images)
    tags = tags[keep]
    if tags.nnz == 0:
        raise UserError(f"{dataset.split_files('train')[1]}: no image has a usable tag, so there is nothing to learn")
    return TrainingSet(paths, tags, embeddings, keep, len(names) - len(paths))


def load_images(dataset):
    """The training images of a data set without tags, which need no check: a TrainingSet without tags."""
    names = read_image_list(dataset.split_files("train")[0])
    check_links(dataset, names)
    return TrainingSet([dataset.images / name for name in names], None, None, np.arange(len(names)), 0)


def load_retrieval(dataset, split, skip_bad=False, check_images=True):
    """Split `database` or `test` with its labels. Raises UserError. `check_images`: see `load_training`."""
    names, labels = read_split(dataset, split)
    paths, keep = _usable_images(dataset.images, names, skip_bad, check_images)
    return RetrievalSet(paths, labels[keep].toarray(), keep, len(names) - len(paths))


def read_split(dataset, split):
    """The image names of a split and its 0/1 matrix, CSR uint8, row for row. Raises UserError."""
    list_file, matrix_file = dataset.split_files(split)
    names = read_image_list(list_file)
    check_links(dataset, names)
    matrix = read_binary_matrix(matrix_file)
    if matrix.shape[0] != len(names):
        raise UserError(f"{matrix_file} has {matrix.shape[0]} rows, but {list_file} lists {len(names)} images")
    return names, matrix


# ---------------------------------------------------------------- images that can be read

def _usable_images(folder, names, skip_bad, check_images):
    """Paths of the images that can be read, and their rows. Raises UserError that names bad ones, unless `skip_bad`.

    `check_images`: whether to check the files; if not, all are taken.
    """
    paths = [folder / name for name in names]
    faults = faults_in(folder, names) if check_images else {}
    if faults and not skip_bad:
        raise UserError(f"{len(faults)} of {len(paths)} images cannot be used (--skip-bad leaves them out): "
                        + list_faults(faults, lambda row: f"{paths[row]} (row {row + 1})"))
    keep = np.array([row for row in range(len(paths)) if row not in faults], np.int64)
    if not len(keep):
        raise UserError(f"{folder}: none of the {len(paths)} listed images can be used")
    return [paths[row] for row in keep], keep


def faults_in(folder, names):
    """{row: what is wrong} of a data set's images, see `image_faults`, and of links out of its folder."""
    outside = links_out(folder, names)
    rows = [row for row in range(len(names)) if row not in outside]
    faults = image_faults([folder / names[row] for row in rows])
    return dict(sorted({**outside, **{rows[i]: why for i, why in faults.items()}}.items()))


def links_out(folder, names):
    """{row: where it leads} of the images that a link puts outside `folder`.

    `folder` itself may be a link, and so may the folders directly in it, since these say where the images are.
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
