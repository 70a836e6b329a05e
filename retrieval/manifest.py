"""The manifest of an index: its keys, its files, and how the files fit together.

The manifest holds a checksum of itself and of each file. Checksums show damage, but anyone can write a manifest whose
checksums agree, so nothing in it is trusted before it is checked.
"""
import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from quantization import quantizer
from storage.files import as_record, fingerprint, private_copy, write_json
from storage.fingerprints import NUMBERS
from util import CROPS, UserError, leads_out, one_line

FORMAT = 1
MANIFEST = "manifest.json"
SUFFIXES = {"codes": "npy", "codebooks": "npy", "tag_embeddings": "npy", "images": "txt", "labels": "npy",
            "fingerprints": "npy", "embeddings": "npy", "vocabulary": "npy",
            "engine": "faiss"}  # of each file, by its role
OPTIONAL = {"labels", "fingerprints", "embeddings", "vocabulary", "engine"}
BLOCK = 2**14  # embeddings that are checked at once


# ---------------------------------------------------------------- keys

Text = Annotated[str, Meta(min_length=1, pattern=r"^[^\0]+$")]
Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class File(msgspec.Struct):
    """A file of an index."""
    name: str
    sha256: str


class VectorsFile(msgspec.Struct):
    """The file of word vectors that the vocabulary of an index points into."""
    path: Text
    bytes: Positive


class Manifest(msgspec.Struct):
    """What the manifest of every index holds; other keys are facts for people."""
    format: Literal[FORMAT]
    generation: Positive  # number of the writing, which is in the names of the files
    count: Positive  # images
    codebooks: Positive
    lists: Annotated[int, Meta(ge=0, le=2**63 - 1)]  # inverted lists; 0: none
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    images: Text  # the folder of the images
    tag_names: list[Annotated[list[Text], Meta(min_length=1)]]
    label_names: list[Text]
    files: dict[Literal[tuple(SUFFIXES)], File]
    vectors: VectorsFile | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self):
        if leads_out(self.images.lstrip("/")):
            raise ValueError(f"images: expected a folder without '..', found {one_line(repr(self.images))}")
        if missing := SUFFIXES.keys() - OPTIONAL - self.files.keys():
            raise ValueError(f"files: expected the files of an index, found no {', '.join(sorted(missing))}")
        for role, file in self.files.items():
            if file.name != (expected := file_name(role, self.generation)):
                raise ValueError(f"files: {role}: expected the name {expected!r}, found {one_line(repr(file.name))}")
        if self.lists and "engine" not in self.files:
            raise ValueError(f"lists: expected 0, as there is no engine file, found {self.lists}")
        if "vocabulary" in self.files and self.vectors is msgspec.UNSET:
            raise ValueError("vectors: expected the file of the vocabulary, found no such key")


class PhotoManifest(Manifest, kw_only=True):
    """The manifest of an index that `search.py build` writes; those of other programs have no key "crops"."""
    crops: Literal[CROPS]
    checkpoint: Text
    checkpoint_sha256: Text
    experiment: Text
    root: Text
    dataset: Text | None


def check(path, content):
    """Raise UserError unless `content`, a dict, is right for the manifest at `path`."""
    as_record(path, content, PhotoManifest if "crops" in content else Manifest)


# ---------------------------------------------------------------- files

def file_name(role, generation):
    """The name of a file of an index. Each writing has a number, its generation."""
    return f"{role}-{generation}.{SUFFIXES[role]}"


def is_own_name(name):
    """Whether an index, or an interrupted writing of one, can have left a file or folder of this name."""
    file = "|".join(rf"{role}-\d+\.{suffix}" for role, suffix in SUFFIXES.items())
    return re.fullmatch(rf"{file}|\.(?:{file}|{re.escape(MANIFEST)})\.\d+\.tmp", name) is not None


def read(folder):
    """The manifest of the index in `folder`, a dict, checked, without its own checksum. Raises UserError."""
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
    check(path, manifest)
    return manifest


@contextlib.contextmanager
def open_files(folder, manifest, private=False):
    """Give {role: path} of an index's files, each checked. Raises UserError for one that is missing or altered.

    `private`: the paths are those of copies, see `storage.files.private_copy`.
    """
    with contextlib.ExitStack() as stack:
        paths = {}
        for role, file in manifest["files"].items():
            path = Path(folder) / file["name"]
            if not path.is_file():
                raise UserError(f"{path}: no such file, but {MANIFEST} names it")
            paths[role] = stack.enter_context(private_copy(path)) if private else path
            if fingerprint(paths[role]) != file["sha256"]:
                raise UserError(f"{path} was altered since it was written: its checksum differs")
        yield paths


def check_facts(folder, facts, roles):
    """Raise UserError unless `facts`, with files of these roles, make a manifest of an index in `folder`."""
    files = {role: {"name": file_name(role, facts["generation"]), "sha256": ""} for role in roles}
    check(folder / MANIFEST, {**facts, "files": files})


def write(folder, facts, roles):
    """Replace the manifest of the index in `folder`, whose files of these roles are written."""
    names = {role: file_name(role, facts["generation"]) for role in roles}
    manifest = {**facts, "files": {role: {"name": name, "sha256": fingerprint(folder / name)}
                                   for role, name in names.items()}}
    write_json(folder / MANIFEST, {**manifest, "sha256": _digest(manifest)})


def _digest(manifest):
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- how the files fit together

def check_content(content, names):
    """Raise UserError unless the parts of an `index.Content` have the right shapes and values and fit together.

    names: {role: what a message calls that part}.
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
    _check_finite(embeddings, names["tag_embeddings"])
    if content.fingerprints is not None:
        _check_array(content.fingerprints, np.int64, (images, NUMBERS), names["fingerprints"])
    table = content.vocabulary
    if table is not None and (table.dtype != np.uint64 or table.ndim != 2 or len(table) != 2):
        raise UserError(f"{names['vocabulary']}: expected uint64 of shape (2, V), found {table.dtype} {table.shape}")
    if content.embeddings is not None:
        _check_array(content.embeddings, np.float16, (images, d), names["embeddings"])
        _check_finite(content.embeddings, names["embeddings"])
    _check_labels(content, names)


def check_loaded(content, path, names):
    """As `check_content`, for content that was read from files; the manifest `path` has to fit it too."""
    check_content(content, names)
    for key, part in (("count", content.codes), ("codebooks", content.codebooks)):
        if content.facts[key] != len(part):
            raise UserError(f"{path}: {key}: expected {len(part):,}, found {content.facts[key]:,}")
    if (row := content.images.first_empty()) is not None:
        raise UserError(f"{names['images']}: line {row + 1}: expected the name of an image, found an empty line")


def _check_array(array, dtype, shape, name):
    if array.dtype != dtype or array.shape != shape:
        raise UserError(f"{name}: expected {np.dtype(dtype)} of shape {shape}, found {array.dtype} {array.shape}")


def _check_finite(vectors, name):
    for start in range(0, len(vectors), BLOCK):  # all together need not fit into memory
        if not np.isfinite(vectors[start:start + BLOCK]).all():
            raise UserError(f"{name}: expected finite numbers, found NaN or infinite ones")


def _check_labels(content, names):
    labels = content.labels
    if labels is None:
        if content.label_names:
            raise UserError(f"{names['labels']}: expected labels, as there are {len(content.label_names)} names of "
                            "labels, found none")
        return
    _check_array(labels, np.uint8, (len(content.codes), len(content.label_names)), names["labels"])
    if labels.size and labels.max() > 1:
        raise UserError(f"{names['labels']}: expected 0 and 1, found {labels.max()}")


def check_codes(codes, codebooks, codes_name, codebooks_name):
    """Raise UserError for what FAISS would accept without an error: shapes that do not fit, codewords that are NaN."""
    codewords = codebooks.shape[1] if codebooks.ndim == 3 else 0
    if not 2 <= codewords <= quantizer.CODEWORDS or codewords & (codewords - 1) or not codebooks.size:
        raise UserError(f"{codebooks_name}: expected codebooks of shape (M, K, D), K a power of 2 up to "
                        f"{quantizer.CODEWORDS}, found {codebooks.shape}")
    _check_finite(codebooks, codebooks_name)
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != len(codebooks):
        raise UserError(f"{codes_name}: expected uint8 codes of shape (N, {len(codebooks)}), found {codes.dtype} "
                        f"{codes.shape}")
    if codes.size and codewords < 256 and codes.max() >= codewords:
        raise UserError(f"{codes_name}: expected codes below {codewords}, found {codes.max()}")
