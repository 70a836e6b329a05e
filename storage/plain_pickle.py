"""Reads pickles of NumPy arrays and plain containers of any origin: nothing that they name is imported or called.

The standard library's unpickler in Python parses them, restricted to the instructions below. A name is read as a str,
and a pickle can call only the methods in `makers`. NumPy's `__setstate__` does not check its arguments, so these
methods do: an array gets exactly as many bytes as its shape and type take. Memory is bounded by the file's size.

pickle.Unpickler, in C, cannot be bounded this way, whatever its find_class admits. It allocates its memo up to the
index that an instruction gives (9 bytes take 2 GB), and it hashes any key of a dict: a tuple nested a million deep
crashes it, and 40 tuples that each hold the previous one twice keep it busy for hours.

Protocols 0 to 5, Python 2 and 3, NumPy 1 and 2. A `defaultdict` or `OrderedDict` becomes a dict, a `bytearray` bytes.
A format that holds several pickles, or admits other names, derives its own Unpickler, as prepare/torch_file.py does.
"""
import math
import os
import pickle
import re
import sys

import numpy as np

KINDS = "biufSUO"  # of dtypes: bool, integers, float, bytes, str, objects
DTYPE = re.compile(r"b1|[iu][1248]|f2|f4|f8|f16|O[48]?|[SU][0-9]{1,6}")
ARGUMENTS = {"numpy.ndarray", "builtins.dict", "builtins.list", "builtins.tuple"}  # may be named, but not called
INSTRUCTIONS = {getattr(pickle, name)[0] for name in (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP",
    "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE",
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND", "APPENDS",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD")}
INSTRUCTION_BYTES = 128  # of memory that an instruction is assumed to take in addition to the values in the file
SPARE_BYTES = 64 << 20  # of memory that any file may take: half a million instructions
LARGEST_EMPTY = 1 << 20  # bytes that an empty array may have if its axes of length 0 are counted as 1

# Whatever reading damaged or hostile bytes can raise.
ERRORS = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError,
          OverflowError)


def load(file):
    """The content of a pickle in an open binary file on the disk. Raises one of ERRORS."""
    source = Source(file)
    content = Unpickler(source).load()
    source.check_end()
    return content


def bytes_left(file):
    """How many bytes an open file has from here on."""
    return os.fstat(file.fileno()).st_size - file.tell()


def fits(shape, dtype, size):
    """Whether `size` bytes are the plain values of an array of this shape and dtype. Empty arrays of vast shapes do not
    fit."""
    return (dtype.kind in KINDS and type(shape) is tuple and len(shape) <= 32
            and all(type(length) is int and 0 <= length < 2**40 for length in shape)
            and math.prod(shape) * dtype.itemsize == size
            and math.prod(length or 1 for length in shape) * (dtype.itemsize or 1) <= max(size, LARGEST_EMPTY))


class Source:
    """The bytes of a file, and how much memory reading it may take: twice its size and SPARE_BYTES."""

    def __init__(self, file):
        self._file = file
        self.left = bytes_left(file)
        self._room = 2 * self.left + SPARE_BYTES

    def read(self, size):
        if size > self.left:
            raise pickle.UnpicklingError(f"it ends too early: expected {size} more bytes, found {self.left}")
        self.left -= size
        if size == 1:  # an instruction begins
            self.take(INSTRUCTION_BYTES)
        return self._file.read(size)

    def readline(self):
        line = self._file.readline()
        self.left -= len(line)
        return line

    def take(self, size):
        """Note that `size` bytes of memory are about to be used."""
        self._room -= size
        if self._room < 0:
            raise pickle.UnpicklingError("it takes far more memory than its size")

    def check_end(self):
        if self.left:
            raise pickle.UnpicklingError(f"expected its end, found {self.left} more bytes")


class Unpickler(pickle._Unpickler):
    """Reads one pickle from a Source.

    arguments: names that may be arguments, but are never called; makers: {name that may be called: method}; admitted:
    what these are, for error messages.
    """
    arguments = ARGUMENTS
    admitted = "NumPy arrays and plain containers"

    def __init__(self, source):
        self._source = source
        super().__init__(source, encoding="latin1")  # as NumPy needs it for Python 2's pickles

    # ---------------------------------------------------------------- instructions

    def find_class(self, module, name):
        known = f"{module}.{name}".replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if known not in self.arguments and known not in self.makers:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and only {self.admitted} are admitted")
        return known

    def load_frame(self):
        self.read(8)  # the length of the frame, which is only advice on how much to read at once

    load_bytearray8 = pickle._Unpickler.load_binbytes8

    def load_int(self):
        text = self.readline()[:-1].removesuffix(b"L")
        self.append(text == b"01" if text in (b"00", b"01") else int(text))  # at most 4,300 digits, Python's limit

    load_long = load_int

    def load_reduce(self):
        arguments, name = self.stack.pop(), self.stack.pop()
        if not (type(name) is str and name in self.makers and type(arguments) is tuple):
            raise pickle.UnpicklingError(f"it calls what does not make {self.admitted}")
        self.append(self.makers[name](self, *arguments))

    def load_build(self):
        state, made = self.stack.pop(), self.stack[-1]
        if type(made) is np.ndarray and made.dtype == np.int8 and not made.size:  # from make_empty
            _, shape, dtype, fortran, data = state
            self.fill(made, shape, dtype, fortran, data)
        elif isinstance(made, np.dtype) and len(state) == 8 and state[2] is state[3] is state[4] is None:
            made.__setstate__(made.newbyteorder(state[1]).__reduce__()[2])  # NumPy's own state, not the pickle's
        else:
            raise pickle.UnpicklingError(f"it changes a {type(made).__name__} in a way that is not admitted")

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self):
        self.set_items(self.pop_mark())

    def load_dict(self):
        items = self.pop_mark()
        self.append({})
        self.set_items(items)

    def set_items(self, items):
        content, keys, values = self.stack[-1], items[::2], items[1::2]
        if type(content) is not dict or not all(isinstance(key, str | bytes | int | float | np.generic)
                                                for key in keys):  # hashing a deep tuple overflows the C stack
            raise pickle.UnpicklingError("expected dicts with names or numbers for keys, found others")
        content.update(zip(keys, values, strict=True))

    # ---------------------------------------------------------------- what may be called

    def make_empty(self, kind, shape, code):
        if (kind, shape) != ("numpy.ndarray", (0,)) or code not in ("b", b"b"):
            raise pickle.UnpicklingError("it makes an array in another way than NumPy does")
        return np.empty(0, np.int8)

    def make_array(self, data, dtype, shape, order):
        if order not in ("C", "F"):
            raise pickle.UnpicklingError("it holds an array whose order is neither C nor Fortran")
        return self.fill(np.empty(0, np.int8), shape, dtype, order == "F", data)

    def make_scalar(self, dtype, data):
        return self.fill(np.empty(0, np.int8), (), dtype, False, data)[()]

    def make_dtype(self, name, align=False, copy=True):
        if not (type(name) is str and DTYPE.fullmatch(name)):
            raise pickle.UnpicklingError("it holds values other than bools, numbers, bytes, strings and objects")
        return np.dtype(name, copy=True)  # load_build may change it

    def make_bytes(self, text="", encoding="latin1"):
        if not (type(text) is str and encoding == "latin1"):
            raise pickle.UnpicklingError("it encodes a text in another way than as bytes")
        self._source.take(len(text))
        return text.encode("latin1")

    def make_dict(self, default=None):
        return {}

    def fill(self, array, shape, dtype, fortran, data):
        """Give the empty `array` this shape and data, in place; it shares the memory of `data` if that is large."""
        if not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError("it holds an array without a dtype")
        dtype = np.dtype(dtype.str)  # a copy that the pickle can no longer change
        if type(data) is str:  # from Python 2
            data = data.encode("latin1")
        size = len(data) * (dtype.itemsize if dtype.hasobject else 1)
        if type(data) is not (list if dtype.hasobject else bytes) or not fits(shape, dtype, size):
            raise pickle.UnpicklingError("it holds an array whose values do not fit its shape and dtype")
        if dtype.hasobject and any(isinstance(value, np.ndarray) for value in data):
            raise pickle.UnpicklingError("it holds an array of arrays")  # freeing a deep nest overflows the C stack
        if dtype.kind == "U" and np.frombuffer(data, f"{dtype.str[0]}u4").max(initial=0) > sys.maxunicode:
            raise pickle.UnpicklingError("it holds characters that do not exist")
        self._source.take(size)
        array.__setstate__((1, shape, dtype, bool(fortran), data))
        return array


Unpickler.makers = {
    "numpy.core.multiarray._reconstruct": Unpickler.make_empty,
    "numpy.core.multiarray.scalar": Unpickler.make_scalar,
    "numpy.core.numeric._frombuffer": Unpickler.make_array,
    "numpy.dtype": Unpickler.make_dtype,
    "_codecs.encode": Unpickler.make_bytes,
    "builtins.bytes": Unpickler.make_bytes,  # without arguments
    "collections.OrderedDict": Unpickler.make_dict,
    "collections.defaultdict": Unpickler.make_dict,
}
Unpickler.dispatch = {code: getattr(Unpickler, method.__name__)
                      for code, method in pickle._Unpickler.dispatch.items() if code in INSTRUCTIONS}
