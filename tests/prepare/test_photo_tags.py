"""The tags that photos carry, in files that exiftool wrote and in files that are damaged on purpose."""
import os
import shutil
import struct
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prepare import photo_tags
from tagged import TAGGED, XMP, subject
from tags.spelling import fold, tags_in


def read(photo, *descriptions):
    """The tags of a photo of which all can be read."""
    tags, faults = photo_tags.read_tags(photo, descriptions)
    assert not faults
    return tags


# ---------------------------------------------------------------- what exiftool wrote

EXIF_AND_XMP = {"Sunset", "Été", "beach day", "sea", "New York"}


@pytest.mark.parametrize(("name", "tags"), [
    ("iptc.jpg", {"Café", "New York"}),
    ("latin.jpg", {"Café"}),
    ("all.jpg", EXIF_AND_XMP | {"東京"}),
    ("all.tif", EXIF_AND_XMP | {"東京"}),
    ("all.webp", EXIF_AND_XMP),
    ("xmp.png", {"Sunset", "beach day"}),
    ("stem.jpg", set()),
])
def test_keywords_in_a_photo(name, tags):
    found = read(TAGGED / name)
    assert set(found) == tags
    assert len(found) == len(tags)


def test_keywords_in_files_next_to_a_photo():
    assert read(TAGGED / "beside.jpg", TAGGED / "beside.jpg.xmp") == ["sea", "beach day"]
    assert read(TAGGED / "stem.jpg", TAGGED / "stem.xmp") == ["Tom"]  # of Animals|Cats|Tom
    assert set(read(TAGGED / "iptc.jpg", TAGGED / "stem.xmp")) == {"Café", "New York", "Tom"}


def test_xmp_after_the_pixels_of_a_png(tmp_path):
    """Where exiftool of other versions puts it."""
    data = (TAGGED / "xmp.png").read_bytes()
    start = data.index(b"iTXt") - 4
    end = start + 12 + int.from_bytes(data[start:start + 4], "big")
    last = data.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(data[:start] + data[end:last] + data[start:end] + data[last:])
    assert set(read(tmp_path / "a.png")) == {"Sunset", "beach day"}


@pytest.mark.parametrize("text", [
    subject("sea", "", " "),
    XMP.format(attributes="", content="<dc:subject>sea</dc:subject>"),
    XMP.format(attributes='dc:subject="sea"', content=""),
    "\ufeff" + subject("sea") + "\0\0",
    '<?xml version="1.0" encoding="UTF-16"?>' + subject("sea"),
], ids=["bag", "plain", "attribute", "byte order mark", "UTF-16"])
def test_forms_of_xmp(tmp_path, text):
    (tmp_path / "a.xmp").write_bytes(text.encode("utf-16" if "UTF-16" in text else "utf-8"))
    assert read(TAGGED / "stem.jpg", tmp_path / "a.xmp") == ["sea"]


def test_the_tags_of_flickrs_export(tmp_path):
    export = tmp_path / "photo_51234567890.json"
    export.write_text('{"id": "51234567890", "name": "x", "tags": [{"tag": "New York", "user": "1@N00"}, '
                      '{"tag": "sea"}], "albums": []}', encoding="utf-8")
    assert read(TAGGED / "iptc.jpg", export) == ["Café", "New York", "sea"]


def test_which_files_describe_a_photo():
    names = ["a.jpg", "a.png", "b/a.jpg", "b/img_1_51234567890_o.jpg", "b/12.jpg", "b/other_12.png"]
    files = ["a.jpg.xmp", "a.xmp", "a.png.XMP", "b/a.xmp", "c.xmp", "json/photo_12.json", "photo_51234567890.json",
             "photo_1.json", "albums.json", "photo_x.json"]
    assert photo_tags.descriptions_of(names, files) == {
        "a.jpg": ["a.jpg.xmp", "a.xmp"], "a.png": ["a.xmp", "a.png.XMP"], "b/a.jpg": ["b/a.xmp"],
        "b/img_1_51234567890_o.jpg": ["photo_51234567890.json"], "b/12.jpg": ["json/photo_12.json"],
        "b/other_12.png": ["json/photo_12.json"]}


# ---------------------------------------------------------------- files that are damaged on purpose

BOMB = ('<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {letter} "{f"&{before};" * 10}">' for before, letter in zip("abcdefgh", "bcdefghi", strict=True))
    + "]>" + subject("&i;"))


@pytest.mark.parametrize("content", [
    BOMB, '<!DOCTYPE x SYSTEM "file:///etc/passwd">' + subject("sea"), "<a>", "no XML", "\0", "<a>" * 200_000,
    subject("x" * photo_tags.MOST_BYTES),
], ids=["entities", "external", "cut", "text", "NUL", "deep", "long"])
def test_xmp_that_is_not_read(tmp_path, content):
    path = tmp_path / "a.xmp"
    path.write_text(content, encoding="utf-8")
    tags, faults = photo_tags.read_tags(TAGGED / "latin.jpg", [path])
    assert tags == ["Café"]  # what can be read is
    assert len(faults) == (content != "\0")
    assert all(fault.startswith(f"{path} (") and len(fault) < 400 for fault in faults)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tags": 1}', '{"tags": ["sea"]}', '{"tags": [{}]}',
                                     "[" * 100_000, '{"tags": "' + "x" * photo_tags.MOST_BYTES + '"}'],
                         ids=["empty", "list", "none", "number", "text", "other", "deep", "long"])
def test_json_that_is_not_read(tmp_path, content):
    path = tmp_path / "photo_1.json"
    path.write_text(content, encoding="utf-8")
    tags, faults = photo_tags.read_tags(TAGGED / "latin.jpg", [path])
    assert tags == ["Café"]
    assert len(faults) == 1


def test_a_description_that_never_ends_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.xmp")
    assert len(photo_tags.read_tags(TAGGED / "latin.jpg", [tmp_path / "a.xmp"])[1]) == 1


@pytest.mark.filterwarnings("ignore")  # as photo_tags.py has it, but pytest makes its own filters
@pytest.mark.parametrize("name", ["all.jpg", "all.tif", "all.webp", "xmp.png", "iptc.jpg"])
def test_photos_that_are_cut_or_altered_end_no_program(tmp_path, name):
    data = (TAGGED / name).read_bytes()
    path = tmp_path / name

    change = st.tuples(st.integers(0, len(data) - 1), st.binary(min_size=1, max_size=8))

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.integers(0, len(data)), st.lists(change, max_size=4))
    def check(length, changes):
        damaged = bytearray(data)
        for at, new in changes:
            damaged[at:at + len(new)] = new
        path.write_bytes(damaged[:length if not changes else None])
        tags, faults = photo_tags.read_tags(path, [])
        assert all(isinstance(text, str) for text in tags + faults)

    check()


def png_with(kind, content):
    data = (TAGGED / "xmp.png").read_bytes()
    at = data.index(b"IDAT") - 4
    chunk = kind + content
    return data[:at] + struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at:]


def claims_a_gigabyte(name):
    """Photos whose tags say that they are 1 GB long, or are that once they are unpacked."""
    if name == "a.tif":  # XPKeywords of 2^30 bytes
        return struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, photo_tags.EXIF_KEYWORDS, 1, 2**30, 8, 0)
    if name == "a.jpg":  # a keyword of 2^30 bytes
        data = (TAGGED / "iptc.jpg").read_bytes()
        at = data.index(b"\x1c\x02\x19")
        return data[:at + 3] + b"\x84" + struct.pack(">I", 2**30) + data[at + 9:]
    packed = zlib.compress(bytes(2**27), 9)
    return png_with(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["a.tif", "a.jpg", "a.png"])
def test_tags_that_claim_a_gigabyte_take_no_room(tmp_path, name):
    (tmp_path / name).write_bytes(claims_a_gigabyte(name))
    tracemalloc.start()
    began = time.monotonic()
    photo_tags.read_tags(tmp_path / name, [])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
    assert time.monotonic() - began < 5


def test_a_photo_of_another_format_has_none(tmp_path):
    shutil.copy(TAGGED / "make.sh", tmp_path / "a.jpg")
    assert read(tmp_path / "a.jpg") == []


# ---------------------------------------------------------------- spelling

@pytest.mark.parametrize(("typed", "tag"), [
    ("Sea", "sea"), ("  New   York ", "new_york"), ("Café", "cafe"), ("Cafe\u0301", "cafe"), ("Straße", "strasse"),
    ("ＳＥＡ", "sea"), ("が", "が"), ("Київ", "київ"), ("Αθήνα", "αθήνα"), ("한국", "한국"), ("a\tb\u2028c", "a_b_c"),
    ("a\x00b", "ab"), ("\u200b", ""), ("", ""), ("\ud800", ""), ("sea_side", "sea_side"),
])
def test_one_spelling(typed, tag):
    assert fold(typed) == tag
    assert fold(tag) == tag


@given(st.text())
def test_a_spelling_is_one_word_of_a_tag_list(text):
    tag = fold(text)
    assert tag.split() == [tag] * bool(tag)
    tag.encode()


@pytest.mark.parametrize(("text", "tags"), [
    ("New York sea", ["new_york", "sea"]), ("new york city", ["new_york_city"]), ("york new", ["york", "new"]),
    ("Café", ["cafe"]), ("NASA", ["NASA"]), ("nasa", ["nasa"]), ("", []), ("Nowhere", ["nowhere"]),
    ("new_york", ["new_york"]),
])
def test_tags_in_a_text(text, tags):
    assert tags_in(text, {"new_york", "new_york_city", "sea", "cafe", "NASA", "york"}) == tags
