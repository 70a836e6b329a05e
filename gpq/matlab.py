"""Reads arrays of floats from MATLAB's `.mat` files (version 5 to 7). SciPy's reader crashes on some damaged ones."""
import math
import struct
import zlib

import numpy as np

MATRIX, COMPRESSED = 14, 15  # types of elements
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # of their values
CLASSES = {6: np.float64, 7: np.float32}  # of arrays; their values may be stored as whole numbers where they are such
COMPLEX = 0x800
HEADER, TAG = 128, 8  # bytes
MOST_OTHER_BYTES = 1 << 16  # of an element besides its values

# what damaged bytes can raise
ERRORS = (ValueError, KeyError, struct.error, zlib.error)


def read_arrays(data, sizes):
    """`{name: array}` of the real arrays of floats in `data`, the bytes of a file, that are named in `sizes`.

    sizes: `{name: numbers in it}`; no more is unpacked. Raises one of ERRORS.
    """
    order = {b"\0\1IM": "<", b"\1\0MI": ">"}.get(bytes(data[HEADER - 4:HEADER]))
    if order is None:
        raise ValueError("expected version 5 to 7 of MATLAB's format, found something else")
    most = 8 * max(sizes.values()) + MOST_OTHER_BYTES
    arrays, at = {}, HEADER
    while at < len(data):
        kind, content, at = _element(data, at, order)
        if kind == COMPRESSED:
            kind, content, _ = _element(zlib.decompressobj().decompress(content, most), 0, order)
        if kind == MATRIX:
            name, array = _matrix(content, order)
            if name in sizes and array is not None:
                arrays[name] = array
    return arrays


def _element(data, at, order):
    """Type and content of the element at a byte, and where the next one is."""
    kind, size = struct.unpack_from(f"{order}II", data, at)
    start = at + TAG
    if kind >> 16:  # type, size and content in eight bytes
        kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
    content = data[start:start + size]
    if len(content) != size or (start == at + 4 and size > 4):
        raise ValueError(f"expected {size} bytes, found {len(content)}")
    return kind, content, at + TAG if start == at + 4 else start + size + (-size % 8 if kind != COMPRESSED else 0)


def _matrix(content, order):
    """Name and array, or None in place of one that is not of real floats."""
    _, flags, at = _element(content, 0, order)
    flags, = struct.unpack_from(f"{order}I", flags)
    _, shape, at = _element(content, at, order)
    shape = np.frombuffer(shape, f"{order}i4").tolist()
    _, name, at = _element(content, at, order)
    name = bytes(name).decode("latin1")
    if flags & 0xFF not in CLASSES or flags & COMPLEX:
        return name, None
    kind, values, _ = _element(content, at, order)
    values = np.frombuffer(values, order + TYPES[kind])
    if min(shape, default=0) < 0 or len(shape) > 32 or math.prod(shape) != len(values):
        raise ValueError(f"expected {shape[:32]} numbers under {name[:80]!r}, found {len(values)}")
    return name, values.reshape(shape, order="F").astype(CLASSES[flags & 0xFF])
