"""Features of photos by an image encoder, computed once and kept in an HDF5 file.

`features/<dataset>_<SHA-256 of the encoder>.h5` holds `train`, `database` and `query`, float16 (N, F), rows as in the
image lists, and a key of each photo, so that only new and changed photos are computed. Files of features from elsewhere
have no keys.

Letters: N images, F features.
"""
import hashlib
import importlib.metadata
import os

import h5py
import numpy as np

from dataset import read_image_list
from models.encoder import onnxruntime
from storage.files import check_space, exclusive_lock, naming, read_json, with_checksums, write_json
from storage.hdf5 import reading
from util import UserError

NAMES = {"train": "train", "database": "database", "test": "query"}  # split: its name in the file
KEY_BYTES = 16


# ---------------------------------------------------------------- features of photos

def photo_features(folder, split, rows, encoder, path, log):
    """Features of a split's images `rows`, float16 (n, F); those that the file `path` lacks are computed and kept.

    Args:
        folder: dataset.Dataset.
        rows: int64 (n,) in the image list.
        encoder: models.encoder.ImageEncoder.
        log: function of a line.
    """
    names = read_image_list(folder.split_files(split)[0])
    keys = np.zeros((len(names), KEY_BYTES), np.uint8)  # of images that are left out, 0
    for row in rows:
        keys[row] = photo_key(folder.images, names[row])
    facts = facts_of(encoder.sha256)
    with exclusive_lock(path.with_name(f".{path.name}.lock"), f"{path}: another run computes these features"):
        stored = stored_features(path, facts, log)
        kept = stored.get(NAMES[split])
        if kept is None or not np.array_equal(kept[0], keys):
            known = Known(path, facts, stored, encoder.width)
            known.compute(keys, rows, [folder.images / name for name in names], encoder)
            stored[NAMES[split]] = kept = keys, known.rows(keys)
            write_features(path, stored, facts)
            known.forget()
        else:
            log(f"features of the {split} images are those of {path}.")
    return kept[1][rows]


def features_file(root, dataset, sha256):
    """Where the features of a data set are kept. `sha256`: of the encoder's file."""
    return root / "features" / f"{dataset}_{sha256[:12]}.h5"


def kept_features(path, sha256, log):
    """All features in a file: {bytes of `photo_key`: float16 (F,)}; none where another encoder computed them."""
    return by_keys(stored_features(path, facts_of(sha256), log))


def facts_of(sha256):
    """What features depend on in addition to the photo. `sha256`: of the encoder's file."""
    return {"encoder": sha256, "onnxruntime": onnxruntime.__version__,
            "opencv-python": importlib.metadata.version("opencv-python")}


def by_keys(stored):
    """{bytes of `photo_key`: features} of `stored_features`."""
    return {key.tobytes(): row for keys, features in stored.values()
            for key, row in zip(keys, features, strict=True) if key.any()}


def photo_key(folder, name):
    """What identifies an image, uint8 (16,): its name, its size and when it was last written."""
    status = os.stat(folder / name)
    text = os.fsencode(name) + f"\0{status.st_size}\0{status.st_mtime_ns}".encode()
    return np.frombuffer(hashlib.sha256(text).digest()[:KEY_BYTES], np.uint8)


class Known:
    """Features by the keys of their images: those of a file of features, and those in a file of records next to it,
    which grows while features are computed, so that little is lost by an interruption.

    A record is the key and the features, float16 (F,); the facts are in a JSON file next to it.
    """

    def __init__(self, path, facts, stored, width):
        self._path = path.with_name(f".{path.name}.partial")
        self._facts, self._width = facts, width
        self._record = np.dtype([("key", np.uint8, KEY_BYTES), ("features", np.float16, (width,))])
        self._found = by_keys(stored)
        self._keep(self._records())

    def _keep(self, records):
        self._found |= {record["key"].tobytes(): record["features"] for record in records}

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

    def compute(self, keys, rows, paths, encoder):
        """Compute the features of the images `rows` that are not known yet. Raises UserError."""
        missing = [row for row in rows if keys[row].tobytes() not in self._found]
        if not missing:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        check_space(self._path.parent, 2 * len(keys) * self._record.itemsize)
        write_json(self._path.with_suffix(".json"), self._facts)
        done = 0
        with naming(self._path), open(self._path, "ab") as file:
            for block in encoder.photo_features([paths[row] for row in missing], "computing features"):
                records = np.zeros(len(block), self._record)
                records["key"] = keys[missing[done:done + len(block)]]
                records["features"] = block
                file.write(records.tobytes())
                self._keep(records)
                done += len(block)

    def rows(self, keys):
        """The features of images by their keys, (N, F); NaN where a key is 0."""
        features = np.full((len(keys), self._width), np.nan, np.float16)
        for row, key in enumerate(keys):
            if key.any():
                features[row] = self._found[key.tobytes()]
        return features

    def forget(self):
        """Delete the file of records."""
        for path in (self._path, self._path.with_suffix(".json")):
            path.unlink(missing_ok=True)


# ---------------------------------------------------------------- the file

def stored_features(path, facts, log):
    """`{name: (keys, uint8 (N, 16), features (N, F))}` of a file written here; nothing, and a line to `log`, if its
    facts differ."""
    if not path.is_file():
        return {}
    with reading(path) as file:
        found = dict(file.attrs)
        if found != facts:
            differing = next(name for name in facts if found.get(name) != facts[name])
            log(f"{path} was made with another {differing}: its features are computed anew.")
            return {}
        return {name: (file[f"{name}_keys"][()], file[name][()]) for name in NAMES.values() if name in file}


def write_features(path, stored, facts):
    """Replace a file of features. `stored`, `facts`: as above."""
    with naming(path), with_checksums(path.with_suffix(".json"), {}, path) as (temporary,), h5py.File(
            temporary, "w") as file:
        for name, (keys, features) in stored.items():
            file[name], file[f"{name}_keys"] = features, keys
        file.attrs.update(facts)


def read_features(path, split, image_list, width=None):
    """The features of a split from a file from elsewhere, float (N, F). Raises UserError.

    Args:
        image_list: the file that lists the split's N images.
        width (int): F as the last layer has it, or None for any.
    """
    name, count = NAMES[split], len(read_image_list(image_list))
    with reading(path) as file:
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
