"""Fixed features: what a network whose lower layers are not trained gives of each image, kept in an HDF5 file.

The file holds `train`, `database` and `query`, (N, V, F) or for one view (N, F), floats, rows as in the image lists.
Of photos it is made here, `features/<dataset>_<backbone>_<views>.h5` in float16, with a key of each image, so that only
new or changed photos are computed. Those of a model in ONNX are kept so too, by prepare/features.py. Files of features
from elsewhere have no keys.

Letters: N images, V views (crops) an image, F features, D = 300.
"""
import contextlib
import hashlib
import importlib.metadata
import os
from dataclasses import replace

import h5py
import numpy as np

from dataset import read_image_list
from models.backbones import LAST, name_of
from models.image_model import model_of_features
from models.tf_encoder import FeatureExtractor
from storage.files import check_checksums, check_space, exclusive_lock, naming, read_json, with_checksums, write_json
from util import DIMENSIONS, UserError

NAMES = {"train": "train", "database": "database", "test": "query"}  # split: its name in the file
KEY_BYTES = 16
EMBEDDED_AT_ONCE = 4096  # images


# ---------------------------------------------------------------- the last layer

def embed(features, last_layer, unit):
    """Embeddings r, the mean over the views, float32 (N, D).

    Args:
        features: floats (N, V, F).
        last_layer: [kernel (F, D), bias (D,)].
        unit: whether they are scaled to length 1.
    """
    kernel, bias = last_layer
    embeddings = np.empty((len(features), DIMENSIONS), np.float32)
    for start in range(0, len(features), EMBEDDED_AT_ONCE):
        part = features[start:start + EMBEDDED_AT_ONCE].astype(np.float32)
        embeddings[start:start + len(part)] = np.tanh(part @ kernel + bias).mean(1)
    return unit_length(embeddings) if unit else embeddings


def unit_length(vectors):
    """Vectors, float32 (N, D), scaled to length 1; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


# ---------------------------------------------------------------- features of photos

def photo_features(folder, split, rows, weights, backbone, views, device, precision, root, log):
    """Features of a split's images `rows`, float16 (n, V, F), computed as far as the file has not got them.

    Args:
        folder: dataset.Dataset.
        rows: int64 (n,) in the image list.
        weights: `{layer: [kernel, bias]}` of `backbone`.
        views (int): V, as of `encoder.crops_of`.
        device, precision: as of `encoder.Encoder`.
    """
    path, facts = file_of_photos(folder.name, weights, backbone, views, precision, root)
    return complete_features(path, facts, folder, split, rows, np.dtype((np.float16, (views, backbone.FEATURES))),
                             lambda: FeatureExtractor(weights, views, device, precision), log.info)


def complete_features(path, facts, folder, split, rows, kind, make_network, tell):
    """Features of a split's images `rows` as a file keeps them; those that it lacks are computed and kept.

    Args:
        facts: `{name: text or number}` of all that features depend on beside the image.
        folder, rows: as above.
        kind: the dtype and shape of an image's features, as one dtype.
        make_network: gives the encoder.PhotoNetwork that computes them.
        tell: function of a sentence.
    """
    names = read_image_list(folder.split_files(split)[0])
    keys = np.zeros((len(names), KEY_BYTES), np.uint8)  # of images that are left out, 0
    for row in rows:
        keys[row] = photo_key(folder.images, names[row])
    with exclusive_lock(path.with_name(f".{path.name}.lock"), f"{path}: another run computes these features"):
        stored = stored_features(path, facts, tell)
        there = stored.get(NAMES[split])
        if there is None or not np.array_equal(there[0], keys):
            paths = [folder.images / name for name in names]
            known = Known(path, facts, stored, kind)
            known.compute(keys, rows, paths, make_network)
            stored[NAMES[split]] = there = keys, known.rows(keys)
            write_features(path, stored, facts)
            known.forget()
        else:
            tell(f"features of the {split} images are those of {path}.")
    return there[1][rows]


def kept_features(name, weights, backbone, views, precision, root, tell):
    """The features that were computed of data set `name`: {bytes of `photo_key`: float16 (V, F)}. None where they are
    those of other weights; `tell(line)` hears of it."""
    return by_keys(stored_features(*file_of_photos(name, weights, backbone, views, precision, root), tell))


def kept_model_features(path, model, width):
    """The same of a model in ONNX, as prepare/features.py has kept them: float32 (1, F). None where the file is gone or
    holds those of another model. Raises UserError.

    Args:
        model: storage.image_model.ImageModel.
        width (int): F.
    """
    there = model_of_features(path)
    if there is None or replace(there, path=model.path) != model:
        return {}
    with reading(path) as file:
        stored = {name: (file[f"{name}_keys"][()], file[name][()]) for name in NAMES.values() if f"{name}_keys" in file}
    for name, (keys, features) in stored.items():
        if keys.shape != (len(keys), KEY_BYTES) or features.shape != (len(keys), width):
            raise UserError(f"{path}: expected {name} of shape {(len(keys), width)}, found {features.shape}")
    return by_keys({name: (keys, features[:, None]) for name, (keys, features) in stored.items()})


def by_keys(stored):
    """{bytes of `photo_key`: features} of `stored_features`."""
    return {key.tobytes(): row for keys, features in stored.values()
            for key, row in zip(keys, features, strict=True) if key.any()}


def file_of_photos(name, weights, backbone, views, precision, root):
    """The file of the features of data set `name`, and what it must have been made with."""
    return root / "features" / f"{name}_{name_of(backbone)}_{views}.h5", {
        "layers": layers_fingerprint(weights, backbone), "views": views, "precision": precision,
        **{package: importlib.metadata.version(package) for package in ("tensorflow", "opencv-python")}}


def layers_fingerprint(weights, backbone):
    """SHA-256 of all layers below the last, in hex."""
    digest = hashlib.sha256()
    for layer in backbone.LAYERS:
        if layer != LAST:
            for array in weights[layer]:
                digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def photo_key(folder, name):
    """What an image is known by, uint8 (16,): its name, its size and when it was written last."""
    status = os.stat(folder / name)
    text = os.fsencode(name) + f"\0{status.st_size}\0{status.st_mtime_ns}".encode()
    return np.frombuffer(hashlib.sha256(text).digest()[:KEY_BYTES], np.uint8)


class Known:
    """Features by the keys of their images: those of a file of features, and those in a file of records beside it,
    which grows while they are computed, so that little is lost by an interruption.

    A record is the key and the features; the facts are in a JSON file beside it. `kind`: as of `complete_features`.
    """

    def __init__(self, path, facts, stored, kind):
        self._path = path.with_name(f".{path.name}.partial")
        self._facts, self._kind = facts, kind
        self._record = np.dtype([("key", np.uint8, KEY_BYTES), ("features", kind)])
        self._found = by_keys(stored)
        for record in self._records():
            self._found[record["key"].tobytes()] = record["features"]

    def _records(self):
        """The whole records of an interrupted run with the same facts; what else the file holds goes."""
        facts = self._path.with_suffix(".json")
        if self._path.is_file() and facts.is_file() and read_json(facts) == self._facts:
            content = self._path.read_bytes()
            whole = len(content) // self._record.itemsize * self._record.itemsize
            os.truncate(self._path, whole)
            return np.frombuffer(content[:whole], self._record)
        self.forget()
        return ()

    def compute(self, keys, rows, paths, make_network):
        """Compute the features of the images `rows` that are not known yet. Raises UserError."""
        missing = [row for row in rows if keys[row].tobytes() not in self._found]
        if not missing:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        check_space(self._path.parent, 2 * len(keys) * self._record.itemsize)
        write_json(self._path.with_suffix(".json"), self._facts)
        done = 0
        with naming(self._path), open(self._path, "ab") as file:
            for block in make_network().blocks([paths[row] for row in missing], "computing features"):
                records = np.zeros(len(block), self._record)
                records["key"] = keys[missing[done:done + len(block)]]
                records["features"] = block
                file.write(records.tobytes())
                self._found |= {record["key"].tobytes(): record["features"] for record in records}
                done += len(block)

    def rows(self, keys):
        """The features of images by their keys, (N, …); NaN where a key is 0."""
        features = np.full((len(keys), *self._kind.shape), np.nan, self._kind.base)
        for row, key in enumerate(keys):
            if key.any():
                features[row] = self._found[key.tobytes()]
        return features

    def forget(self):
        """Delete the file of records."""
        for path in (self._path, self._path.with_suffix(".json")):
            path.unlink(missing_ok=True)


# ---------------------------------------------------------------- the file

def stored_features(path, facts, tell):
    """`{name: (keys, uint8 (N, 16), features (N, …))}` of a file made here; nothing if its facts differ, of which
    `tell(line)` hears."""
    if not path.is_file():
        return {}
    with reading(path) as file:
        found = dict(file.attrs)
        if found != facts:
            differing = next(name for name in facts if found.get(name) != facts[name])
            tell(f"{path} was made with other {differing}: its features are computed anew.")
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
    """The features of a split from any file of features, float (N, V, F). Raises UserError.

    Args:
        image_list: the file that lists the split's N images.
        width (int): F as the last layer has it, or None where any will do.
    """
    name, count = NAMES[split], len(read_image_list(image_list))
    with reading(path) as file:
        if not isinstance(file.get(name), h5py.Dataset):
            raise UserError(f"{path}: expected a dataset {name!r}, found {', '.join(file) or 'none'}")
        features = file[name]
        if features.dtype.kind != "f" or features.ndim not in (2, 3) or 0 in features.shape:
            raise UserError(f"{path}: expected {name} of floats, images × features or images × views × features, found "
                            f"{features.dtype} {features.shape}")
        if len(features) != count:
            raise UserError(f"{path}: expected as many rows of {name} as {image_list} has, {count:,}, found "
                            f"{len(features):,}")
        if width not in (None, features.shape[-1]):
            raise UserError(f"{path}: expected {width:,} features an image, as the last layer has, found "
                            f"{features.shape[-1]:,}")
        features = features[()]
    if bad := np.flatnonzero(~np.isfinite(features).reshape(count, -1).all(1)).tolist():
        raise UserError(f"{path}: row {bad[0] + 1} of {name} holds NaN or infinite numbers"
                        + (f", and so do {len(bad) - 1:,} others" if len(bad) > 1 else ""))
    return features if features.ndim == 3 else features[:, None]


@contextlib.contextmanager
def reading(path):
    """An HDF5 file of features, its checksum compared where there is one. Raises UserError if it cannot be read."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    check_checksums(path.with_suffix(".json"))
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: expected an HDF5 file, found one that cannot be read ({error})") from error
