"""Pickles that no library would write: made by hand of instructions, or as Python 2 wrote them."""
import io
import pickle
import struct
from typing import ClassVar


def plain(value):
    """The instructions that make a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def named(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def group(*values):
    return pickle.MARK + b"".join(values) + pickle.TUPLE


def called(module, name, *arguments):
    return named(module, name) + group(*arguments) + pickle.REDUCE


class _Python2Pickler(pickle._Pickler):
    """Writes every text and every array's content as a string of bytes."""
    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        content = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def python2(content):
    """The pickle that Python 2 wrote of `content`, in protocol 2."""
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue()
