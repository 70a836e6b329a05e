"""Connections: where the server listens, how many clients it has at once and for how long, and how it ends.

What is asked and answered is another room's, web_app.py.
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
from uvicorn.protocols.http.h11_impl import H11Protocol

from util import StopRequest, UserError

try:
    import resource
except ImportError:  # on Windows
    resource = None

MOST_CONNECTIONS = 256
ACCEPTED_AT_ONCE = 64  # connections, before it is seen that they are too many
HEAD_SECONDS = 10  # in which the head of a request has to arrive, on a new connection or on one that is kept
REQUEST_SECONDS = 150  # in which a request has to be answered, and its answer taken: the first photo loads the network
STOP_SECONDS = 10  # for which requests in flight are still answered once the server is to end
HEAD_BYTES = 32 * 2**10


def is_local(host):
    """Whether only this machine can reach an address to listen at."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host, port):
    """A socket that has the address, on which nobody is answered yet. Raises UserError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                                flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(ACCEPTED_AT_ONCE)  # so that a second server is refused now, not once it has loaded everything
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot listen there: {error.strerror or error}") from None
    return listener


def most_connections():
    """How many clients are let in: fewer where the process may open few files."""
    if resource is None:
        return MOST_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if files < 0 else max(1, min(MOST_CONNECTIONS, files // 2 - ACCEPTED_AT_ONCE // 2))


class WebServer(uvicorn.Server):
    """Answers on a socket until SIGTERM or Ctrl-C; then those who have asked are still answered for STOP_SECONDS."""

    def __init__(self, app, listener, access_log=False):
        super().__init__(uvicorn.Config(
            app, http=Connection, ws="none", lifespan="off", loop="asyncio", log_config=None, access_log=access_log,
            server_header=False, proxy_headers=False, timeout_keep_alive=HEAD_SECONDS,
            backlog=ACCEPTED_AT_ONCE,
            timeout_graceful_shutdown=STOP_SECONDS, h11_max_incomplete_event_size=HEAD_BYTES))
        for name in ("uvicorn.error", "python_multipart"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what clients do wrong is told to them
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
        """Signals are StopRequest's."""
        yield

    async def on_tick(self, counter):
        return await super().on_tick(counter) or self._stop.signal is not None


class AccessLine(logging.Formatter):
    """A line for each request, without the token that an address may hold."""

    def format(self, record):
        return re.sub(r"([?&]token=)[^ &]*", r"\1…", super().format(record))


class Connection(H11Protocol):
    """A connection that is closed when the head of a request, or its answer, takes too long.

    Where there are too many, the one that has been idle for longest makes room for a new one.
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
        self.send_error(503, "the server has too many clients at the moment: try again")

    def is_idle(self):
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _wait(self, seconds):
        """Break the connection off after so many seconds, unless `_wait` is called again before."""
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
        if self.cycle is not before:  # the head is there
            self._wait(REQUEST_SECONDS)

    def on_response_complete(self):
        self._wait(HEAD_SECONDS)
        super().on_response_complete()

    def connection_lost(self, error):
        if self._timer:
            self._timer.cancel()
        super().connection_lost(error)

    def send_400_response(self, _message):
        """What is no HTTP."""
        self.send_error(400, "expected a request of HTTP/1.1 with a head of at most "
                             f"{HEAD_BYTES:,} bytes and a Content-Length in digits, found something else")

    def send_error(self, status, sentence):
        """A sentence in JSON, and the end of the connection; only the end where an answer has begun."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and self.is_idle():
            content = json.dumps({"error": sentence}).encode()
            head = [("Content-Type", "application/json"), ("Content-Length", str(len(content))),
                    ("Connection", "close")]
            for event in (h11.Response(status_code=status, headers=head), h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()
