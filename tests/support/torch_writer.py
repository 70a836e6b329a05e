"""Writes PyTorch's old file format by hand, so that no test needs PyTorch."""
import pickle
import struct

import numpy as np

from pickle_writer import called, group, named, plain

MAGIC_NUMBER, VERSION = 0x1950A86A20F9469CFC6C, 1001
MACHINE = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
STORAGES = {np.dtype(np.float32): "FloatStorage", np.dtype(np.int64): "LongStorage"}


def whole(content):
    """A pickle of protocol 2."""
    return pickle.PROTO + b"\x02" + content + pickle.STOP


def storage(key, count, kind="FloatStorage", view=None):
    """What describes a storage."""
    return group(plain("storage"), named("torch", kind), plain(key), plain("cpu"), plain(count),
                 plain(view)) + pickle.BINPERSID


def tensor(described, first, shape, strides):
    return called("torch._utils", "_rebuild_tensor_v2", described, plain(first), plain(shape), plain(strides),
                  pickle.NEWFALSE, called("collections", "OrderedDict"))


def dictionary(items):
    """An OrderedDict of `{name: instructions}` with the versions of layers that PyTorch adds."""
    content = b"".join(plain(name) + value for name, value in items.items())
    versions = called("collections", "OrderedDict") + pickle.MARK + plain("") + plain({"version": 1}) + pickle.SETITEMS
    return (called("collections", "OrderedDict") + pickle.MARK + content + pickle.SETITEMS
            + pickle.EMPTY_DICT + plain("_metadata") + versions + pickle.SETITEM + pickle.BUILD)


def file_of(tensors, keys, storages, magic=MAGIC_NUMBER, version=VERSION, machine=MACHINE):
    """A whole file: instructions that make the tensors, a list of keys, and the storages as (count, bytes)."""
    return b"".join([
        *(whole(plain(value)) for value in (magic, version, machine)), whole(tensors), whole(plain(keys)),
        *(struct.pack("<q", count) + values for count, values in storages)])


def state_dict(tensors):
    """A file of `{name: array}` of float32 and int64. An array without gaps keeps its strides."""
    items, storages = {}, []
    for number, (name, array) in enumerate(tensors.items()):
        described = storage(str(number), array.size, STORAGES[array.dtype])
        items[name] = tensor(described, 0, array.shape, tuple(stride // array.itemsize for stride in array.strides))
        storages.append((array.size, array.ravel("K").tobytes()))
    return file_of(dictionary(items), [str(number) for number in range(len(items))], storages)
