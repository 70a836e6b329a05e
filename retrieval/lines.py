"""Text files whose lines are read one by one from the disk: the names of a billion images need not be in memory."""
import mmap
import os

import numpy as np

from storage.files import naming, replacing
from util import UserError

LETTERS_AT_ONCE = 2**24  # in which ends of lines are looked for


class Lines:
    """The lines of a text file as a sequence that lives on the disk: 8 bytes of memory a line."""

    def __init__(self, path):
        self._data, self._ends = b"", np.empty(0, np.int64)
        if not os.path.getsize(path):  # which cannot be mapped
            return
        with open(path, "rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        letters = np.frombuffer(self._data, np.uint8)
        self._ends = np.concatenate([start + np.flatnonzero(letters[start:start + LETTERS_AT_ONCE] == ord("\n"))
                                     for start in range(0, len(letters), LETTERS_AT_ONCE)])

    def __len__(self):
        return len(self._ends)

    def __getitem__(self, row):
        row = range(len(self))[row]
        start = self._ends[row - 1] + 1 if row else 0
        return os.fsdecode(self._data[start:self._ends[row]])

    def first_empty(self):
        """The first row whose line is empty, or None."""
        empty = np.flatnonzero(np.diff(self._ends, prepend=-1) == 1)
        return int(empty[0]) if len(empty) else None


def write_lines(path, lines):
    """Replace `path` by lines of text. Raises UserError for one that has a line break in it."""
    for line in lines:
        if "\n" in line:
            raise UserError(f"{line!r}: an index cannot hold a file name with a line break")
    with (replacing(path) as temporary, naming(path),
          open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file):
        file.writelines(f"{line}\n" for line in lines)
