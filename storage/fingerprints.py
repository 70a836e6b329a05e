"""Whether files changed: size and times decide whether to look, the SHA-256 of the content decides.

A fingerprint is int64 (7,): the file's size in bytes, the times in nanoseconds of the last change of its content and of
anything about it, and the SHA-256 of its content as four numbers. While size and times are the same, the file is not
read. Zeros mean that nothing is known of a file; it then counts as unchanged.
"""
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from storage.files import fingerprint
from util import cores, progress

NUMBERS = 7  # of a fingerprint
STATUS = 3  # of these, size and times


def take_fingerprints(paths, known=None):
    """The fingerprints of N files, int64 (N, 7).

    A file is not read if its size and times are still those in `known`, earlier fingerprints, int64 (N, 7).
    """
    known = np.zeros((len(paths), NUMBERS), np.int64) if known is None else known
    taken, statuses = np.array(known), _statuses(paths)
    unread = np.flatnonzero(~known.any(1) | (known[:, :STATUS] != statuses).any(1))
    taken[unread, :STATUS] = statuses[unread]
    taken[unread, STATUS:] = _digests([paths[row] for row in unread])
    return taken


def content_digests(fingerprints):
    """The SHA-256 in each of N fingerprints, uint8 (N, 32); 0 where nothing is known of a file."""
    return np.ascontiguousarray(fingerprints[:, STATUS:]).view(np.uint8)


def compare_fingerprints(paths, stored):
    """Which of N files are there and which changed, bool (N,) each, and their fingerprints, int64 (N, 7).

    The new fingerprints have the present size and times of the files that are there and did not change. A file that
    cannot be read any more counts as changed.

    Args:
        paths: N paths; None for a file that is known to be gone.
        stored: their earlier fingerprints, int64 (N, 7).
    """
    listed = np.array([path is not None for path in paths], bool)
    statuses = np.zeros((len(paths), STATUS), np.int64)
    statuses[listed] = _statuses([path for path in paths if path is not None])
    there = statuses.any(1)
    suspects = np.flatnonzero(there & stored.any(1) & (statuses != stored[:, :STATUS]).any(1))
    changed = np.zeros(len(paths), bool)
    changed[suspects] = (_digests([paths[row] for row in suspects]) != stored[suspects, STATUS:]).any(1)
    same, current = there & ~changed, np.array(stored)
    current[same, :STATUS] = statuses[same]
    return there, changed, current


def _statuses(paths):
    """Size and times of files, int64 (N, 3); zeros for those that are missing or are no regular files."""
    def status(path):
        try:
            found = os.stat(path)
        except OSError:
            return 0, 0, 0
        return (found.st_size, found.st_mtime_ns, found.st_ctime_ns) if stat.S_ISREG(found.st_mode) else (0, 0, 0)
    return np.array([status(path) for path in paths], np.int64).reshape(-1, STATUS)


def _digests(paths):
    """SHA-256 of files, int64 (N, 4); of those that cannot be read, the digest of no file."""
    def digest(path):
        try:
            return np.frombuffer(bytes.fromhex(fingerprint(path)), np.int64)
        except OSError:
            return np.full(NUMBERS - STATUS, -1)
    with ThreadPoolExecutor(cores()) as pool:
        found = progress(pool.map(digest, paths), total=len(paths), desc="reading photos", leave=False)
        return np.array(list(found), np.int64).reshape(-1, NUMBERS - STATUS)
