"""Which photos of an index are new, changed or gone, told by what the index stores of each file: its fingerprint.

A fingerprint is int64 (7,): the file's size in bytes, the times in nanoseconds when its content and when anything of
it was last changed, and the SHA-256 of its content as four numbers. While size and times are the same, the file is not
read. Zeros stand for what is not known: of photos that encode.py encoded, and in an index from before there were
fingerprints.
"""
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from storage.files import fingerprint
from util import UserError, cores, note, progress

NUMBERS = 7  # of a fingerprint
STATUS = 3  # of them tell size and times


@dataclass(frozen=True)
class Changes:
    """What becomes of an index's photos. kept: its rows that stay as they are, int64; fingerprints: theirs, int64
    (kept, 7); to_encode: rows of the source, whose photos are new or changed, int64; gone: names of photos that are not
    there any more."""
    kept: np.ndarray
    fingerprints: np.ndarray
    to_encode: np.ndarray
    gone: list


def compare(source, before, out, prune):
    """The Changes from an index's content `before` to the photos of a Source.

    `prune`: photos that are gone are not kept. Raises UserError if there would be no photo left.
    """
    row_of = {name: row for row, name in enumerate(source.names)}
    rows = np.array([row_of.get(name, -1) for name in before.images], np.int64)  # the source's, −1: gone
    stored = before.fingerprints
    stored = np.zeros((len(rows), NUMBERS), np.int64) if stored is None else np.array(stored)
    if source.encoded:  # no photo is opened
        there, changed = rows >= 0, np.zeros(len(rows), bool)
    else:
        there, changed = _look_at([source.folder / name for name in before.images], rows >= 0, stored)
    kept = np.flatnonzero(there & ~changed if prune else ~changed)
    known = set(before.images)
    new = [row for row, name in enumerate(source.names) if name not in known]
    to_encode = np.sort(np.concatenate([np.array(new, np.int64), np.unique(rows[changed])]))
    if not len(kept) + len(to_encode):
        raise UserError(f"{source.folder}: none of the {len(rows):,} photos of {out} is there any more, so the index "
                        "stays as it is")
    return Changes(kept, stored[kept], to_encode, [before.images[row] for row in np.flatnonzero(~there)])


def tell_gone(changes, folder, out, prune):
    """Note the photos of an index that are gone."""
    if changes.gone:
        note(f"{len(changes.gone):,} photos of {out} are not in {folder} any more, such as {min(changes.gone)}; they "
             + ("leave the index" if prune else "stay in the index (--prune drops them)"))


def take_fingerprints(paths):
    """The fingerprints of N files, int64 (N, 7), of which each is read."""
    taken = np.zeros((len(paths), NUMBERS), np.int64)
    taken[:, :STATUS] = _statuses(paths)
    taken[:, STATUS:] = _digests(paths)
    return taken


# ---------------------------------------------------------------- looking at files

def _look_at(paths, listed, stored):
    """Whether each photo is there, and whether it is changed, bool (N,). Brings the sizes and times in `stored` up to
    date of those that are not changed."""
    statuses = np.zeros((len(paths), STATUS), np.int64)
    statuses[listed] = _statuses([path for path, here in zip(paths, listed, strict=True) if here])
    there = statuses.any(1)
    suspects = np.flatnonzero(there & stored.any(1) & (statuses != stored[:, :STATUS]).any(1))
    digests = _digests([paths[row] for row in suspects])
    changed = np.zeros(len(paths), bool)
    changed[suspects] = (digests != stored[suspects, STATUS:]).any(1)
    same = there & ~changed
    stored[same, :STATUS] = statuses[same]
    return there, changed


def _statuses(paths):
    """Size and times of files, int64 (N, 3), zeros of those that are not there or are no regular files."""
    def status(path):
        try:
            found = os.stat(path)
        except OSError:
            return 0, 0, 0
        return (found.st_size, found.st_mtime_ns, found.st_ctime_ns) if stat.S_ISREG(found.st_mode) else (0, 0, 0)
    return np.array([status(path) for path in paths], np.int64).reshape(-1, STATUS)


def _digests(paths):
    """SHA-256 of files, int64 (N, 4), that of no file for those that cannot be read."""
    def digest(path):
        try:
            return np.frombuffer(bytes.fromhex(fingerprint(path)), np.int64)
        except OSError:
            return np.full(NUMBERS - STATUS, -1)
    with ThreadPoolExecutor(cores()) as pool:
        found = progress(pool.map(digest, paths), total=len(paths), desc="reading photos", leave=False)
        return np.array(list(found), np.int64).reshape(-1, NUMBERS - STATUS)
