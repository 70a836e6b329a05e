"""Features of photos by an image encoder, computed once and kept in an HDF5 file.

`features/<dataset>_<SHA-256 of the encoder>.h5` holds, of each split that was computed,

    train, database, query                 float16 (N, F), rows as in the image list; NaN for photos that were left out
    train_names, …                         the N paths of the image list
    train_fingerprints, …                  int64 (N, 7), see storage/fingerprints.py; 0 for photos that were left out

so that only photos with a new content are computed: one that was moved, copied or touched keeps its features. Files of
features from elsewhere have the first three alone.

Letters: N images, F features.
"""
import importlib.metadata
import os
from dataclasses import dataclass

import h5py
import numpy as np

from dataset import read_image_list
from models.encoder import onnxruntime
from storage.files import check_space, exclusive_lock, naming, read_json, with_checksums, write_json
from storage.fingerprints import NUMBERS, content_digests, take_fingerprints
from storage.hdf5 import open_hdf5
from util import UserError

NAMES = {"train": "train", "database": "database", "test": "query"}  # split: its name in the file
DIGEST_BYTES = 32  # of a SHA-256


@dataclass(frozen=True)
class KeptFeatures:
    """The features of a split's N images. names: (N,), bytes; fingerprints: int64 (N, 7); values: float16 (N, F)."""
    names: np.ndarray
    fingerprints: np.ndarray
    values: np.ndarray

    def are_of(self, names, fingerprints):
        """Whether they are those of images with these names and fingerprints."""
        return np.array_equal(self.names, names) and np.array_equal(self.fingerprints, fingerprints)


# ---------------------------------------------------------------- features of photos

def photo_features(folder, split, rows, encoder, path, log):
    """Features of a split's images `rows`, float16 (n, F); those that the file `path` lacks are computed and kept.

    Args:
        folder: dataset.Dataset.
        rows: int64 (n,) in the image list.
        encoder: models.encoder.ImageEncoder.
        log: function of a line.
    Raises UserError for a photo that cannot be decoded, and where there is no room for the features.
    """
    images = read_image_list(folder.split_files(split)[0])
    names, paths = np.array([name.encode() for name in images], object), [folder.images / name for name in images]
    facts = facts_of(encoder.sha256)
    with exclusive_lock(path.with_name(f".{path.name}.lock"), f"{path}: another run computes these features"):
        stored = stored_features(path, facts, encoder.width, log)
        fingerprints = fingerprints_of(names, paths, rows, stored)
        kept = stored.get(NAMES[split])
        if kept is None or not kept.are_of(names, fingerprints):
            digests = content_digests(fingerprints)
            cache = FeatureCache(path, facts, stored, encoder.width)
            cache.compute(digests, rows, paths, encoder)
            stored[NAMES[split]] = kept = KeptFeatures(names, fingerprints, cache.rows(digests))
            write_features(path, stored, facts)
            cache.forget()
        else:
            log(f"features of the {split} images are those of {path}.")
    return kept.values[rows]


def fingerprints_of(names, paths, rows, stored):
    """The fingerprints of the images `rows`, int64 (N, 7), 0 for the others. Images that are in `stored`, of
    `stored_features`, and have not changed, are not read."""
    earlier = {name: fingerprint for kept in stored.values()
               for name, fingerprint in zip(kept.names, kept.fingerprints, strict=True) if fingerprint.any()}
    nothing = np.zeros(NUMBERS, np.int64)
    known = np.array([earlier.get(names[row], nothing) for row in rows], np.int64).reshape(-1, NUMBERS)
    fingerprints = np.zeros((len(names), NUMBERS), np.int64)
    fingerprints[rows] = take_fingerprints([paths[row] for row in rows], known)
    return fingerprints


def features_file(root, dataset, sha256):
    """Where the features of a data set are kept. `sha256`: of the encoder's file."""
    return root / "features" / f"{dataset}_{sha256[:12]}.h5"


def kept_features(path, sha256, width, log):
    """All features in a file, {SHA-256 of a photo's content, bytes: float16 (F,)}; none where another encoder computed
    them. `width`: F."""
    return by_content(stored_features(path, facts_of(sha256), width, log))


def facts_of(sha256):
    """What features depend on in addition to the photo. `sha256`: of the encoder's file."""
    return {"encoder": sha256, "onnxruntime": onnxruntime.__version__,
            "opencv-python": importlib.metadata.version("opencv-python")}


def by_content(stored):
    """{SHA-256 of a photo's content, bytes: its features} of `stored_features`."""
    return {digest.tobytes(): values for kept in stored.values()
            for digest, values in zip(content_digests(kept.fingerprints), kept.values, strict=True) if digest.any()}


class FeatureCache:
    """Features by the content of their images: those of a file of features, and those in a file of records next to it,
    which grows while features are computed, so that little is lost by an interruption.

    A record is the SHA-256 of the image and the features, float16 (F,); the facts are in a JSON file next to it.
    """

    def __init__(self, path, facts, stored, width):
        self._path = path.with_name(f".{path.name}.partial")
        self._facts, self._width = facts, width
        self._record = np.dtype([("digest", np.uint8, DIGEST_BYTES), ("features", np.float16, (width,))])
        self._found = by_content(stored)
        self._keep(self._records())

    def _keep(self, records):
        self._found |= {record["digest"].tobytes(): record["features"] for record in records}

    def _records(self):
        """The whole records of an interrupted run with the same facts; anything else in the file is cut off."""
        facts = self._path.with_suffix(".json")
        if self._path.is_file() and facts.is_file() and read_json(facts) == self._facts:
            content = self._path.read_bytes()
            whole = len(content) // self._record.itemsize * self._record.itemsize
            os.truncate(self._path, whole)
            return np.frombuffer(content[:whole], self._record)
        self.forget()
        return ()

    def compute(self, digests, rows, paths, encoder):
        """Compute the features of the images `rows` that are not known yet, each content once. Raises UserError."""
        missing = list({digest: row for row in rows if (digest := digests[row].tobytes()) not in self._found}.values())
        if not missing:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        check_space(self._path.parent, 2 * len(digests) * self._record.itemsize)
        write_json(self._path.with_suffix(".json"), self._facts)
        done = 0
        with naming(self._path), open(self._path, "ab") as file:
            for block in encoder.photo_features([paths[row] for row in missing], "computing features"):
                records = np.zeros(len(block), self._record)
                records["digest"] = digests[missing[done:done + len(block)]]
                records["features"] = block
                file.write(records.tobytes())
                self._keep(records)
                done += len(block)

    def rows(self, digests):
        """The features of images by their digests, uint8 (N, 32): float16 (N, F); NaN where a digest is 0."""
        features = np.full((len(digests), self._width), np.nan, np.float16)
        for row, digest in enumerate(digests):
            if digest.any():
                features[row] = self._found[digest.tobytes()]
        return features

    def forget(self):
        """Delete the file of records."""
        for path in (self._path, self._path.with_suffix(".json")):
            path.unlink(missing_ok=True)


# ---------------------------------------------------------------- the file

def stored_features(path, facts, width, log):
    """`{name of a split in the file: KeptFeatures}` of a file written here; nothing, and a line to `log`, if it has
    other facts or another content. `width`: F."""
    if not path.is_file():
        return {}
    with open_hdf5(path) as file:
        found = dict(file.attrs)
        if found != facts:
            differing = next((name for name in facts if found.get(name) != facts[name]), "format")
            log(f"{path} was made with another {differing}: its features are computed anew.")
            return {}
        names = [name for name in NAMES.values() if name in file]
        if not all(_fits(file, name, width) for name in names):
            log(f"{path} was made with another format: its features are computed anew.")
            return {}
        return {name: KeptFeatures(file[f"{name}_names"][()], file[f"{name}_fingerprints"][()], file[name][()])
                for name in names}


def _fits(file, name, width):
    """Whether an open file has the names, fingerprints and features of a split, and as many of each."""
    parts = [file.get(part) for part in (f"{name}_names", f"{name}_fingerprints", name)]
    if not all(isinstance(part, h5py.Dataset) and part.shape for part in parts):
        return False
    names, fingerprints, values = parts
    return (h5py.check_string_dtype(names.dtype) is not None and names.dtype.kind == "O"
            and (fingerprints.dtype, values.dtype) == (np.int64, np.float16)
            and (names.shape, fingerprints.shape, values.shape) == (
                (len(values),), (len(values), NUMBERS), (len(values), width)))


def write_features(path, stored, facts):
    """Replace a file of features. `stored`, `facts`: as above."""
    with naming(path), with_checksums(path.with_suffix(".json"), {}, path) as (temporary,), h5py.File(
            temporary, "w") as file:
        for name, kept in stored.items():
            file[name], file[f"{name}_fingerprints"] = kept.values, kept.fingerprints
            file.create_dataset(f"{name}_names", data=kept.names, dtype=h5py.string_dtype())
        file.attrs.update(facts)


def read_features(path, split, image_list, width=None):
    """The features of a split from a file from elsewhere, float (N, F). Raises UserError.

    Args:
        image_list: the file that lists the split's N images.
        width (int): F as the last layer has it, or None for any.
    """
    name, count = NAMES[split], len(read_image_list(image_list))
    with open_hdf5(path) as file:
        if not isinstance(file.get(name), h5py.Dataset):
            raise UserError(f"{path}: expected a dataset {name!r}, found {', '.join(file) or 'none'}")
        features = file[name]
        if features.dtype.kind != "f" or features.ndim != 2 or 0 in features.shape:
            raise UserError(f"{path}: expected {name} of floats, images × features, found {features.dtype} "
                            f"{features.shape}")
        if len(features) != count:
            raise UserError(f"{path}: expected as many rows of {name} as {image_list} has, {count:,}, found "
                            f"{len(features):,}")
        if width not in (None, features.shape[1]):
            raise UserError(f"{path}: expected {width:,} features an image, as the last layer has, found "
                            f"{features.shape[1]:,}")
        features = features[()]
    if bad := np.flatnonzero(~np.isfinite(features).all(1)).tolist():
        raise UserError(f"{path}: row {bad[0] + 1} of {name} holds NaN or infinite numbers"
                        + (f", and so do {len(bad) - 1:,} others" if len(bad) > 1 else ""))
    return features
