"""Addresses, who may use them, and how answers and errors are sent, over real sockets."""
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("faiss")
pytest.importorskip("starlette")

import page_service
from page_service import PHOTOS, photo_file
from retrieval import index
from servers import page_served

# ---------------------------------------------------------------- answers

def test_words_and_photos_give_what_the_index_gives(server, folder):
    whole = index.load(folder)
    words = server.ask("POST", "/words", {"words": "sky", "topk": 5})[2]["results"]
    scores, rows = whole.search(whole.words("sky")[None], 5)
    assert [result["path"] for result in words] == [str(whole.image_path(row)) for row in rows[0]]
    assert [result["score"] for result in words] == scores[0].tolist()
    assert server.ask("POST", "/photo?topk=3", photo_file(folder, 7))[2]["results"][0]["rank"] == 1


def test_a_photo_in_a_form_is_answered_like_a_raw_one(server, folder):
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


# ---------------------------------------------------------------- photos of the index

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
                                  "/page/../service.py", "/photos/0/tags/x"])
def test_only_rows_of_the_index_are_opened(server, path):
    status, _, answer = server.ask("GET", path)
    assert status == 404
    assert answer.keys() == {"error"}


def test_a_photo_that_is_gone_or_not_an_image_is_reported(tmp_path):
    made = page_service.make_index(tmp_path / "index", 20)
    made.image_path(0).unlink()
    made.image_path(1).write_bytes(b"noise")
    made.image_path(2).unlink()
    os.mkfifo(made.image_path(2))
    with page_served(tmp_path / "index") as server:
        for row, sentence in ((0, "is no longer there"), (1, "is not an image"), (2, "is no longer there")):
            status, _, answer = server.ask("GET", f"/photos/{row}/thumbnail")
            assert status == 404
            assert sentence in answer["error"]


def test_an_index_that_was_rewritten_is_opened_again(tmp_path):
    page_service.make_index(tmp_path / "index", 20)
    with page_served(tmp_path / "index", "--seconds", "1") as server:
        assert server.ask("GET", "/health")[2]["photos"] == 20
        page_service.make_index(tmp_path / "index", 25)
        deadline = time.monotonic() + 20
        while server.ask("GET", "/health")[2]["photos"] != 25:
            assert time.monotonic() < deadline
            time.sleep(0.2)


# ---------------------------------------------------------------- who may ask

@pytest.mark.parametrize("host", ["evil.example", "evil.example:8750", "localhost.evil.example",
                                  "127.0.0.1.evil.example", "", "a/b", "localhost@evil.example:80x", "[", "[x]"])
def test_an_unknown_host_name_is_refused(server, host):
    status, _, answer = server.ask("GET", "/health", Host=host)
    assert status == 421
    assert "expected the Host" in answer["error"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "192.168.1.5:8750", "[::1]:8750"])
def test_numeric_addresses_and_localhost_are_answered(server, host):
    assert server.ask("GET", "/health", Host=host)[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1"])
def test_a_post_from_another_page_is_refused(server, origin):
    status, _, answer = server.ask("POST", "/words", {"words": "sky"}, Origin=origin.format(port=server.port))
    assert status == 403
    assert "own page" in answer["error"]


def test_a_post_from_the_servers_own_page_is_answered(server):
    assert server.ask("POST", "/words", {"words": "sky"}, Origin=f"http://127.0.0.1:{server.port}")[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_json_needs_its_content_type(server, kind):
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
def test_errors_are_json_for_any_method(server, method):
    for path in ("/health", "/nope"):
        status, headers, answer = server.ask(method, path, b"")
        assert status in (404, 405)
        assert headers["Content-Type"] == "application/json"
        assert answer.keys() == {"error"}


def test_everybody_needs_the_token(folder):
    with page_served(folder, "--token", "secret") as server:
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
