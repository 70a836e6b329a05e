"""Photos that clients send: which are decoded at once, which are made smaller first, which are refused.

A photo costs what its pixels cost, whatever its file weighs: 133 million fit into a PNG of 389 KB.
"""
import cv2
import numpy as np

from storage.images import MOST_PIXELS, header_size, image_fault
from util import UserError

MOST_ORDINARY_PIXELS = 25_000_000  # of a photo that is decoded as it is, in a fraction of a second
SMALLER_SIDE = 2048  # pixels of the longer side that a large photo still has at least; the network sees 256
JPEG_BYTES = b"\xff\xd8\xff"
REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))


def is_ordinary(content):
    """Whether a file, bytes, is by its header a JPEG or PNG of few enough pixels; any other may take seconds."""
    width, height = header_size(content) or (MOST_ORDINARY_PIXELS, 2)
    return width * height <= MOST_ORDINARY_PIXELS


def make_ordinary(path, name):
    """Replace a photo's file that is not ordinary by a PNG, in which a large photo is smaller.

    Raises UserError for what cannot be decoded, and for a large photo that is no JPEG: only a JPEG can be decoded at a
    reduced size. `name`: what the client calls the photo.
    """
    if fault := image_fault(path):
        raise UserError(f"{name} {fault}")
    content = path.read_bytes()
    width, height = header_size(content) or (0, 0)
    if width * height > MOST_ORDINARY_PIXELS and content[:3] != JPEG_BYTES:
        raise UserError(f"{name} has {width:,}×{height:,} pixels, more than {MOST_ORDINARY_PIXELS:,}; a JPEG may have "
                        f"{MOST_PIXELS:,}")
    photo = decode_reduced(content, SMALLER_SIDE)
    if photo.shape[0] * photo.shape[1] > MOST_ORDINARY_PIXELS:
        photo = shrink(photo, SMALLER_SIDE)
    path.write_bytes(cv2.imencode(".png", photo, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])


def decode_reduced(content, side):
    """The photo in a file, bytes: upright, BGR, uint8 (h, w, 3); None for what cannot be decoded.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where its longer side keeps `side` pixels, which saves most of the
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


def shrink(photo, side):
    """A photo, uint8 (h, w, 3), whose longer side is at most `side` pixels."""
    scale = min(1, side / max(photo.shape[:2]))
    size = [max(1, round(length * scale)) for length in photo.shape[1::-1]]
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
