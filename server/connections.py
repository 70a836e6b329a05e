"""Connections and request bodies: where the server listens, and how many, how long and how large they may be.

These limits keep clients from using up the server's memory and time. What is answered is in app.py.
"""
import asyncio
import contextlib
import ipaddress
import json
import logging
import re
import socket

import h11
import uvicorn
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from util import StopRequest, UserError, one_line

try:
    import resource
except ImportError:  # on Windows
    resource = None

MOST_CONNECTIONS = 256
ACCEPTED_AT_ONCE = 64  # connections that the system accepts before the server can count them
HEAD_SECONDS = 10  # for the head of a request to arrive, on a new connection or on one that is kept alive
BODY_SECONDS = 60  # for its body to arrive
REQUEST_SECONDS = 150  # for a request to be answered and the answer to be received: a photo may wait for many others
STOP_SECONDS = 10  # for requests in progress to be answered after the server was asked to stop
DROP_SECONDS = 2  # for the rest of a refused body to arrive: clients that are still sending would miss the answer
HEAD_BYTES = 32 * 2**10
MOST_JSON_BYTES = 16 * 2**20
MOST_PHOTO_BYTES = 32 * 2**20  # of a photo, or of the form around it
MOST_BYTES_TOGETHER = 256 * 2**20  # of all bodies in memory at one time


# ---------------------------------------------------------------- where

def is_local(host):
    """Whether only this machine can reach an address to listen at."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host, port):
    """A socket that is bound to the address and accepts nobody yet. Raises UserError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                                flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(ACCEPTED_AT_ONCE)  # so that a second server is refused now and not after opening the index
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot listen there: {error.strerror or error}") from None
    return listener


class WebServer(uvicorn.Server):
    """Answers on a socket until SIGTERM or Ctrl-C, then for up to STOP_SECONDS those whose requests have arrived."""

    def __init__(self, app, listener, access_log=False):
        super().__init__(uvicorn.Config(
            app, http=Connection, ws="none", lifespan="off", loop="asyncio", log_config=None, access_log=access_log,
            server_header=False, proxy_headers=False, timeout_keep_alive=HEAD_SECONDS,
            backlog=ACCEPTED_AT_ONCE,
            timeout_graceful_shutdown=STOP_SECONDS, h11_max_incomplete_event_size=HEAD_BYTES))
        for name in ("uvicorn.error", "python_multipart"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # clients' errors are reported to the clients
        if access_log:
            handler = logging.StreamHandler()
            handler.setFormatter(AccessLine("%(asctime)s %(message)s"))
            logger = logging.getLogger("uvicorn.access")
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        self._app = app
        self._listener = listener

    def run(self):
        with StopRequest() as self._stop:
            asyncio.run(self._answer())

    async def _answer(self):
        renewing = asyncio.create_task(self._app.renew())
        await self.serve([self._listener])
        renewing.cancel()
        self._app.close()

    @contextlib.contextmanager
    def capture_signals(self):
        """Does nothing, since StopRequest handles the signals."""
        yield

    async def on_tick(self, counter):
        return await super().on_tick(counter) or self._stop.signal is not None


class AccessLine(logging.Formatter):
    """A line for each request, without the token that its address may contain."""

    def format(self, record):
        return re.sub(r"([?&]token=)[^ &]*", r"\1…", super().format(record))


# ---------------------------------------------------------------- how many, how long

def most_connections():
    """How many clients may be connected at once: fewer if the process may open only few files."""
    if resource is None:
        return MOST_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if files < 0 else max(1, min(MOST_CONNECTIONS, files // 2 - ACCEPTED_AT_ONCE // 2))


class Connection(H11Protocol):
    """A connection that is closed if the head of a request, or its answer, takes too long.

    If there are too many connections, the one that has been idle longest is closed in favour of a new one.
    """
    _idle_since = 0
    _timer = None

    def connection_made(self, transport):
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            self._make_room()
        self._wait(HEAD_SECONDS)

    def _make_room(self):
        idle = [other for other in self.connections if other is not self and other.is_idle()]
        if idle:
            longest = min(idle, key=lambda other: other._idle_since)
            self.connections.discard(longest)
            longest.transport.abort()
            return
        self.send_error(503, "the server has too many clients at the moment: try again later")

    def is_idle(self):
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _wait(self, seconds):
        """Close the connection after this many seconds, unless `_wait` is called again before."""
        self._idle_since = self.loop.time()
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._break_off)

    def _break_off(self):
        if self.is_idle():
            self.send_error(408, f"expected a request within {HEAD_SECONDS} seconds")
        self.transport.abort() if self.transport.get_write_buffer_size() else self.transport.close()

    def handle_events(self):
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # the head of a request is complete
            self._wait(REQUEST_SECONDS)

    def on_response_complete(self):
        self._wait(HEAD_SECONDS)
        super().on_response_complete()

    def connection_lost(self, error):
        if self._timer:
            self._timer.cancel()
        super().connection_lost(error)

    def send_400_response(self, _message):
        """The answer to anything that is not HTTP."""
        self.send_error(400, f"expected an HTTP/1.1 request with a head of at most {HEAD_BYTES:,} bytes and a "
                             "Content-Length in digits, found something else")

    def send_error(self, status, sentence):
        """Close the connection, after a sentence in JSON unless an answer has begun."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and self.is_idle():
            content = json.dumps({"error": sentence}).encode()
            head = [("Content-Type", "application/json"), ("Content-Length", str(len(content))),
                    ("Connection", "close")]
            for event in (h11.Response(status_code=status, headers=head), h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()


# ---------------------------------------------------------------- how many bytes

class Refusal(UserError):
    """A request that is refused: an HTTP status and a sentence."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


class Bodies:
    """Reads the bodies of requests, and limits how many bytes all of them take together."""

    def __init__(self):
        self._held = 0

    @contextlib.asynccontextmanager
    async def read(self, request, most):
        """Give the body of a request, bytes, which counts as held until the block ends.

        Raises Refusal for a body without a valid Content-Length or of more than `most` bytes, for one that takes too
        long, and if all bodies together are too large; ClientDisconnect for one that ends early.
        """
        body = await self._receive(request, await content_length(request, most))
        try:
            yield body
        finally:
            self._held -= len(body)

    async def _receive(self, request, length):
        chunks = []
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    self._held += len(chunk)
                    chunks.append(chunk)
                    if self._held > MOST_BYTES_TOGETHER:
                        raise Refusal(503, "the server has too many requests at the moment: try again later")
            if sum(map(len, chunks)) < length:
                raise ClientDisconnect
            return b"".join(chunks)
        except BaseException as error:
            self._held -= sum(map(len, chunks))
            chunks.clear()
            if isinstance(error, TimeoutError):
                raise Refusal(408, f"the body of the request did not arrive within {BODY_SECONDS} seconds") from None
            if isinstance(error, Refusal):
                await drop_body(request)
            raise


async def content_length(request, most):
    """The Content-Length of a request. Raises Refusal unless it is a number of at most `most`."""
    length = request.headers.get("content-length", "none")
    if "transfer-encoding" in request.headers:
        length = "a Transfer-Encoding"
    if not (length.isdecimal() and len(length) < 12 and int(length) <= most):
        await drop_body(request)
        raise Refusal(413 if length.isdecimal() else 411,
                      f"expected a body whose Content-Length is at most {most:,}, found {one_line(length)}")
    return int(length)


async def drop_body(request):
    """Read the rest of a body for a short time and keep nothing of it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DROP_SECONDS):
            while (await request.receive()).get("more_body"):
                pass
