"""Reads tensors in PyTorch's old file format, that of `torch.save` before version 1.6, without PyTorch.

Such a file is a sequence of pickles: a magic number, the format's version, the byte order of the machine that wrote it,
the tensors by name, and the keys of their storages. The storages follow in the order of the keys, each as its number of
values, an int64, and the values. A tensor is a view of a storage: the place of its first value, its shape, and the
strides, which are counted in values. Most kernels are stored transposed, so the strides matter.

Nothing that the file names is imported or called; storage/plain_pickle.py reads the pickles.
"""
import math
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage import plain_pickle
from util import UserError, one_line

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
VERSION = 1001
DTYPES = {"torch.FloatStorage": np.dtype("<f4"), "torch.LongStorage": np.dtype("<i8")}
MOST_AXES = 8


def read_tensors(path):
    """The `{name: array}` of a state dict. Raises UserError for anything else.

    Returns:
        read-only arrays of float32 or int64: views of the storages, often not contiguous.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    with open(path, "rb") as file:
        try:
            return _read_state_dict(plain_pickle.Source(file))
        except plain_pickle.ERRORS as error:
            raise UserError(f"{path}: expected tensors in PyTorch's old format (before 1.6), found something else: "
                            f"{one_line(error)}") from error


def _read_state_dict(source):
    if (number := _Unpickler(source).load()) != MAGIC_NUMBER:
        raise pickle.UnpicklingError(f"its magic number is {one_line(number)}")
    if (version := _Unpickler(source).load()) != VERSION:
        raise pickle.UnpicklingError(f"expected version {VERSION} of the format, found {one_line(version)}")
    machine = _Unpickler(source).load()
    if not (type(machine) is dict and machine.get("little_endian") is True):
        raise pickle.UnpicklingError("it was not written by a little-endian machine")
    unpickler = _Unpickler(source)
    tensors = unpickler.load()
    if not (type(tensors) is dict and all(type(name) is str and type(tensor) is _Tensor
                                          for name, tensor in tensors.items())):
        raise pickle.UnpicklingError("expected a dict of tensors by name")
    keys = _Unpickler(source).load()
    if not (type(keys) is list and all(type(key) is str for key in keys)
            and sorted(keys) == sorted(unpickler.storages)):
        raise pickle.UnpicklingError("the list of its storages does not fit its tensors")
    values = {key: _read_storage(source, unpickler.storages[key]) for key in keys}
    source.check_end()
    return {name: _view(values[tensor.key], tensor) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class _Storage:
    """The type of a storage's values, and their number."""
    dtype: np.dtype
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of the storage `key`: the place of its first value, and the length and stride of each axis."""
    key: str
    first: int
    shape: tuple
    strides: tuple


def _read_storage(source, storage):
    count = int.from_bytes(source.read(8), "little")
    if count != storage.count:
        raise pickle.UnpicklingError(f"expected a storage of {storage.count} values, found one of {count}")
    return np.frombuffer(source.read(count * storage.dtype.itemsize), storage.dtype)


def _view(values, tensor):
    """The tensor as a view of its storage, which must hold all of its values and at least as many values."""
    last = tensor.first + sum((length - 1) * stride
                              for length, stride in zip(tensor.shape, tensor.strides, strict=True))
    if not (last < len(values) and 0 < math.prod(tensor.shape) <= len(values)):
        raise pickle.UnpicklingError(f"a tensor of shape {tensor.shape} does not fit into its storage")
    strides = [stride * values.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(values[tensor.first:], tensor.shape, strides, writeable=False)


class _Unpickler(plain_pickle.Unpickler):
    """Also reads descriptions of tensors.

    storages: `{key: _Storage}` of all storages that the pickle has named.
    """
    arguments = frozenset(DTYPES)
    admitted = "tensors of float32 and int64"

    def __init__(self, source):
        super().__init__(source)
        self.storages = {}

    def persistent_load(self, description):
        """The key of a described storage."""
        kind, storage_type, key, _device, count, view = description
        if not (kind == "storage" and type(storage_type) is str and storage_type in DTYPES and type(key) is str
                and _are_counts((count,)) and view is None):
            raise pickle.UnpicklingError("it describes a storage in a way that is not admitted")
        storage = _Storage(DTYPES[storage_type], count)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError("it describes one storage in two ways")
        return key

    def make_tensor(self, key, first, shape, strides, _requires_gradient, _hooks):
        if not (type(key) is str and key in self.storages and _are_counts((first,)) and _are_counts(shape)
                and _are_counts(strides) and len(shape) == len(strides) <= MOST_AXES):
            raise pickle.UnpicklingError("it describes a tensor in a way that is not admitted")
        return _Tensor(key, first, shape, strides)

    def load_build(self):
        """Ignores the attribute with versions of the layers that PyTorch gives its dict of tensors."""
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise pickle.UnpicklingError(f"it changes a {type(self.stack[-1]).__name__}")


def _are_counts(numbers):
    """Whether this is a tuple of whole numbers of at least 0."""
    return type(numbers) is tuple and all(type(number) is int and 0 <= number < 2**40 for number in numbers)


_Unpickler.makers = {"collections.OrderedDict": _Unpickler.make_dict,
                     "torch._utils._rebuild_tensor_v2": _Unpickler.make_tensor}
_Unpickler.dispatch = {**plain_pickle.Unpickler.dispatch, pickle.BUILD[0]: _Unpickler.load_build,
                       pickle.BINPERSID[0]: _Unpickler.load_binpersid}
