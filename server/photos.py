"""Photos that clients send, and small pictures of the index's photos for the page.

Decoding a photo costs what its pixels cost, however small its file is: a PNG of 389 KB may have 133 million.
"""
import hashlib
import os
import stat
import threading
from collections import OrderedDict

import cv2
import numpy as np

from storage.images import MOST_PIXELS, header_size, image_fault, shrink
from util import UserError

MOST_ORDINARY_PIXELS = 25_000_000  # of a photo that is decoded as it is, in a fraction of a second
SMALLER_SIDE = 2048  # pixels to which the longer side of a large photo is reduced; the network sees 256
JPEG_BYTES = b"\xff\xd8\xff"
REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))
THUMBNAIL_SIDE, LARGE_SIDE = 360, 1600  # pixels of the longer side of the pictures that the page shows
QUALITY = 82  # of these pictures as JPEGs
CACHE_BYTES = 64 * 2**20


# ---------------------------------------------------------------- photos that clients send

def is_ordinary(content):
    """Whether a file, bytes, is a JPEG or PNG with few enough pixels, by its header; any other may take seconds."""
    width, height = header_size(content) or (MOST_ORDINARY_PIXELS, 2)
    return width * height <= MOST_ORDINARY_PIXELS


def make_ordinary(path, name):
    """Replace the file of a photo that is not ordinary by a PNG; a large photo is reduced.

    Raises UserError for what cannot be decoded, and for a large photo that is not a JPEG, since only a JPEG can be
    decoded at a reduced size. `name`: what the client calls the photo.
    """
    if fault := image_fault(path):
        raise UserError(f"{name} {fault}")
    content = path.read_bytes()
    width, height = header_size(content) or (0, 0)
    if width * height > MOST_ORDINARY_PIXELS and content[:3] != JPEG_BYTES:
        raise UserError(f"{name} has {width:,}×{height:,} pixels, more than {MOST_ORDINARY_PIXELS:,}; a JPEG may have "
                        f"{MOST_PIXELS:,}")
    photo = decode_reduced(content, SMALLER_SIDE)
    if photo is None:  # only its structure is sound
        raise UserError(f"{name} is not an image that OpenCV reads")
    if photo.shape[0] * photo.shape[1] > MOST_ORDINARY_PIXELS:
        photo = shrink(photo, SMALLER_SIDE)
    path.write_bytes(cv2.imencode(".png", photo, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])


def decode_reduced(content, side):
    """The photo in a file, bytes: upright, BGR, uint8 (h, w, 3); None if it cannot be decoded.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its longer side keeps `side` pixels, which saves most of the
    time.
    """
    flag = cv2.IMREAD_COLOR
    if content[:3] == JPEG_BYTES:
        longest = max(header_size(content) or (0, 0))
        flag = next((reduced for part, reduced in REDUCED if longest >= part * side), flag)
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    except cv2.error:  # an empty file, or too many pixels
        return None


# ---------------------------------------------------------------- pictures for the page

class Thumbnails:
    """Makes small upright JPEGs of photos and keeps the most recently used ones. Threads may share it."""

    def __init__(self, most_bytes=CACHE_BYTES):
        self._most_bytes = most_bytes
        self._kept = OrderedDict()  # {tag: JPEG}, the most recently used at the end
        self._bytes = 0
        self._lock = threading.Lock()

    def tag(self, path, side):
        """A name, for an ETag, of the picture of a photo's file; it changes when the file does.

        Raises OSError if the file is missing or is not a regular file.
        """
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        known = f"{path}\n{side} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
        return hashlib.sha256(os.fsencode(known)).hexdigest()[:32]

    def picture(self, path, side):
        """The photo as a JPEG, bytes, whose longer side is at most `side` pixels; None if it is not an image.

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
