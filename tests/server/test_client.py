"""The client of a server: photos that it sends, answers that it does not get."""
import socket
import threading
from pathlib import Path

import pytest

from server.client import Remote
from tiny import run
from util import UserError


@pytest.mark.parametrize("kind", [str, Path])
def test_a_client_sends_the_photo_at_a_path(server, tmp_path, kind):
    remote = Remote(f"127.0.0.1:{server.port}")
    (tmp_path / "é.jpg").write_bytes(b"noise")
    with pytest.raises(UserError, match=r"^é\.jpg is not an image that OpenCV reads$"):
        remote.by_photo(kind(tmp_path / "é.jpg"))
    with pytest.raises(UserError, match="expected the path of a photo, found list"):
        remote.by_photo([tmp_path / "é.jpg"])


@pytest.mark.parametrize("content", [b"[1]", b"[" * 10**5, b'{"results": [{"rank": Infinity}]}'])
def test_a_server_that_does_not_answer_is_one_sentence(content):
    with socket.create_server(("127.0.0.1", 0)) as other:
        def answer():
            connection, _ = other.accept()
            asked = b""
            while b'"words"' not in asked:
                asked += connection.recv(2**16)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + content)
            connection.close()
        threading.Thread(target=answer).start()
        for address, sentence in ((f"127.0.0.1:{other.getsockname()[1]}", "expected an answer from `search.py serve`"),
                                  ("127.0.0.1:port", "no server answered")):
            with pytest.raises(UserError, match=sentence):
                Remote(address).by_words("a")
    code, output = run("search.py", "query", "--server", "127.0.0.1:1", "--words", "a")
    assert code == 2, output
    assert "no server answered" in output
    assert len(output.splitlines()) == 1


def test_an_index_and_a_server_at_once_are_refused():
    code, output = run("search.py", "query", "--server", "127.0.0.1:1", "an index", "photo.jpg")
    assert code == 2
    assert "with --server expected no INDEX" in output
