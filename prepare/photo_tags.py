"""The tags that a photo carries, as people typed them.

They are keywords of IPTC, XMP and EXIF in its file, XMP in a file next to it, and the tags of Flickr's data export.
Pillow and defusedxml read the formats; both are optional, so import this module only where such tags are wanted.
"""
import contextlib
import json
import logging
import os
import re
import stat
import warnings
from codecs import BOM_UTF16_BE, BOM_UTF16_LE

from util import UserError, one_line

try:
    from defusedxml import ElementTree
    from PIL import Image, IptcImagePlugin, UnidentifiedImageError
except ImportError as error:
    raise UserError("reading the tags of photos needs Pillow and defusedxml: pip install -e '.[photos]'") from error

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")
MOST_BYTES = 2**22  # of XMP or JSON; as trees, they take up to 30 times as much memory
IPTC_KEYWORDS = (2, 25)
EXIF_KEYWORDS = 0x9C9E  # XPKeywords: UTF-16, separated by semicolons
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
XMP_KEYWORDS = ("{http://purl.org/dc/elements/1.1/}subject",
                "{http://ns.adobe.com/lightroom/1.0/}hierarchicalSubject")
EXPORT = re.compile(r"photo_(\d+)\.json")  # a photo's description in Flickr's export, by the photo's number

Image.init()  # loads all readers now rather than in several threads at once
Image.MAX_IMAGE_PIXELS = None  # storage/images.py limits the size of images
warnings.filterwarnings("ignore", module="PIL")  # this module reports faults, with the file's name
logging.getLogger("PIL").setLevel(logging.CRITICAL)


# ---------------------------------------------------------------- which files describe a photo

def descriptions_of(names, files):
    """{photo: the files that describe it}, for each of `names` that has any; all are paths in one folder.

    `photo.jpg.xmp` describes photo.jpg, `photo.xmp` every photo of that stem in its folder, and Flickr's
    `photo_123.json` the photo with 123 in its file name, in any folder.
    """
    known, stems = set(names), {}
    for name in names:
        stems.setdefault(os.path.splitext(name)[0], []).append(name)
    found, exports = {}, {}
    for file in files:
        stem, suffix = os.path.splitext(file)
        if suffix.lower() == ".xmp":
            for name in [stem] if stem in known else stems.get(stem, []):
                found.setdefault(name, []).append(file)
        elif export := EXPORT.fullmatch(os.path.basename(file)):
            exports[export[1]] = file
    for name in names if exports else ():
        numbers = re.findall(r"\d+", os.path.splitext(os.path.basename(name))[0])
        if number := next((number for number in reversed(numbers) if number in exports), None):
            found.setdefault(name, []).append(exports[number])
    return found


# ---------------------------------------------------------------- the tags

def read_tags(photo, descriptions):
    """The tags of a photo, each once, as people typed them; and what could not be read, in words.

    Of a hierarchical tag such as `Places|Italy|Rome` the last part counts.

    Args:
        photo: the path of its file.
        descriptions: the paths of the files that describe it.
    """
    tags, faults = [], []

    @contextlib.contextmanager
    def noting_faults(path):
        try:
            yield
        except Exception as error:  # damaged files make these libraries raise errors of any kind
            faults.append(f"{path} ({one_line(error)})")

    with noting_faults(photo), contextlib.suppress(UnidentifiedImageError), Image.open(photo, formats=FORMATS) as image:
        for read in (read_to_the_end, exif_keywords, iptc_keywords, xmp_in_image):
            with noting_faults(photo):
                tags += read(image)
    for path in descriptions:
        with noting_faults(path):
            tags += xmp_in_file(path) if str(path).lower().endswith(".xmp") else flickr_tags(path)
    last_parts = (tag.split("|")[-1].strip() for tag in tags)
    return list(dict.fromkeys(tag for tag in last_parts if tag)), faults


def read_to_the_end(image):
    """Read a PNG's pixels, because its keywords may come after them; `image.info` then holds them. No tags."""
    if image.format == "PNG" and "xmp" not in image.info:
        image.load()
    return []


def exif_keywords(image):
    keywords = image.getexif().get(EXIF_KEYWORDS) or b""
    return bytes(keywords).decode("utf-16-le", "replace").replace("\0", "").split(";")


def iptc_keywords(image):
    keywords = (IptcImagePlugin.getiptcinfo(image) or {}).get(IPTC_KEYWORDS) or []
    return [_decoded(keyword) for keyword in (keywords if isinstance(keywords, list) else [keywords]) if keyword]


def _decoded(keyword):
    """A text of IPTC: UTF-8, or else Latin-1, whatever its file declares."""
    try:
        return keyword.decode()
    except UnicodeDecodeError:
        return keyword.decode("latin-1")


def xmp_in_image(image):
    return xmp_keywords(image.info.get("xmp") or b"")


def xmp_in_file(path):
    return xmp_keywords(read_small(path))


def xmp_keywords(packet):
    """The keywords of an XMP packet, bytes. Raises errors of any kind, also for a DTD, which an entity bomb needs."""
    if len(packet) > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES:,} bytes of XMP, found {len(packet):,}")
    if not packet.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        packet = packet.rstrip(b"\0 ")
    if not packet:
        return []
    root = ElementTree.fromstring(packet, forbid_dtd=True)
    keywords = [description.get(name) for description in root.iter(f"{RDF}Description") for name in XMP_KEYWORDS]
    for name in XMP_KEYWORDS:
        for element in root.iter(name):
            keywords += [item.text for item in element.iter(f"{RDF}li")] or [element.text]
    return [keyword for keyword in keywords if keyword]


def flickr_tags(path):
    """The tags in a photo's JSON file of Flickr's data export: `{"tags": [{"tag": "beach"}, …]}`."""
    return [entry["tag"] for entry in json.loads(read_small(path))["tags"] if isinstance(entry["tag"], str)]


def read_small(path):
    """The bytes of a file. Raises ValueError if it has more than MOST_BYTES or is no regular file."""
    status = os.stat(path)  # before it is opened, because opening a FIFO would block
    if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
        raise ValueError(f"expected a regular file of at most {MOST_BYTES:,} bytes, found another")
    with open(path, "rb") as file:
        return file.read(MOST_BYTES)
