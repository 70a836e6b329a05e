"""Arrays in files of any origin: `.npy` files, pickles of NumPy arrays, and weights in the release's format.

Pickles are read by plain_pickle.py, so nothing that such a file names is imported or called.
"""
import pickle
import tokenize
from pathlib import Path

import numpy as np

from storage import plain_pickle
from storage.files import with_checksums
from util import UserError, one_line

# entries of weights that are not layers
CODEBOOKS = "C"  # the codebooks, stacked, in every checkpoint
FIT = "fit"  # of fitted codebooks: S of the distances by which codes are found; the release's have none
NEIGHBOURS = "neighbours"  # what codes of fitted codebooks represent: anchors and β
SINGLE = (CODEBOOKS, FIT)  # entries that are one array


def write_weights(path, weights, record=None):
    """Replace `path` by `{layer: [kernel, bias], "C": codebooks}` in the release's `.npy` format.

    Its SHA-256 and `record` go into a JSON file next to it. The array is 0-d, of objects; its pickle is of protocol 4
    and names `numpy.core`, so that NumPy 1.19 reads it too.
    """
    path = Path(path)
    with with_checksums(path.with_suffix(".json"), record or {}, path) as (temporary,), open(temporary, "wb") as file:
        array = np.array(weights, dtype=object)
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        _ReleasePickler(file, protocol=4).dump(array)


class _ReleasePickler(pickle._Pickler):
    """Names NumPy's functions as NumPy 1 did, which pickle's Pickler in C cannot be made to do."""

    def save_global(self, obj, name=None):
        module = getattr(obj, "__module__", "")
        if not module.startswith("numpy._core."):
            return super().save_global(obj, name)
        self.save(module.replace("numpy._core.", "numpy.core.", 1))
        self.save(name or obj.__qualname__)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)


def read_pickle(path):
    """The content of a pickle of NumPy arrays and plain containers. Raises UserError for anything else."""
    with _open(path) as file:
        return _unpickle(file, path)


def read_npy(path, mapped=False):
    """The array in an `.npy` file; for a 0-d object array, the object in it. Raises UserError.

    `mapped`: whether plain values stay on the disk and are read when they are used.
    """
    with _open(path) as file:
        shape, dtype = _read_npy_header(file, path)
        if not dtype.hasobject:
            if mapped and all(shape):
                return np.load(path, mmap_mode="r", allow_pickle=False)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
        array = _unpickle(file, path)
    if not (isinstance(array, np.ndarray) and array.shape == shape):
        raise UserError(f"{path}: expected an array of shape {one_line(shape)}, found a damaged file")
    return array.item() if shape == () else array


def _read_npy_header(file, path):
    """Shape and dtype in the header of an `.npy` file. Raises UserError if plain values after it do not fit them."""
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0,
                       (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read_header(file)
        if not (dtype.itemsize and all(0 <= length < 2**63 for length in shape)):
            raise ValueError("its header describes an impossible array")
    except (*plain_pickle.ERRORS, RecursionError, SyntaxError, tokenize.TokenError) as error:
        raise UserError(f"{path}: expected a NumPy .npy file, found something else ({one_line(error)})") from error
    size = plain_pickle.bytes_left(file)
    if dtype.kind != "O" and not plain_pickle.fits(shape, dtype, size):
        raise UserError(f"{path}: expected plain values of shape {one_line(shape)} and type {one_line(dtype)} as its "
                        f"header says, found {size} bytes that do not fit")
    return shape, dtype


def read_weights(path):
    """The `{layer: [kernel, bias], …}` of an `.npy` file in the release's format. Raises UserError.

    The optional entries `C` and `fit` are single float32 arrays; every layer is a list of two.
    """
    weights = read_npy(path)
    if not (isinstance(weights, dict) and all(isinstance(name, str) for name in weights)):
        raise UserError(f"{path}: expected a dict of layers, found {type(weights).__name__}")
    clean, floats = {}, {}  # floats: {id of an array: the array in float32}, because one array may have many names
    for name, value in weights.items():
        arrays = [value] if name in SINGLE else value
        if not (isinstance(arrays, list | tuple) and len(arrays) == (1 if name in SINGLE else 2)):
            raise UserError(f"{path}: expected [kernel, bias] under {name!r}, found {type(value).__name__}")
        for array in arrays:
            if id(array) not in floats:
                floats[id(array)] = _finite_floats(path, name, array)
        arrays = [floats[id(array)] for array in arrays]
        clean[name] = arrays[0] if name in SINGLE else arrays
    return clean


def _finite_floats(path, name, array):
    if not (isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)):
        raise UserError(f"{path}: expected an array of floats under {name!r}, found {type(array).__name__}")
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 are refused below
        array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{path}: {name!r} holds NaN or infinite values")
    return array


def _open(path):
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    return open(path, "rb")


def _unpickle(file, path):
    try:
        return plain_pickle.load(file)
    except plain_pickle.ERRORS as error:
        raise UserError(f"{path}: this pickle was not read: {one_line(error)}") from error
