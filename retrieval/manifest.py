"""The manifest of an index: its keys, the names of its files, and how the files fit together. All is checked here.

The manifest holds a checksum of itself and of each file. These tell damage, but have no key: anyone can write a
manifest whose checksums agree. So nothing in it is trusted before it is checked.
"""
import contextlib
import hashlib
import json
import re
from pathlib import Path

import numpy as np

from quantization import quantizer
from retrieval.photo_files import NUMBERS
from storage.files import fingerprint, private_copy, write_json
from util import CROPS, PRECISIONS, UserError, one_line

FORMAT = 1
MANIFEST = "manifest.json"
SUFFIXES = {"codes": "npy", "codebooks": "npy", "tag_embeddings": "npy", "images": "txt", "labels": "npy",
            "fingerprints": "npy", "embeddings": "npy", "vocabulary": "npy",
            "engine": "faiss"}  # of the files, by their roles
OPTIONAL = {"labels", "fingerprints", "embeddings", "vocabulary", "engine"}
BLOCK = 2**14  # embeddings that are checked at once


# ---------------------------------------------------------------- keys

def _is_whole(low, high=2**63 - 1):
    return lambda value: type(value) is int and low <= value <= high


def _is_text(value):
    return isinstance(value, str) and value != "" and "\0" not in value


def _is_texts(value):
    return isinstance(value, list) and all(map(_is_text, value))


def _is_path(value):
    return _is_text(value) and ".." not in Path(value).parts


KEYS = {  # of every index: {key: (whether a value is right, what is expected)}
    "format": (lambda value: type(value) is int and value == FORMAT, f"format {FORMAT}"),
    "generation": (_is_whole(1), "a whole number of at least 1"),
    "count": (_is_whole(1), "how many images there are, at least 1"),
    "codebooks": (_is_whole(1), "how many codebooks there are, at least 1"),
    "lists": (_is_whole(0), "how many inverted lists there are, or 0"),
    "seed": (_is_whole(0, 2**31 - 1), f"a whole number from 0 to {2**31 - 1}"),
    "images": (_is_path, "the folder of the images, without '..'"),
    "tag_names": (lambda value: isinstance(value, list) and all(names and _is_texts(names) for names in value),
                  "a list with one or more words for each tag"),
    "label_names": (_is_texts, "a list of names"),
}
PHOTO_KEYS = {  # of an index that `search.py build` writes; it has a key "crops", which those of other programs lack
    "crops": (lambda value: type(value) is int and value in CROPS, "1, 2, 5 or 10"),
    "checkpoint": (_is_text, "the path of a checkpoint"),
    "checkpoint_sha256": (_is_text, "the SHA-256 of a checkpoint"),
    "experiment": (_is_text, "the name of an experiment"),
    "root": (_is_text, "a folder"),
    "dataset": (lambda value: value is None or _is_text(value), "the name of a data set, or null"),
}


def _is_file_of_vectors(value):
    return (isinstance(value, dict) and value.keys() == {"path", "bytes"} and _is_text(value["path"])
            and _is_whole(1)(value["bytes"]))


def check_keys(path, manifest):
    """Raise UserError unless each key of a manifest is there and as it should be. path: what the sentence names."""
    keys = KEYS | (PHOTO_KEYS if "crops" in manifest else {})
    for key, (is_right, expected) in keys.items():
        if key not in manifest:
            raise UserError(f"{path}: {key}: expected {expected}, found no such key")
        if not is_right(manifest[key]):
            raise UserError(f"{path}: {key}: expected {expected}, found {one_line(repr(manifest[key]))}")
    if "vectors" in manifest and not _is_file_of_vectors(manifest["vectors"]):
        raise UserError(f"{path}: vectors: expected the path of a file and its bytes, found "
                        f"{one_line(repr(manifest['vectors']))}")
    if manifest.get("precision", PRECISIONS[0]) not in PRECISIONS:
        raise UserError(f"{path}: precision: expected {' or '.join(PRECISIONS)}, found "
                        f"{one_line(repr(manifest['precision']))}")


# ---------------------------------------------------------------- files

def file_name(role, generation):
    """The name of a file of an index. Each writing has a number of its own, its generation."""
    return f"{role}-{generation}.{SUFFIXES[role]}"


def is_own_name(name):
    """Whether an index, or a writing of one that was cut off, can have left a file or folder of this name."""
    file = "|".join(rf"{role}-\d+\.{suffix}" for role, suffix in SUFFIXES.items())
    return re.fullmatch(rf"{file}|\.(?:{file}|{re.escape(MANIFEST)})\.\d+\.tmp", name) is not None


def _check_files(path, manifest):
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise UserError(f"{path}: files: expected a name and a SHA-256 of each file, found {one_line(repr(files))}")
    if missing := SUFFIXES.keys() - OPTIONAL - files.keys():
        raise UserError(f"{path}: files: expected the files of an index, found none of {', '.join(sorted(missing))}")
    for role, file in files.items():
        if role not in SUFFIXES:
            raise UserError(f"{path}: files: expected {', '.join(SUFFIXES)}, found {one_line(repr(role))}")
        expected, found = file_name(role, manifest["generation"]), file.get("name") if isinstance(file, dict) else file
        if found != expected:
            raise UserError(f"{path}: files: {role}: expected the name {expected!r}, found {one_line(repr(found))}")
    if manifest["lists"] and "engine" not in files:
        raise UserError(f"{path}: lists: expected 0, as there is no engine file, found {manifest['lists']}")


# ---------------------------------------------------------------- read and write

def read(folder):
    """The manifest of the index in `folder`, checked, without its own checksum. Raises UserError."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: expected an index, found no {MANIFEST}; `python search.py build` makes one")
    try:
        manifest = json.loads(path.read_bytes())
        stored = manifest.pop("sha256")
        found = _digest(manifest)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: expected the manifest of an index, found something else ({one_line(error)})"
                        ) from error
    if stored != found:
        raise UserError(f"{path} was altered since it was written: its checksum differs")
    check_keys(path, manifest)
    _check_files(path, manifest)
    return manifest


@contextlib.contextmanager
def open_files(folder, manifest, private=False):
    """Give {role: path} of an index's files, each checked. Raises UserError for one that is missing or altered.

    `private`: of copies, as of `safe_files.private_copy`.
    """
    with contextlib.ExitStack() as stack:
        paths = {}
        for role, file in manifest["files"].items():
            path = Path(folder) / file["name"]
            if not path.is_file():
                raise UserError(f"{path}: no such file, but {MANIFEST} names it")
            paths[role] = stack.enter_context(private_copy(path)) if private else path
            if fingerprint(paths[role]) != file.get("sha256"):
                raise UserError(f"{path} was altered since it was written: its checksum differs")
        yield paths


def write(folder, manifest, roles):
    """Replace the manifest of the index in `folder`, whose files of these roles are written."""
    names = {role: file_name(role, manifest["generation"]) for role in roles}
    manifest = {**manifest, "files": {role: {"name": name, "sha256": fingerprint(folder / name)}
                                      for role, name in names.items()}}
    write_json(folder / MANIFEST, {**manifest, "sha256": _digest(manifest)})


def _digest(manifest):
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- how the files fit together

def check_content(content, names):
    """Raise UserError unless the parts of an `index.Content` are as it says and fit together.

    names: {role: what a sentence calls that part}.
    """
    if content.codebooks.dtype != np.float32:
        raise UserError(f"{names['codebooks']}: expected float32, found {content.codebooks.dtype}")
    check_codes(content.codes, content.codebooks, names["codes"], names["codebooks"])
    images, d = len(content.codes), content.codebooks.shape[2]
    if not images:
        raise UserError(f"{names['codes']}: expected at least one image, found none")
    if len(content.images) != images:
        raise UserError(f"{names['images']}: expected {images:,} names, one for each code, found "
                        f"{len(content.images):,}")
    embeddings, count, lengths = content.tag_embeddings, len(content.tag_names), (d, len(content.codebooks) * d)
    if embeddings.dtype != np.float32 or embeddings.shape not in {(count, length) for length in lengths}:
        raise UserError(f"{names['tag_embeddings']}: expected float32 of shape ({count}, {d}), or of GPQ ({count}, "
                        f"{lengths[1]}), found {embeddings.dtype} {embeddings.shape}")
    if not np.isfinite(embeddings).all():
        raise UserError(f"{names['tag_embeddings']}: expected finite numbers, found NaN or infinite ones")
    prints = content.fingerprints
    if prints is not None and (prints.dtype != np.int64 or prints.shape != (images, NUMBERS)):
        raise UserError(f"{names['fingerprints']}: expected int64 of shape ({images}, {NUMBERS}), found {prints.dtype} "
                        f"{prints.shape}")
    table = content.vocabulary
    if table is not None and (table.dtype != np.uint64 or table.ndim != 2 or len(table) != 2):
        raise UserError(f"{names['vocabulary']}: expected uint64 of shape (2, V), found {table.dtype} {table.shape}")
    if content.embeddings is not None:
        _check_kept_embeddings(content.embeddings, (images, d), names["embeddings"])
    _check_labels(content, names)


def check_loaded(content, path, names):
    """The same for content that was read, with what its manifest `path` says of it."""
    check_content(content, names)
    for key, part in (("count", content.codes), ("codebooks", content.codebooks)):
        if content.facts[key] != len(part):
            raise UserError(f"{path}: {key}: expected {len(part):,}, found {content.facts[key]:,}")
    if content.vocabulary is not None and "vectors" not in content.facts:
        raise UserError(f"{path}: vectors: expected the file of the vocabulary, found no such key")
    if (row := content.images.first_empty()) is not None:
        raise UserError(f"{names['images']}: line {row + 1}: expected the name of an image, found an empty line")


def _check_kept_embeddings(embeddings, shape, name):
    if embeddings.dtype != np.float16 or embeddings.shape != shape:
        raise UserError(f"{name}: expected float16 of shape {shape}, found {embeddings.dtype} {embeddings.shape}")
    for start in range(0, len(embeddings), BLOCK):  # since all together need not fit into memory
        if not np.isfinite(embeddings[start:start + BLOCK]).all():
            raise UserError(f"{name}: expected finite numbers, found NaN or infinite ones")


def _check_labels(content, names):
    labels = content.labels
    if labels is None:
        if content.label_names:
            raise UserError(f"{names['labels']}: expected labels, as there are {len(content.label_names)} names of "
                            "labels, found none")
        return
    expected = len(content.codes), len(content.label_names)
    if labels.dtype != np.uint8 or labels.shape != expected:
        raise UserError(f"{names['labels']}: expected uint8 of shape {expected}, found {labels.dtype} {labels.shape}")
    if labels.size and labels.max() > 1:
        raise UserError(f"{names['labels']}: expected 0 and 1, found {labels.max()}")


def check_codes(codes, codebooks, codes_name="the codes", codebooks_name="the codebooks"):
    """Raise UserError for what FAISS would take in silence: shapes that do not fit, NaN codewords."""
    codewords = codebooks.shape[1] if codebooks.ndim == 3 else 0
    if not 2 <= codewords <= quantizer.CODEWORDS or codewords & (codewords - 1) or not codebooks.size:
        raise UserError(f"{codebooks_name}: expected codebooks of shape (M, K, D), K a power of 2 up to "
                        f"{quantizer.CODEWORDS}, found {codebooks.shape}")
    if not np.isfinite(codebooks).all():
        raise UserError(f"{codebooks_name}: expected finite numbers, found NaN or infinite ones")
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != len(codebooks):
        raise UserError(f"{codes_name}: expected uint8 codes of shape (N, {len(codebooks)}), found {codes.dtype} "
                        f"{codes.shape}")
    if codes.size and codewords < 256 and codes.max() >= codewords:
        raise UserError(f"{codes_name}: expected codes below {codewords}, found {codes.max()}")
