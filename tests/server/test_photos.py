"""Photos that clients send, also large and broken ones, and pictures of the index's photos."""
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

pytest.importorskip("faiss")
pytest.importorskip("starlette")

from page_service import PHOTOS, photo_file
from retrieval import index
from server import photos
from util import stream


def huge_png(width=11_500, height=11_500):
    """A sound PNG of 132 megapixels in some 100 KB."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


# ---------------------------------------------------------------- photos that clients send

def test_a_photo_of_many_pixels_is_refused_at_once_and_none_waits_for_it(server, folder):
    png = huge_png()
    assert len(png) < 400_000
    started = time.monotonic()
    with ThreadPoolExecutor(5) as pool:
        large = [pool.submit(server.ask, "POST", "/photo", png) for _ in range(4)]
        assert server.ask("POST", "/photo", photo_file(folder))[0] == 200
        for answer in large:
            status, _, refusal = answer.result()
            assert status == 400
            assert "11,500×11,500 pixels, more than 25,000,000" in refusal["error"]
    assert time.monotonic() - started < 2


def test_a_large_jpeg_is_answered_as_its_smaller_self_is(server):
    small = cv2.GaussianBlur(stream(1, "large").integers(0, 256, (400, 600, 3), dtype=np.uint8), (0, 0), 30)
    small = cv2.normalize(small, None, 0, 255, cv2.NORM_MINMAX)
    large = cv2.imencode(".jpg", cv2.resize(small, (9000, 6000)))[1].tobytes()
    assert not photos.is_ordinary(large)
    found, expected = (server.ask("POST", "/photo?topk=3", photo)[2]["results"]
                       for photo in (large, cv2.imencode(".png", small)[1].tobytes()))
    assert [result["path"] for result in found] == [result["path"] for result in expected]
    np.testing.assert_allclose(*([result["score"] for result in results] for results in (found, expected)), rtol=0.02)


@pytest.mark.parametrize("suffix", [".webp", ".tiff", ".bmp"])
def test_other_kinds_of_photos_are_answered_alike(server, folder, suffix):
    photo = cv2.imdecode(np.frombuffer(photo_file(folder), np.uint8), cv2.IMREAD_COLOR)
    options = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []
    expected = server.ask("POST", "/photo", cv2.imencode(".png", photo)[1].tobytes())
    assert server.ask("POST", "/photo", cv2.imencode(suffix, photo, options)[1].tobytes())[2] == expected[2]


def hollow_jpeg():
    """A JPEG of 30 megapixels by its header, with nothing in it that could be decoded."""
    size = struct.pack(">HH", 5000, 6000)
    return (b"\xff\xd8\xff\xc0\0\x11\x08" + size + b"\3\1\x11\0\2\x11\0\3\x11\0"
            b"\xff\xda\0\x0c\3\1\0\2\0\3\0\0\x3f\0data\xff\xd9")


def test_a_sound_jpeg_that_cannot_be_decoded_is_reported_by_the_name_that_the_client_gave(server):
    status, _, answer = server.ask("POST", "/embedding?name=beach", hollow_jpeg())
    assert status == 400
    assert "beach is not an image that OpenCV reads" in answer["error"]


# ---------------------------------------------------------------- pictures for the page

def test_thumbnails_are_upright_small_and_known_by_their_etag(tmp_path):
    wide = np.zeros((1200, 2400, 3), np.uint8)
    wide[:, :1200] = 255
    photo = cv2.imencode(".jpg", wide)[1].tobytes()
    turned = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # a quarter to the right
    path = tmp_path / "turned.jpg"
    path.write_bytes(photo[:2] + b"\xff\xe1" + struct.pack(">H", len(turned) + 2) + turned + photo[2:])
    kept = photos.Thumbnails()
    small = cv2.imdecode(np.frombuffer(kept.picture(path, 300), np.uint8), cv2.IMREAD_COLOR)
    assert small.shape == (300, 150, 3)
    assert small[:140].mean() > 250
    assert small[160:].mean() < 5
    before = kept.tag(path, 300)
    assert kept.picture(path, 300) is kept.picture(path, 300)
    path.write_bytes(photo)
    assert kept.tag(path, 300) != before
    assert cv2.imdecode(np.frombuffer(kept.picture(path, 300), np.uint8), cv2.IMREAD_COLOR).shape == (150, 300, 3)


def test_thumbnails_are_kept_within_a_bound(folder):
    whole = index.load(folder)
    kept = photos.Thumbnails(most_bytes=40_000)
    made = [kept.picture(whole.image_path(row), 200) for row in range(PHOTOS)]
    assert sum(map(len, made)) > 40_000
    assert 0 < sum(map(len, kept._kept.values())) <= 40_000
