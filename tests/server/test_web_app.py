"""The server on Starlette and uvicorn, with real sockets: answers, who may ask, and what clients cannot do to it."""
import base64
import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

pytest.importorskip("faiss")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

import page_service
from retrieval import index
from server import photos, service, thumbnails
from tiny import PROJECT
from util import UserError, stream

PHOTOS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "index"
    page_service.make_index(folder, PHOTOS)
    return folder


class Server:
    """A server in a process of its own."""

    def __init__(self, process, port):
        self.process, self.port = process, port
        self.stopping = False  # whether it was sent SIGTERM; a second one would end it at once

    def ask(self, method, path, body=None, **headers):
        """Status, headers, and the JSON or bytes of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            if isinstance(body, dict):
                body, named = json.dumps(body).encode(), {"Content-Type": "application/json", **named}
            connection.request(method, path, body, named)
            return read(connection.getresponse())

    def send(self, data):
        """A connection on which `data` was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(data)
        return connection

    def answer_to(self, data):
        """The same, and what it answers."""
        with self.send(data) as connection:
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return read(answer)

    def memory(self):
        """The most bytes that the process has held."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

    def processor_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as status:
            fields = status.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_well(self):
        return self.ask("GET", "/health")[2]["photos"] > 0


def read(answer):
    content = answer.read()
    is_json = answer.headers.get("Content-Type") == "application/json"
    return answer.status, answer.headers, json.loads(content) if is_json and content else content


@contextlib.contextmanager
def served(folder, *options, files=None):
    def limit_files():
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    process = subprocess.Popen([sys.executable, "tests/support/page_service.py", str(folder), *options], cwd=PROJECT,
                               text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, preexec_fn=limit_files if files else None)
    line = process.stdout.readline()
    assert line.startswith("serving at"), line + process.communicate()[0]
    server = Server(process, int(line.rpartition(":")[2]))
    try:
        yield server
    finally:
        if not server.stopping:
            process.terminate()
        rest = process.communicate(timeout=30)[0]
    assert process.returncode == 128 + signal.SIGTERM, rest
    assert "Traceback" not in rest, rest


@pytest.fixture(scope="module")
def server(folder):
    with served(folder) as server:
        yield server


def photo_file(folder, row=0):
    return index.load(folder).image_path(row).read_bytes()


def huge_png(width=11_500, height=11_500):
    """A sound PNG of 132 megapixels in some 100 KB."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


# ---------------------------------------------------------------- answers

def test_words_photos_and_vectors_give_what_the_index_gives(server, folder):
    whole = index.load(folder)
    words = server.ask("POST", "/words", {"words": "sky", "topk": 5})[2]["results"]
    scores, rows = whole.search(whole.words("sky")[None], 5)
    assert [result["path"] for result in words] == [str(whole.image_path(row)) for row in rows[0]]
    assert [result["score"] for result in words] == scores[0].tolist()
    vectors = stream(0, "web app").normal(size=(3, 300)).astype(np.float32)
    scores, rows = whole.search(vectors, 4)
    for given in (vectors.tolist(), base64.b64encode(vectors.tobytes()).decode()):
        answer = server.ask("POST", "/search", {"vectors": given, "topk": 4})[2]
        assert answer["rows"] == rows.tolist()
        assert answer["scores"] == scores.tolist()
    assert server.ask("POST", "/photo?topk=3", photo_file(folder, 7))[2]["results"][0]["rank"] == 1


def test_a_photo_in_a_form_is_answered_as_a_raw_one_is(server, folder):
    photo = photo_file(folder)
    form = (b'--B\r\nContent-Disposition: form-data; name="photo"; filename="a b.jpg"\r\n'
            b"Content-Type: image/jpeg\r\n\r\n" + photo + b"\r\n--B\r\n"
            b'Content-Disposition: form-data; name="topk"\r\n\r\n3\r\n--B--\r\n')
    kind = {"Content_Type": "multipart/form-data; boundary=B"}
    status, _, answer = server.ask("POST", "/tags", form, **kind)
    assert status == 200
    assert answer == server.ask("POST", "/tags?topk=3", photo)[2]
    assert len(answer["tags"]) == 3
    for broken, sentence in ((form[:50], "a form with one file"),
                             (form.replace(b'; filename="a b.jpg"', b""), "a form"),
                             (form.replace(photo, b"noise"), "a b.jpg is not an image")):
        status, _, answer = server.ask("POST", "/tags", broken, **kind)
        assert status == 400
        assert sentence in answer["error"]


def test_a_query_mixes_words_and_a_photo_by_share(folder):
    service = page_service.open_service(folder)
    seen = service.embedding(index.load(folder).image_path(3), {})["photo"]

    def rows(**settings):
        return [found["row"] for found in service.query(json.dumps(settings | {"topk": PHOTOS}).encode())["results"]]
    assert rows(words="sky", photo=seen, share=0) == rows(words="sky")
    assert rows(words="sky", photo=seen, share=1) == rows(photo=seen)
    assert rows(photo=seen)[0] == 3
    assert sorted(rows(words="sky", photo=seen)) == list(range(PHOTOS))


def test_results_carry_cosines_and_go_on_where_they_ended(folder):
    service = page_service.open_service(folder)
    first, rest = (service.query(json.dumps({"like": 4, "skip": skip, "topk": 10}).encode())["results"]
                   for skip in (0, 10))
    both = service.query(json.dumps({"like": 4, "topk": 20}).encode())["results"]
    assert [found["row"] for found in first + rest] == [found["row"] for found in both]
    assert first[0]["cosine"] <= 1 + 1e-5
    assert next(found["cosine"] for found in both if found["row"] == 4) == pytest.approx(1, abs=1e-5)


def test_marks_move_the_query_by_rocchios_rule(folder):
    query, right = np.array([2, 0, 0], np.float32), np.array([[0, 1, 0], [0, 0, 1]], np.float32)
    np.testing.assert_allclose(service.rocchio(query, right, right[:1]), [1, 0.375 - 0.15, 0.375])
    np.testing.assert_allclose(service.rocchio(None, right[:1], right[:0]), [0, 0.75, 0])
    answering = page_service.open_service(folder)
    best = answering.query(b'{"words": "sky", "right": [5], "topk": 24}')["results"]
    before = answering.query(b'{"words": "sky", "topk": 24}')["results"]
    place = [[found["row"] for found in results].index(5) for results in (before, best)]
    assert place[1] <= place[0]


def test_words_are_completed_whatever_their_case_and_accents(folder):
    service = page_service.open_service(folder)
    service.index.content.tag_names = [["Café", "cafes"], ["sea"]]
    assert service.words_with("CAFÉ") == {"words": ["Café", "cafes"]}
    assert service.words_with("cafe", 1) == {"words": ["Café"]}
    assert service.words_with("x") == {"words": []}


def test_an_index_without_tags_says_why_words_are_off(folder):
    service = page_service.open_service(folder)
    service.index.content.tag_names = []
    assert "too few tags" in service.health()["no_words"]
    with pytest.raises(UserError, match="too few tags"):
        service.query(b'{"words": "sea"}')


BAD_QUERIES = {
    "nothing": ({}, "expected words, a photo"),
    "row": ({"like": PHOTOS}, f"expected a row from 0 to {PHOTOS - 1}"),
    "negative row": ({"right": [-1]}, "expected a row from 0"),
    "row true": ({"like": True}, "expected a row from 0"),
    "share": ({"words": "sky", "share": 2}, "share: expected a number from 0 to 1"),
    "photo": ({"photo": "AAAA"}, "choose the photo again"),
    "photo of NaN": ({"photo": base64.b64encode(b"\xff" * 600).decode()}, "choose the photo again"),
    "photo of zeros": ({"photo": base64.b64encode(bytes(600)).decode()}, "choose the photo again"),
    "rows": ({"right": {"a": 1}}, "right: expected at most"),
    "skip": ({"words": "sky", "skip": -1}, "skip: expected a whole number from 0"),
}


@pytest.mark.parametrize(("settings", "sentence"), BAD_QUERIES.values(), ids=BAD_QUERIES)
def test_a_bad_query_is_one_sentence(server, settings, sentence):
    status, _, answer = server.ask("POST", "/query", settings)
    assert status == 400
    assert sentence in answer["error"]


def test_an_unknown_word_is_a_sentence_beside_no_results(server):
    status, _, answer = server.ask("POST", "/query", {"words": "skyy"})
    assert status == 200
    assert answer["results"] == []
    assert "spelt most like it: sky" in answer["sentence"]


# ---------------------------------------------------------------- photos of the index

def test_thumbnails_are_upright_small_and_known_by_their_etag(tmp_path):
    wide = np.zeros((1200, 2400, 3), np.uint8)
    wide[:, :1200] = 255
    photo = cv2.imencode(".jpg", wide)[1].tobytes()
    turned = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # a quarter to the right
    path = tmp_path / "turned.jpg"
    path.write_bytes(photo[:2] + b"\xff\xe1" + struct.pack(">H", len(turned) + 2) + turned + photo[2:])
    kept = thumbnails.Thumbnails()
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
    kept = thumbnails.Thumbnails(most_bytes=40_000)
    made = [kept.picture(whole.image_path(row), 200) for row in range(PHOTOS)]
    assert sum(map(len, made)) > 40_000
    assert 0 < sum(map(len, kept._kept.values())) <= 40_000


def test_a_thumbnail_is_not_sent_twice(server):
    status, headers, picture = server.ask("GET", "/photos/3/thumbnail")
    assert status == 200
    assert picture[:3] == b"\xff\xd8\xff"
    status, again, nothing = server.ask("GET", "/photos/3/thumbnail", If_None_Match=headers["ETag"])
    assert (status, nothing) == (304, b"")
    assert again["ETag"] == headers["ETag"]
    assert server.ask("GET", "/photos/3")[1]["ETag"] != headers["ETag"]


@pytest.mark.parametrize("path", ["/photos/99999999999999999999", f"/photos/{PHOTOS}/thumbnail", "/photos/-1",
                                  "/photos/../../etc/passwd", "/photos/%2e%2e/secret", "/../../etc/passwd",
                                  "/page/../answers.py", "/photos/0/tags/x"])
def test_only_rows_of_the_index_are_opened(server, path):
    status, _, answer = server.ask("GET", path)
    assert status == 404
    assert answer.keys() == {"error"}


def test_a_photo_that_is_gone_or_no_image_is_told(tmp_path):
    made = page_service.make_index(tmp_path / "index", 20)
    made.image_path(0).unlink()
    made.image_path(1).write_bytes(b"noise")
    made.image_path(2).unlink()
    os.mkfifo(made.image_path(2))
    with served(tmp_path / "index") as server:
        for row, sentence in ((0, "is not there any more"), (1, "is not an image"), (2, "is not there any more")):
            status, _, answer = server.ask("GET", f"/photos/{row}/thumbnail")
            assert status == 404
            assert sentence in answer["error"]


def test_an_index_that_is_written_again_is_taken_up(tmp_path):
    page_service.make_index(tmp_path / "index", 20)
    with served(tmp_path / "index", "--seconds", "1") as server:
        assert server.ask("GET", "/health")[2]["photos"] == 20
        page_service.make_index(tmp_path / "index", 25)
        deadline = time.monotonic() + 20
        while server.ask("GET", "/health")[2]["photos"] != 25:
            assert time.monotonic() < deadline
            time.sleep(0.2)


# ---------------------------------------------------------------- who may ask

@pytest.mark.parametrize("host", ["evil.example", "evil.example:8750", "localhost.evil.example",
                                  "127.0.0.1.evil.example", "", "a/b", "localhost@evil.example:80x"])
def test_a_host_name_that_was_not_asked_for_is_refused(server, host):
    status, _, answer = server.ask("GET", "/health", Host=host)
    assert status == 421
    assert "expected the Host" in answer["error"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "192.168.1.5:8750", "[::1]:8750"])
def test_addresses_in_numbers_and_localhost_are_answered(server, host):
    assert server.ask("GET", "/health", Host=host)[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1"])
def test_a_post_of_another_page_is_refused(server, origin):
    status, _, answer = server.ask("POST", "/words", {"words": "sky"}, Origin=origin.format(port=server.port))
    assert status == 403
    assert "own page" in answer["error"]


def test_a_post_of_the_servers_own_page_is_answered(server):
    assert server.ask("POST", "/words", {"words": "sky"}, Origin=f"http://127.0.0.1:{server.port}")[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_json_is_taken_as_json_only(server, kind):
    status, _, answer = server.ask("POST", "/query", b'{"words": "sky"}', Content_Type=kind)
    assert status == 415
    assert "expected Content-Type application/json" in answer["error"]


def test_every_answer_forbids_what_the_page_does_not_need(server):
    for path in ("/", "/health", "/nope", "/photos/0/thumbnail", "/page.js"):
        headers = server.ask("GET", path)[1]
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW", "POST"])
def test_errors_are_json_whatever_the_method(server, method):
    for path in ("/health", "/nope"):
        status, headers, answer = server.ask(method, path, b"")
        assert status in (404, 405)
        assert headers["Content-Type"] == "application/json"
        assert answer.keys() == {"error"}


def test_a_token_is_asked_of_everybody(folder):
    with served(folder, "--token", "secret") as server:
        for headers in ({}, {"Authorization": "Bearer wrong é"}, {"Cookie": "token=wrong"}):
            for path in ("/", "/health", "/page.js", "/photos/0"):
                status, _, answer = server.ask("GET", path, **headers)
                assert status == 401
                assert "token" in answer["error"]
        assert server.ask("GET", "/?token=wrong")[0] == 401
        assert server.ask("GET", "/health", Authorization="Bearer secret")[0] == 200
        status, headers, _ = server.ask("GET", "/?token=secret")
        assert (status, headers["Location"]) == (303, "/")
        assert "HttpOnly" in headers["Set-Cookie"]
        assert "SameSite=strict" in headers["Set-Cookie"]
        assert server.ask("GET", "/", Cookie=headers["Set-Cookie"].partition(";")[0])[0] == 200


# ---------------------------------------------------------------- what clients send

@pytest.mark.parametrize(("head", "status"), [
    (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
    (b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
    (b"\r\n", 411),
    (b"Content-Length: 16777217\r\n\r\n", 413),
    (b"Content-Length: -1\r\n\r\n", 400),
    (b"Content-Length: many\r\n\r\n", 400),
    (b"Content-Length: " + b"1" * 30 + b"\r\n\r\n", 400),
    (b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    (b"X: " + b"a" * 100_000, 400),
    (b"no header\r\n\r\n", 400),
])
def test_a_body_without_a_sound_length_is_refused_in_json(server, head, status):
    answer = server.answer_to(b"POST /words HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + head)
    assert answer[0] == status
    assert answer[2].keys() == {"error"}
    assert answer[1]["Connection"] == "close"


def test_what_is_no_http_is_told_in_json(server):
    assert server.answer_to(b"\x00\xff\r\n\r\n")[2].keys() == {"error"}
    assert server.is_well()


def test_a_body_that_ends_early_is_dropped(server):
    with server.send(b"POST /words HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b'Content-Length: 100\r\n\r\n{"words": "sky"}') as connection:
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    assert server.is_well()


def test_a_large_body_is_told_to_who_sends_it_all(server):
    status, _, answer = server.ask("POST", "/photo", bytes(65 * 2**20))
    assert status == 413
    assert "expected a body whose Content-Length is at most 33,554,432" in answer["error"]


def test_a_body_of_many_empty_lists_costs_neither_memory_nor_time(folder):
    body = b'{"vectors": [' + b"[]," * (5 * 2**20) + b"[]]}"
    with served(folder) as server:
        before, started = server.memory(), time.monotonic()
        status, _, answer = server.ask("POST", "/search", body, Content_Type="application/json")
        assert status == 400
        assert "expected at most 4,096 vectors of 300 numbers" in answer["error"]
        assert server.memory() - before < 100 * 2**20
        assert time.monotonic() - started < 3


def test_bodies_that_are_held_open_cost_a_bounded_memory_and_are_let_go(folder):
    size = 30 * 2**20
    with served(folder) as server, contextlib.ExitStack() as stack:
        before = server.memory()
        for _ in range(20):
            head = f"POST /photo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
            connection = stack.enter_context(server.send(head))
            with contextlib.suppress(OSError):  # it is refused once all together are too many
                connection.sendall(bytes(size - 1))
        assert server.is_well()
        assert server.memory() - before < 450 * 2**20
        stack.close()
        deadline = time.monotonic() + 20
        while server.ask("POST", "/photo", photo_file(folder))[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)


DRIPPING = [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n",
            b"POST /words HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{",
            b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"]


def test_a_client_that_drips_or_keeps_silent_is_left(folder):
    def lasts(start):
        """Seconds until the server closes a connection that sends a letter now and then, or nothing."""
        started = time.monotonic()
        with server.send(start) as connection, contextlib.suppress(OSError):
            connection.settimeout(0.3)
            while time.monotonic() - started < 15:
                try:
                    if not connection.recv(2**16):
                        break
                except TimeoutError:
                    connection.sendall(b"a" if start and not start.endswith(b"\r\n\r\n") else b"")
        return time.monotonic() - started
    with served(folder, "--seconds", "1") as server, ThreadPoolExecutor(len(DRIPPING)) as pool:
        for seconds in pool.map(lasts, DRIPPING):
            assert seconds < 8
        assert server.is_well()


def test_idle_connections_take_no_place_and_no_processor(folder):
    with served(folder, files=256) as server, contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(server.send(b""))
            time.sleep(0.002)  # or the system has the next one wait for a second
        before, started = server.processor_seconds(), time.monotonic()
        for _ in range(5):
            assert server.is_well()
        time.sleep(0.5)
        assert server.processor_seconds() - before < 0.5 * (time.monotonic() - started)


# ---------------------------------------------------------------- photos that cost much

def test_a_photo_of_many_pixels_is_refused_at_once_and_none_waits_for_it(server, folder):
    png = huge_png()
    assert len(png) < 400_000
    started = time.monotonic()
    with ThreadPoolExecutor(5) as pool:
        large = [pool.submit(server.ask, "POST", "/photo", png) for _ in range(4)]
        assert server.ask("POST", "/photo", photo_file(folder))[0] == 200
        for answer in large:
            status, _, told = answer.result()
            assert status == 400
            assert "11,500×11,500 pixels, more than 25,000,000" in told["error"]
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


@pytest.mark.parametrize(("photo", "sentence"), [(b"", "beach is empty"), (b"noise", "beach is not an image"),
                                                 (b"\xff\xd8\xff\xe0 cut", "beach is truncated")])
def test_what_is_no_photo_is_told_by_the_name_that_the_client_gave(server, photo, sentence):
    status, _, answer = server.ask("POST", "/embedding?name=beach", photo)
    assert status == 400
    assert sentence in answer["error"]


# ---------------------------------------------------------------- the end

def test_sigterm_answers_what_is_in_flight(folder):
    with served(folder) as server, ThreadPoolExecutor(4) as pool:
        photo = photo_file(folder)
        asked = [pool.submit(server.ask, "POST", "/photo?name=slow", photo) for _ in range(4)]
        time.sleep(0.25)
        server.stopping = True
        server.process.terminate()
        assert [answer.result()[0] for answer in asked] == [200] * 4


def test_photos_that_wait_do_not_keep_the_server_from_its_end(folder):
    with served(folder, "--seconds", "1") as server, ThreadPoolExecutor(64) as pool:
        photo = photo_file(folder)
        asked = [pool.submit(server.ask, "POST", "/photo?name=slow", photo) for _ in range(64)]  # 2 s of work
        time.sleep(0.4)
        started, server.stopping = time.monotonic(), True
        server.process.terminate()
        server.process.wait(timeout=30)
        assert time.monotonic() - started < 3
        statuses = {answer.result()[0] for answer in asked if not answer.exception()}
        assert 200 in statuses
        assert statuses <= {200, 503}


def test_a_port_that_is_taken_is_one_sentence(server, folder):
    done = subprocess.run([sys.executable, "tests/support/page_service.py", str(folder), "--port", str(server.port)],
                          cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"127.0.0.1:{server.port}: cannot listen there" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_words_are_answered_while_photos_are_embedded(server, folder):
    photo = photo_file(folder)
    with ThreadPoolExecutor(8) as pool:
        slow = [pool.submit(server.ask, "POST", "/photo?name=slow", photo) for _ in range(4)]
        taken = []
        for _ in range(30):
            started = time.monotonic()
            assert server.ask("POST", "/words", {"words": "sky"})[0] == 200
            taken.append(time.monotonic() - started)
        assert sorted(taken)[28] < 0.5
        assert [answer.result()[0] for answer in slow] == [200] * 4
