"""Image files, the store and crops. Damaged or odd files are loaded as the release would, or refused by name."""
import base64
import os
import resource
import struct
import subprocess
import sys
import textwrap
import unicodedata
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from storage import images
from util import ROOT, UserError, stream

MEMORY = 2**31  # bytes of address space for whatever might balloon
NOT_AN_IMAGE = "is not an image that OpenCV reads"
FORMATS = (".jpg", ".png", ".bmp", ".webp", ".tif", ".gif", ".jp2", ".ppm")
# 8×8 pixels of C, M, Y, K = 10, 200, 30, 40 as Adobe's programs store them, inverted
CMYK = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwACAQEBAQECAQEBAgICAgIEAwICAgIFBAQDBAYFBgYGBQYGBgcJCAYHCQcGBggLCAkKCgoKCgYICwwLCgwJ"
    "CgoK/8AAFAgACAAIBEMRAE0RAFkRAEsRAP/EABQAAQAAAAAAAAAAAAAAAAAAAAn/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/9oADgRDAE0AWQBLAAA/"
    "AHUG2YQrj//Z")


def pixels(height=90, width=120, seed=0):
    """A soft picture, so that JPEG and WebP keep its look. uint8 (height, width, 3)."""
    coarse = stream(seed, "odd image").integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(suffix, image=None, *options):
    """The bytes of an image file."""
    done, content = cv2.imencode(suffix, pixels() if image is None else image, list(options))
    assert done
    return content.tobytes()


def chunk(kind, content):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def segment(kind, content):
    """A segment of a JPEG file, to be put after its first two bytes."""
    return bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content


def exif(orientation):
    """EXIF that holds only the orientation of the camera."""
    return b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HHI", orientation, 0, 0)


def blank_png(width, height):
    """A whole PNG of zeros, one bit a pixel: 20,000×20,000 of them take 50 KB."""
    rows = zlib.compressobj(9)
    body = b"".join(rows.compress(bytes(1 + -(-width // 8))) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def fault(tmp_path, content, name="x.jpg"):
    path = tmp_path / name
    path.write_bytes(content)
    return images.image_fault(path)


def alone(code, folder, timeout=60):
    """What `code` prints, run in a process of its own with little memory and time; nothing may come on stderr."""
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=folder, timeout=timeout,
                          capture_output=True, text=True, preexec_fn=limit, errors="surrogateescape",
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1",
                               "PYTHONIOENCODING": "utf-8:surrogateescape"})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def saved(path, side=300, seed=0, suffix=".jpg"):
    pixels = stream(seed, "image").integers(0, 256, (side, side + 20, 3), dtype=np.uint8)
    path = path.with_suffix(suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


# ---------------------------------------------------------------- the store, crops

def test_images_are_resized_to_256_and_decoded_no_more_than_once_while_there_is_room(tmp_path):
    paths = [saved(tmp_path / str(i), seed=i) for i in range(4)]
    store = images.ImageStore(paths, cache_bytes=2.5 * images.IMAGE_BYTES)
    first = [store.image(row).copy() for row in range(4)]
    assert {image.shape for image in first} == {(256, 256, 3)}
    np.testing.assert_array_equal(first[3], cv2.resize(cv2.imread(str(paths[3])), (256, 256)))
    for path in paths[:2]:
        path.unlink()
    np.testing.assert_array_equal([store.image(0), store.image(1)], first[:2])  # the two that fit
    paths[2].unlink()
    with pytest.raises(UserError, match=r"2\.jpg is missing"):
        store.image(2)


def test_crops_are_taken_after_the_flip(tmp_path):
    store = images.ImageStore([saved(tmp_path / str(i), seed=i) for i in range(2)], 10**9)
    batch = store.crops([1, 0], 227, np.array([[0, 29], [14, 14]]), np.array([True, False]))
    np.testing.assert_array_equal(batch[0], store.image(1)[:, ::-1][:227, 29:])
    np.testing.assert_array_equal(batch[1], store.image(0)[14:241, 14:241])


def test_random_crops_reach_all_offsets_and_flip_half_of_the_images():
    seen = {"offsets": [], "flips": []}

    class Recorder:
        def crops(self, rows, side, offsets, flips):
            seen["offsets"].append(offsets)
            seen["flips"].append(flips)

    for step in range(50):
        images.random_crops(Recorder(), np.arange(100), 227, stream(0, "crops", step))
    assert set(np.concatenate(seen["offsets"])[:, 0]) == set(np.concatenate(seen["offsets"])[:, 1]) == set(range(30))
    assert 0.45 < np.concatenate(seen["flips"]).mean() < 0.55


# ---------------------------------------------------------------- odd, and loaded as the release would

@pytest.mark.parametrize("suffix", FORMATS)
def test_an_image_is_what_opencv_s_default_gives_resized(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(encoded(suffix))
    assert images.image_fault(path) is None
    found = images.read_image(path)
    assert (found.shape, found.dtype) == ((256, 256, 3), np.uint8)
    np.testing.assert_array_equal(found, cv2.resize(cv2.imread(str(path)), (256, 256)))
    assert np.abs(found.astype(int) - cv2.resize(pixels(), (256, 256))).mean() < 12  # it is that picture


GREY = pixels()[:, :, 1]
WITH_ALPHA = np.dstack([pixels(), pixels(seed=1)[:, :, 0]])
ODD = {
    "grey.jpg": (encoded(".jpg", GREY), cv2.cvtColor(GREY, cv2.COLOR_GRAY2BGR)),
    "grey.png": (encoded(".png", GREY), cv2.cvtColor(GREY, cv2.COLOR_GRAY2BGR)),
    "16 bit.png": (encoded(".png", pixels().astype(np.uint16) * 256 + 255), pixels()),
    "16 bit grey.png": (encoded(".png", GREY.astype(np.uint16) * 256), cv2.cvtColor(GREY, cv2.COLOR_GRAY2BGR)),
    "alpha is dropped.png": (encoded(".png", WITH_ALPHA), pixels()),
    "alpha is dropped.webp": (encoded(".webp", WITH_ALPHA, cv2.IMWRITE_WEBP_QUALITY, 101), pixels()),
    "progressive.jpg": (encoded(".jpg", None, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), pixels()),
    "cmyk.jpg": (CMYK, np.full((8, 8, 3), (190, 48, 207), np.uint8)),
    "two photos, as MPO.jpg": (encoded(".jpg") + encoded(".jpg", pixels(seed=1)), pixels()),
    "one pixel.png": (encoded(".png", np.full((1, 1, 3), 77, np.uint8)), np.full((1, 1, 3), 77, np.uint8)),
    "one pixel.jpg": (encoded(".jpg", np.full((1, 1, 3), 77, np.uint8)), np.full((1, 1, 3), 77, np.uint8)),
    "one row.png": (encoded(".png", pixels(1, 70_000)), pixels(1, 70_000)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_images_become_bgr_of_8_bits(tmp_path, name):
    content, expected = ODD[name]
    assert fault(tmp_path, content, name) is None
    found = images.read_image(tmp_path / name)
    assert (found.shape, found.dtype) == ((256, 256, 3), np.uint8)
    assert np.abs(found.astype(int) - cv2.resize(expected, (256, 256))).mean() < 8


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_of_an_animation_the_first_frame_is_loaded(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    animation = cv2.Animation()
    animation.frames = [np.full((20, 30, 3), colour, np.uint8) for colour in ((0, 0, 255), (0, 255, 0), (255, 0, 0))]
    animation.durations = [100] * 3
    assert cv2.imwriteanimation(str(path), animation)
    assert images.image_fault(path) is None
    assert np.abs(images.read_image(path).astype(int) - (0, 0, 255)).max() < 8
    path.write_bytes(path.read_bytes()[:-20])
    assert images.image_fault(path) is not None


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize(("orientation", "upright"), [(1, lambda i: i), (3, lambda i: i[::-1, ::-1]),
                                                      (6, lambda i: np.rot90(i, -1)), (8, np.rot90)])
def test_photos_are_turned_as_the_camera_was_held(tmp_path, suffix, orientation, upright):
    content = encoded(suffix)
    if suffix == ".jpg":
        content = content[:2] + segment(0xE1, b"Exif\0\0" + exif(orientation)) + content[2:]
    else:
        content = content[:33] + chunk(b"eXIf", exif(orientation)) + content[33:]
    assert fault(tmp_path, content) is None
    expected = cv2.resize(np.ascontiguousarray(upright(pixels())), (256, 256))
    assert np.abs(images.read_image(tmp_path / "x.jpg").astype(int) - expected).mean() < 8


# ---------------------------------------------------------------- damaged

@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_no_truncated_image_of_any_format_is_taken_for_a_whole_one(tmp_path, suffix, share):
    content = encoded(suffix)
    found = fault(tmp_path, content[:int(share * len(content))], f"x{suffix}")
    assert found == ("is truncated" if suffix in (".jpg", ".png") else NOT_AN_IMAGE)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_photo_that_ends_between_its_progressive_scans_is_truncated(tmp_path, share):
    content = encoded(".jpg", None, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    scans = [at for at in range(len(content)) if content[at:at + 2] == b"\xff\xda"]
    assert len(scans) > 5
    assert fault(tmp_path, content[:scans[int(share * len(scans))]]) == "is truncated"


@pytest.mark.parametrize("thumbnail", [encoded(".jpg", pixels(12, 16)), encoded(".png", pixels(12, 16))])
def test_a_whole_thumbnail_does_not_make_a_truncated_photo_whole(tmp_path, thumbnail):
    for content, extra, at in ((encoded(".jpg"), segment(0xE1, thumbnail), 2),
                               (encoded(".png"), chunk(b"eXIf", thumbnail), 33)):
        assert fault(tmp_path, content[:at] + extra + content[at:]) is None
        assert fault(tmp_path, content[:at] + extra + content[at:-20]) == "is truncated"
        assert fault(tmp_path, content[:at] + extra) == "is truncated"


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_bytes_after_the_end_do_not_matter(tmp_path, suffix):
    assert fault(tmp_path, encoded(suffix) + bytes(3000) + b"IEND more") is None


def test_bytes_between_the_segments_of_a_photo_are_passed_over_as_opencv_does(tmp_path):
    content = encoded(".jpg")
    for filling in (b"\0\0\0", b"\xff\xff", b"\xff\x01"):
        assert fault(tmp_path, content[:20] + filling + content[20:]) is None
        found = images.read_image(tmp_path / "x.jpg")
        assert np.abs(found.astype(int) - cv2.resize(pixels(), (256, 256))).mean() < 8


def test_a_png_whose_end_is_named_elsewhere_is_truncated(tmp_path):
    content = encoded(".png")
    assert fault(tmp_path, content[:-12] + chunk(b"tEXt", b"k\0IEND")) == "is truncated"


def test_a_photo_with_a_hole_passes_and_is_loaded_with_the_damage(tmp_path, capfd):
    content = bytearray(encoded(".jpg", pixels(300, 400)))
    middle = len(content) // 2
    content[middle:middle + 100] = bytes(100)
    assert fault(tmp_path, bytes(content)) is None  # only decoding every photo would show it
    assert images.read_image(tmp_path / "x.jpg").shape == (256, 256, 3)


WRONG = {
    "text": (b"<html>not found</html>", NOT_AN_IMAGE),
    "zeros": (bytes(500), NOT_AN_IMAGE),
    "pdf": (b"%PDF-1.4\n%%EOF\n", NOT_AN_IMAGE),
    "nothing": (b"", "is empty"),
    "start of a JPEG": (b"\xff\xd8\xff", "is truncated"),
    "start of a PNG": (b"\x89PNG\r\n\x1a\n", "is truncated"),
    "JPEG without a picture": (b"\xff\xd8" + segment(0xE0, bytes(10)) + b"\xff\xd9", "is truncated"),
    "JPEG of 0 rows": (b"\xff\xd8" + segment(0xC0, b"\x08\0\0\0\x09\x01\x01\x11\0") + segment(0xDA, bytes(8))
                       + b"\xff\xd9", NOT_AN_IMAGE),
    "JPEG of 12 bits": (encoded(".jpg").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), NOT_AN_IMAGE),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_image_is_refused(tmp_path, case, capfd):
    content, expected = WRONG[case]
    assert fault(tmp_path, content) == expected
    with pytest.raises(UserError, match=rf"x\.jpg {expected}"):
        images.read_image(tmp_path / "x.jpg")
    assert images.thumbnail(tmp_path / "x.jpg") is None


def test_a_photo_that_only_decoding_finds_bad_is_named_when_it_is_read(tmp_path):
    content = encoded(".png")
    assert fault(tmp_path, content[:200] + bytes(40) + content[240:], "x.png") is None
    with pytest.raises(UserError, match=rf"x\.png {NOT_AN_IMAGE}"):
        images.read_image(tmp_path / "x.png")


def test_no_library_writes_a_word_about_faults(tmp_path):
    for suffix in FORMATS:
        (tmp_path / f"x{suffix}").write_bytes(encoded(suffix)[:200])
    printed = alone(f"""
        from storage import images
        print(len(images.image_faults([f"x{{s}}" for s in {FORMATS}])))
    """, tmp_path)
    assert printed == f"{len(FORMATS)}\n"


# ---------------------------------------------------------------- too large

def patched(suffix, *places):
    """The bytes of a small image whose header gives another size; places: (offset, bytes)."""
    content = bytearray(encoded(suffix))
    for at, number in places:
        content[at:at + len(number)] = number
    return bytes(content)


def large_jpeg():
    content = encoded(".jpg")
    return patched(".jpg", (content.index(b"\xff\xc0") + 5, struct.pack(">HH", 20_000, 20_000)))


def test_a_decompression_bomb_is_refused_from_its_header_and_never_decoded(tmp_path):
    (tmp_path / "bomb.png").write_bytes(blank_png(20_000, 20_000))
    (tmp_path / "bomb.jpg").write_bytes(large_jpeg())
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    printed = alone("""
        import resource
        import util
        from storage import images
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name in ("bomb.jpg", "bomb.png"):
            print(images.image_fault(name))
            print(images.thumbnail(name))
            try:
                images.read_image(name)
            except util.UserError as error:
                print(error)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    """, tmp_path)
    sentence = "has 20,000×20,000 pixels, more than 134,217,728"
    assert printed == "".join(f"{sentence}\nNone\nbomb.{kind} {sentence}\n" for kind in ("jpg", "png"))


def test_a_png_that_claims_a_chunk_of_4_gb_takes_no_memory_for_it(tmp_path):
    whole = encoded(".png", stream(0, "noise").integers(0, 256, (200, 200, 3), dtype=np.uint8))
    assert whole.count(b"IDAT") > 5
    for number, at in enumerate((whole.index(b"IDAT"), whole.rindex(b"IDAT"), whole.index(b"IEND"))):
        (tmp_path / f"{number}.png").write_bytes(whole[:at - 4] + b"\xf0\0\0\0" + whole[at:])
    printed = alone("""
        import resource
        from storage import images
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(3):
            print(images.image_fault(f"{number}.png"), images.decode(f"{number}.png")[1])
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    """, tmp_path)
    assert printed == "is truncated is truncated\n" * 3


def test_other_formats_are_refused_by_opencv_s_limit_before_they_are_decoded(tmp_path):
    size = struct.pack("<HH", 20_000, 20_000)
    for suffix, content in {
            ".bmp": patched(".bmp", (18, struct.pack("<II", 20_000, 20_000))), ".gif": patched(".gif", (6, size)),
            ".ppm": encoded(".ppm").replace(b"120 90", b"20000 20000", 1)}.items():
        (tmp_path / f"x{suffix}").write_bytes(content)
    printed = alone("""
        import resource
        from storage import images
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for suffix in (".bmp", ".gif", ".ppm"):
            print(images.image_fault(f"x{suffix}"), images.thumbnail(f"x{suffix}"))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    """, tmp_path)
    assert printed == 3 * "has more than 134,217,728 pixels None\n"


def test_an_image_just_within_the_limit_is_sound(tmp_path):
    assert fault(tmp_path, blank_png(16_384, 8_192)) is None  # 2²⁷ pixels
    assert "16,384×8,193" in fault(tmp_path, blank_png(16_384, 8_193))


# ---------------------------------------------------------------- no files, odd names

def test_nothing_that_is_no_regular_file_is_waited_for(tmp_path):
    printed = alone("""
        import os, socket
        from storage import images
        os.mkfifo("fifo.jpg")
        os.mkdir("folder.jpg")
        socket.socket(socket.AF_UNIX).bind("socket.jpg")
        os.symlink("fifo.jpg", "link.jpg")
        names = ["fifo.jpg", "folder.jpg", "socket.jpg", "link.jpg", "/dev/zero", "/dev/null"]
        print(images.image_faults(names) == dict.fromkeys(range(6), "cannot be read (it is no regular file)"))
        print([images.thumbnail(name) for name in names])
    """, tmp_path, timeout=20)
    assert printed == f"True\n{[None] * 6}\n"


def test_names_that_cannot_be_opened_are_faults(tmp_path):
    (tmp_path / "a.jpg").symlink_to("b.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "c.jpg").write_bytes(encoded(".jpg"))
    faults = images.image_faults([tmp_path / name for name in ("a.jpg", "gone.jpg", "x" * 300, "c.jpg/d.jpg",
                                                                "none.jpg")])
    assert faults == {0: "cannot be read (Too many levels of symbolic links)", 1: "is missing",
                      2: "cannot be read (File name too long)", 3: "cannot be read (Not a directory)",
                      4: "is missing"}


NAMES = ["café.jpg", unicodedata.normalize("NFD", "café.jpg"), "😀 %d {x}.jpg", "-rf.jpg", "a\tb'\"`$(c).jpg",
         os.fsdecode(b"caf\xe9.jpg"), os.fsdecode(b"\xff\xfe.png")]


def test_odd_names_are_read_as_given(tmp_path):
    """In a process of its own: of a name that is not UTF-8, OpenCV's imread crashes."""
    for i, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(encoded(Path(name).suffix, np.full((9, 9, 3), 20 * i, np.uint8)))
    printed = alone(f"""
        from storage import images
        names = {NAMES!r}
        print(images.image_faults(names), [int(images.read_image(name)[0, 0, 0]) for name in names],
              [int(images.thumbnail(name)[0, 0, 0]) for name in names])
    """, tmp_path)
    shades = [20 * i for i in range(len(NAMES))]
    assert printed == f"{{}} {shades} {shades}\n"


def test_faults_keep_their_rows_however_many_files_there_are(tmp_path):
    (tmp_path / "x.jpg").write_bytes(encoded(".jpg"))
    bad = [0, 63, 64, 200]
    paths = [tmp_path / ("none.jpg" if row in bad else "x.jpg") for row in range(201)]
    assert images.image_faults(paths) == dict.fromkeys(bad, "is missing")
    assert images.image_faults([]) == {}
