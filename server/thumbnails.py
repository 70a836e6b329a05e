"""Small pictures of an index's photos for the page: upright JPEGs, kept up to so many bytes."""
import hashlib
import os
import stat
import threading
from collections import OrderedDict

import cv2

from server.photos import decode_reduced, shrink

SIDES = {"thumbnail": 360, "large": 1600}  # pixels of the longer side
CACHE_BYTES = 64 * 2**20
QUALITY = 82  # of the JPEGs


class Thumbnails:
    """Makes pictures of photos; those that were asked for last are kept in memory. Threads may share it."""

    def __init__(self, most_bytes=CACHE_BYTES):
        self._most_bytes = most_bytes
        self._kept = OrderedDict()  # {tag: JPEG}, the one that was asked for last at the end
        self._bytes = 0
        self._lock = threading.Lock()

    def tag(self, path, side):
        """A name, for an ETag, of the picture of the photo as it is now; another one once the file has changed.

        Raises OSError for a file that is not there or no regular file.
        """
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("no regular file")
        known = f"{path}\n{side} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
        return hashlib.sha256(os.fsencode(known)).hexdigest()[:32]

    def picture(self, path, side):
        """The photo as a JPEG, bytes, whose longer side is at most `side` pixels; None if it is no image.

        Raises OSError for a file that cannot be read.
        """
        tag = self.tag(path, side)
        with self._lock:
            if tag in self._kept:
                self._kept.move_to_end(tag)
                return self._kept[tag]
        photo = decode_reduced(path.read_bytes(), side)
        if photo is None:
            return None
        made = cv2.imencode(".jpg", shrink(photo, side), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
        self._keep(tag, made)
        return made

    def _keep(self, tag, picture):
        with self._lock:
            self._bytes += len(picture) - len(self._kept.pop(tag, b""))
            self._kept[tag] = picture
            while self._bytes > self._most_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= len(oldest)
