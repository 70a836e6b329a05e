"""Limits on connections and bodies, over real sockets, and how the server ends."""
import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("faiss")
pytest.importorskip("starlette")

from page_service import photo_file
from server import connections
from servers import page_served
from util import UserError

# ---------------------------------------------------------------- bodies

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


def test_what_is_not_http_is_refused_in_json(server):
    assert server.answer_to(b"\x00\xff\r\n\r\n")[2].keys() == {"error"}
    assert server.is_well()


def test_a_body_that_ends_early_is_dropped(server):
    with server.send(b"POST /words HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b'Content-Length: 100\r\n\r\n{"words": "sky"}') as connection:
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    assert server.is_well()


def test_a_connection_that_breaks_off_harms_no_other(server):
    for sent in (b"\x00\xff\r\n\r\n", b"POST /search HTTP/1.1\r\nContent-Length: 100\r\n\r\n{", b"GET"):
        server.send(sent).close()
    assert server.is_well()


def test_a_client_that_sends_all_of_a_large_body_sees_the_refusal(server):
    status, _, answer = server.ask("POST", "/photo", bytes(65 * 2**20))
    assert status == 413
    assert "expected a body whose Content-Length is at most 33,554,432" in answer["error"]


def test_a_body_of_many_empty_lists_costs_neither_memory_nor_time(folder):
    body = b'{"vectors": [' + b"[]," * (5 * 2**20) + b"[]]}"
    with page_served(folder) as server:
        before, started = server.memory(), time.monotonic()
        status, _, answer = server.ask("POST", "/search", body, Content_Type="application/json")
        assert status == 400
        assert "expected at most 4,096 vectors of 300 numbers" in answer["error"]
        assert server.memory() - before < 100 * 2**20
        assert time.monotonic() - started < 3


def test_bodies_that_are_held_open_take_bounded_memory_and_are_released(folder):
    size = 30 * 2**20
    with page_served(folder) as server, contextlib.ExitStack() as stack:
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


# ---------------------------------------------------------------- connections

DRIPPING = [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n",
            b"POST /words HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{",
            b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"]


def test_a_client_that_drips_or_stays_silent_is_disconnected(folder):
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
    with page_served(folder, "--seconds", "1") as server, ThreadPoolExecutor(len(DRIPPING)) as pool:
        for seconds in pool.map(lasts, DRIPPING):
            assert seconds < 8
        assert server.is_well()


def test_idle_connections_keep_nobody_out_and_take_no_processor(folder):
    with page_served(folder, files=256) as server, contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(server.send(b""))
            time.sleep(0.002)  # or the system has the next one wait for a second
        before, started = server.processor_seconds(), time.monotonic()
        for _ in range(5):
            assert server.is_well()
        time.sleep(0.5)
        assert server.processor_seconds() - before < 0.5 * (time.monotonic() - started)


# ---------------------------------------------------------------- the start and the end

def test_of_two_servers_that_start_on_one_port_at_once_one_is_refused_in_a_sentence():
    with (contextlib.closing(connections.listen("127.0.0.1", 0)) as first,
          pytest.raises(UserError, match=r"^127\.0\.0\.1:\d+: cannot listen there: Address already in use$")):
        connections.listen("127.0.0.1", first.getsockname()[1])


def test_sigterm_answers_what_is_in_flight(folder):
    with page_served(folder) as server, ThreadPoolExecutor(4) as pool:
        photo = photo_file(folder)
        asked = [pool.submit(server.ask, "POST", "/photo?name=slow", photo) for _ in range(4)]
        time.sleep(0.25)
        server.stopping = True
        server.process.terminate()
        assert [answer.result()[0] for answer in asked] == [200] * 4


def test_photos_that_wait_do_not_keep_the_server_from_its_end(folder):
    with page_served(folder, "--seconds", "1") as server, ThreadPoolExecutor(64) as pool:
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
