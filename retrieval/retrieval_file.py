"""The retrieval file that validation.py writes: its content, what it depends on, reading and writing it.

Letters: N images of the database, Q queries, D = 300, M codebooks of K = 256 codewords, L labels.
"""
import hashlib
from dataclasses import dataclass

import h5py
import numpy as np

from quantization import quantizer
from storage.files import fingerprint, with_checksums
from storage.hdf5 import open_hdf5
from util import DIMENSIONS, MOST_CODEBOOKS, UserError

SPLITS = {"database": "db", "test": "qry"}  # split: the first part of its arrays' names
AVERAGES = "qry_averages"  # an array that only some files have
SHAPES = {"codebooks": "MKD", "db_features": "ND", "db_codes": "NM", "db_label": "NL", "qry_features": "QD",
          "qry_codes": "QM", "qry_label": "QL", AVERAGES: "QD"}  # of each array, by the letters above
NAMES = tuple(name for name in SHAPES if name != AVERAGES)
FLOATS = ("codebooks", "db_features", "qry_features", AVERAGES)


@dataclass(frozen=True)
class Retrieval:
    """Embeddings, codes and labels of the database and of the queries, and the codebooks.

    features: float32 (N or Q, D); codes: uint8 (N or Q, M); label: 0/1 (N or Q, L); codebooks: float32 (M, K, D);
    qry_averages: the queries for codes where these are averages of `neighbourhoods`, float32 (Q, D), or None.
    """
    db_features: np.ndarray
    db_codes: np.ndarray
    db_label: np.ndarray
    qry_features: np.ndarray
    qry_codes: np.ndarray
    qry_label: np.ndarray
    codebooks: np.ndarray
    qry_averages: np.ndarray | None = None

    @property
    def queries(self):
        """The queries for codes, float32 (Q, D)."""
        return self.qry_features if self.qry_averages is None else self.qry_averages


# ---------------------------------------------------------------- what it depends on

def sources(dataset, checkpoint, crops, seed, splits=None, features=None):
    """What a retrieval file depends on, as attributes of the file: first all but the labels, then the labels.

    Args:
        splits: see `validation.load_splits`, if bad images may have been left out, otherwise None.
        features: the file of features from which the embeddings were made, or None.
    Raises UserError for a file that is missing.
    """
    lists, labels = zip(*(dataset.split_files(split) for split in SPLITS), strict=True)
    names = {"checkpoint": checkpoint, **{path.name: path for path in (dataset.tag_embeddings, *lists)}}
    if features is not None:
        names["features"] = features
    for path in (*names.values(), *labels):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    return ({**{f"sha256 of {name}": fingerprint(path) for name, path in names.items()},
             "crops": crops, "seed": seed,
             **{f"choice of {split} images": _rows_kept(splits and splits[split]) for split in SPLITS}},
            {f"sha256 of {path.name}": fingerprint(path) for path in labels})


def _rows_kept(split):
    if split is None or not split.skipped:
        return "all"
    return hashlib.sha256(split.rows.tobytes()).hexdigest()


# ---------------------------------------------------------------- reading and writing

def read_retrieval(path, expected, labels):
    """The content of a retrieval file, if it can be used.

    Args:
        expected, labels: the attributes that it has to have, see `sources`.
    Returns:
        The Retrieval, or None if the file is damaged or was made from other files; whether its labels are the present
        ones; and a sentence: that the files match, or why it cannot be used as it is.
    """
    if not path.is_file():
        return None, False, f"{path} is not there yet"

    def changed(attributes):
        return next((f"{path} was made with another {name.removeprefix('sha256 of ')}"
                     for name, value in attributes.items() if found.get(name) != value), None)
    try:
        with open_hdf5(path) as file:
            found = dict(file.attrs)
            if why := changed(expected):
                return None, False, why
            content = _content(path, file)
    except UserError as error:
        return None, False, str(error)
    why = changed(labels)
    return content, why is None, why or "the files match"


def read_content(path):
    """The Retrieval in a file. Raises UserError for what is missing, damaged or does not fit together."""
    with open_hdf5(path) as file:
        return _content(path, file)


def _content(path, file):
    if missing := [name for name in NAMES if not isinstance(file.get(name), h5py.Dataset)]:
        raise UserError(f"{path}: expected the datasets {', '.join(NAMES)}, found no {', '.join(missing)}")
    arrays = {name: file[name][()] for name in (*NAMES, AVERAGES) if name in file}
    check_shapes(path, arrays)
    check_values(path, arrays)
    return Retrieval(**arrays | {name: np.ascontiguousarray(arrays[name], np.float32)
                                  for name in FLOATS if name in arrays})


def check_shapes(path, arrays):
    """Raise UserError for arrays whose shapes are not SHAPES, with the same number for a letter everywhere."""
    sizes = {"K": quantizer.CODEWORDS, "D": DIMENSIONS}
    for name in [name for name in SHAPES if name in arrays]:
        expected, found = [sizes.get(letter, letter) for letter in SHAPES[name]], np.shape(arrays[name])
        if len(found) != len(expected) or any(size not in (number, letter) for number, size, letter in zip(
                found, expected, SHAPES[name], strict=True)):
            raise UserError(f"{path}: expected {name} with shape ({', '.join(map(str, expected))}), found {found}")
        sizes |= zip(SHAPES[name], found, strict=True)
    if not 1 <= sizes["M"] <= MOST_CODEBOOKS:
        raise UserError(f"{path}: expected 1 to {MOST_CODEBOOKS} codebooks, found {sizes['M']}")


def check_values(path, arrays):
    """Raise UserError for values of the wrong kind: NaN, codes that are no bytes, labels that are not 0 or 1."""
    for name, array in arrays.items():
        if name in FLOATS and array.dtype.kind != "f":
            raise UserError(f"{path}: expected {name} of floats, found {array.dtype}")
        if name in FLOATS and not np.isfinite(array).all():
            raise UserError(f"{path}: {name} holds NaN or infinite values")
        if name.endswith("codes") and array.dtype != np.uint8:
            raise UserError(f"{path}: expected {name} of uint8, found {array.dtype}")
        if name.endswith("label") and (array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all()):
            raise UserError(f"{path}: expected {name} of 0 and 1, found something else")


def write_retrieval(path, retrieval, attributes):
    """Write the release's six datasets, the codes, the codebooks, and averages of queries if there are any."""
    with with_checksums(path.with_suffix(".json"), {}, path) as (temporary,), h5py.File(temporary, "w") as file:
        for name in NAMES:
            file[name] = getattr(retrieval, name)
        if retrieval.qry_averages is not None:
            file[AVERAGES] = retrieval.qry_averages
        for prefix in SPLITS.values():
            file[f"{prefix}_reconstr"] = quantizer.reconstruct(getattr(retrieval, f"{prefix}_codes"),
                                                               retrieval.codebooks)
        file.attrs.update(attributes)
