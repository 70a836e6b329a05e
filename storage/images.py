"""Image files: what is wrong with them, decoding, the store of a split's images, and crops of them.

Letters: N images, B images of a batch.
"""
import mmap
import os
import stat
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(2**27)  # MOST_PIXELS; OpenCV reads it only when it is loaded

import cv2
import numpy as np

from util import UserError, cores, first_few, prefetch, progress

IMAGE_SIDE = 256  # pixels of a stored image
THUMBNAIL_SIDE = 160  # pixels of a thumbnail's longer side
IMAGE_BYTES = IMAGE_SIDE * IMAGE_SIDE * 3
MOST_PIXELS = int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])  # of an image file; decoding takes 6 bytes a pixel
SURE_SIDE = 65500  # pixels: the longest side of a JPEG that OpenCV reads; it reads any PNG up to there

cv2.setNumThreads(1)  # since images are decoded in parallel, one thread each
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # faults are reported here, with the file's name


# ---------------------------------------------------------------- what is wrong

def image_faults(paths):
    """{row: what is wrong} of the files that are missing, empty, truncated or not images. Most are not decoded."""
    with ThreadPoolExecutor(cores()) as pool:
        found = progress(pool.map(image_fault, paths), total=len(paths), desc="checking images", leave=False)
        return {row: why for row, why in enumerate(found) if why}


def list_faults(faults, name):
    """The first of `{row: what is wrong}` as text, and how many more there are; `name` is a function of a row."""
    return first_few([f"{name(row)} {why}" for row, why in faults.items()])


def image_fault(path):
    """What is wrong with an image file, or None. Of common JPEG and PNG files only the structure is read."""
    fault, sure = _structural_fault(path)
    return fault if fault or sure else decode(path)[1]


def is_image(path):
    """Whether a file begins as an image that OpenCV reads, whatever its name. The rest may be damaged."""
    return os.path.isfile(path) and cv2.haveImageReader(os.fsencode(path))


def _structural_fault(path):
    """What its structure shows to be wrong with an image file, or None; and whether decoding it would find no more."""
    try:
        status = os.stat(path)  # follows links, and does not wait for a FIFO as open() would
        if not stat.S_ISREG(status.st_mode):
            return "cannot be read (it is no regular file)", True
        if not status.st_size:
            return "is empty", True
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            structure = _structure(data)
    except FileNotFoundError:
        return "is missing", True
    except OSError as error:
        return f"cannot be read ({error.strerror})", True
    if structure is None:
        return "is truncated", True
    width, height, common = structure
    if width * height > MOST_PIXELS:
        return f"has {width:,}×{height:,} pixels, more than {MOST_PIXELS:,}", True
    return None, common and 0 < width <= SURE_SIDE and 0 < height <= SURE_SIDE


def _structure(data):
    """Width, height, and whether the coding is a common one, of a JPEG or PNG; None if it is truncated.

    Any other file has (0, 0, False).
    """
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg_structure(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _png_structure(data)
    return 0, 0, False


def _jpeg_structure(data):
    """A JPEG is truncated if the start or the end of a scan is missing.

    In a scan FF D9 is always the end, never data; before the scan it may be a thumbnail's.
    """
    at, frame = 2, (0, 0, 0, 0, 0)
    while (at := data.find(b"\xff", at)) >= 0 and at + 10 <= len(data):
        kind = data[at + 1]
        if kind == 0xDA:  # start of scan
            marker, bits, height, width, channels = frame
            common = 0xC0 <= marker <= 0xC2 and bits == 8 and channels in (1, 3, 4)
            return (width, height, common) if data.rfind(b"\xff\xd9", at) >= 0 else None
        if kind == 0xFF:  # fill byte
            at += 1
        elif kind < 0xC0 or 0xD0 <= kind <= 0xD8:  # these have no length
            at += 2
        else:
            if kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
                frame = struct.unpack(">BxxBHHB", data[at + 1:at + 10])
            at += 2 + int.from_bytes(data[at + 2:at + 4], "big")
    return None


def _png_structure(data):
    """A PNG is truncated if the lengths of its chunks do not lead from one to the next up to the last.

    OpenCV allocates the length that a chunk gives, up to 4 GB, before it finds that the file is shorter.
    """
    at, kind = 8, b""
    while kind != b"IEND" and at + 12 <= len(data):
        kind = data[at + 4:at + 8]
        at += 12 + int.from_bytes(data[at:at + 4], "big")
    if data[12:16] != b"IHDR" or kind != b"IEND" or at > len(data):
        return None
    return *struct.unpack(">II", data[16:24]), True


def header_size(data):
    """Width and height from the header of a whole JPEG or PNG of a common kind, bytes; None for any other file."""
    structure = _structure(data)
    return structure[:2] if structure and structure[2] else None


# ---------------------------------------------------------------- decoding

def decode(photo):
    """A photo, a path or an image that is decoded already, upright, BGR, uint8 (h, w, 3), and None; or None and what is
    wrong."""
    if isinstance(photo, np.ndarray):
        return np.ascontiguousarray(photo), None
    fault, _ = _structural_fault(photo)
    if fault:
        return None, fault
    try:
        image = cv2.imread(os.fsencode(photo))  # as a str, a name that is not UTF-8 would crash it
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE_PIXELS" in str(error):
            return None, f"has more than {MOST_PIXELS:,} pixels"
        return None, f"cannot be decoded ({error.err})"
    return (image, None) if image is not None else (None, "is not an image that OpenCV reads")


def resize_bilinearly(image, side=IMAGE_SIDE):
    """A decoded image, resized as by the release: uint8 (h, w, 3) to uint8 (side, side, 3)."""
    return cv2.resize(image, (side, side))


def resize_evenly(image, side):
    """A decoded image, uint8 (h, w, 3) to uint8 (side, side, 3): by area where a side shrinks, bilinear where it grows.

    INTER_AREA would make blocks when it enlarges, and bilinear would skip pixels when it shrinks.
    """
    height, width = image.shape[:2]
    image = cv2.resize(image, (min(width, side), min(height, side)), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)


def central_square(image):
    """The middle of a decoded image, uint8 (h, w, 3) to uint8 (s, s, 3) with s the shorter side."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top:top + side, left:left + side]


def read_image(path):
    """An image, resized as by the release, BGR, uint8 (256, 256, 3). Raises UserError."""
    image, fault = try_image(path)
    if fault:
        raise UserError(f"{path} {fault}")
    return image


def try_image(photo, resize=resize_bilinearly):
    """A photo after `resize`, a function of a decoded image, BGR, uint8 (side, side, 3), and None; or None and what is
    wrong."""
    image, fault = decode(photo)
    return (None, fault) if fault else (resize(image), None)


def decodable_images(photos, resize):
    """The photos that can be decoded, uint8 (n, side, side, 3), and {row: what is wrong} of the others."""
    images, faults = zip(*(try_image(photo, resize) for photo in photos), strict=True)
    sound = [image for image in images if image is not None]
    return np.array(sound), {row: fault for row, fault in enumerate(faults) if fault}


def map_photos(function, photos, resize, at_once, runs, what=None, skip_bad=False):
    """Apply a function to resized photos, `at_once` a call, while the next ones are decoded.

    Args:
        function: of uint8 (B, side, side, 3); it returns floats (B, …).
        photos: N paths or decoded images, uint8 (h, w, 3).
        resize: function of a decoded image.
        runs (int): calls at the same time.
        what: what is done, for the progress bar, or None for no bar.
        skip_bad: whether photos that cannot be decoded are left out.
    Yields the rows of each call (a range), what the function returned for the sound ones, None if there is none, and
    {row: what is wrong} of the others. Raises UserError.
    """
    turn = threading.Semaphore(runs)

    def run(rows):
        images, faults = decodable_images(photos[rows.start:rows.stop], resize)
        if faults and not skip_bad:
            row, fault = next(iter(faults.items()))
            raise UserError(f"{photo_name(photos[rows[row]])} {fault}")
        with turn:
            outputs = function(images) if len(images) else None
        faults = {rows[place]: fault for place, fault in faults.items()}
        if outputs is not None:
            _check_finite(outputs, [photos[row] for row in rows if row not in faults])
        return rows, outputs, faults

    workers = max(runs, cores()) + 1
    blocks = (range(start, min(start + at_once, len(photos))) for start in range(0, len(photos), at_once))
    done = prefetch(run, blocks, ahead=2 * workers, workers=workers)
    with progress(total=len(photos), desc=what, unit="image", disable=None if what else True) as bar:
        for rows, outputs, faults in done:
            bar.update(len(rows))
            yield rows, outputs, faults


def photo_name(photo):
    """What a photo is called in messages: its path, or that it is an image."""
    return "an image" if isinstance(photo, np.ndarray) else str(photo)


def _check_finite(outputs, photos):
    """Raise UserError that names the photos whose outputs hold NaN or infinite numbers."""
    finite = np.isfinite(outputs).all(tuple(range(1, outputs.ndim)))
    if bad := [photo_name(photos[row]) for row in np.flatnonzero(~finite)]:
        raise UserError(f"the network gives NaN or infinite embeddings of {len(bad)} images: {first_few(bad)}")


def thumbnail(path):
    """An image file as uint8 RGB (h, w, 3) of at most 160 pixels, or None if it is missing or no sound image."""
    image, fault = decode(path)
    return None if fault else cv2.cvtColor(shrink(image, THUMBNAIL_SIDE), cv2.COLOR_BGR2RGB)


def shrink(image, side):
    """An image, uint8 (h, w, 3), whose longer side is reduced to at most `side` pixels."""
    scale = min(1, side / max(image.shape[:2]))
    size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


# ---------------------------------------------------------------- store and crops

class ImageStore:
    """The N images of a split, decoded on demand in threads and kept up to a budget, each at most once.

    Args:
        paths: N image files.
        cache_bytes (int): memory for decoded images of 192 KiB each; the first ones that fit are kept.
    """

    def __init__(self, paths, cache_bytes=0):
        self.paths = paths
        room = min(len(paths), int(cache_bytes) // IMAGE_BYTES)
        self._cache = np.empty((room, IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
        self._cached = np.zeros(room, bool)
        self._pool = ThreadPoolExecutor(cores())

    def __len__(self):
        return len(self.paths)

    def image(self, row):
        """Image `row`, uint8 (256, 256, 3), which must not be written to."""
        if row >= len(self._cache):
            return read_image(self.paths[row])
        if not self._cached[row]:
            self._cache[row] = read_image(self.paths[row])
            self._cached[row] = True
        return self._cache[row]

    def crops(self, rows, side, offsets, flips):
        """A square crop of each image of `rows`, uint8 (B, side, side, 3).

        Args:
            offsets: int (B, 2), top and left of the crop, counted after the flip.
            flips: bool (B,), whether left and right are exchanged first.
        """
        batch = np.empty((len(rows), side, side, 3), np.uint8)

        def fill(i):
            image = self.image(rows[i])
            if flips[i]:
                image = image[:, ::-1]
            top, left = offsets[i]
            batch[i] = image[top:top + side, left:left + side]

        list(self._pool.map(fill, range(len(rows))))
        return batch


def random_crops(store, rows, side, rng):
    """A training batch: each image flipped with probability ½, then cropped at random, uint8 (B, side, side, 3)."""
    flips = rng.random(len(rows)) < 0.5
    offsets = rng.integers(0, IMAGE_SIDE - side + 1, (len(rows), 2))
    return store.crops(rows, side, offsets, flips)
