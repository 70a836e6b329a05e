"""HTTP: connections, requests and their answers in JSON. What is answered is another room's, service.py."""
import contextlib
import http.server
import json
import threading
import urllib.parse

from util import StopRequest, UserError, note, one_line

MOST_BYTES = 64 * 2**20  # of a request's body
SILENT_SECONDS = 60  # after which a connection is closed
FINISH_SECONDS = 10  # that requests have which came before the stop


class Server(http.server.ThreadingHTTPServer):
    """A thread for each connection. Raises UserError if the address cannot be had.

    Attributes:
        service: Service, once it runs.
        ending (bool): whether it has been told to stop, so that each connection gets at most one more answer.
    """
    request_queue_size = 128
    timeout = 0.5  # seconds between looks at whether to stop

    def __init__(self, host, port):
        self.ending = False
        self._busy = set()  # connections of which a request is being answered, or the first one waited for
        self._changed = threading.Condition()
        self._place = f"{host}:{port}"
        with self._refusals():
            super().__init__((host, port), Handler, bind_and_activate=False)
            self.server_bind()
        self.address = f"http://{host}:{self.server_port}"

    @contextlib.contextmanager
    def _refusals(self):
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._place}: cannot listen there: {error.strerror or error}") from None

    def run(self, service):
        """Answer until SIGTERM or Ctrl-C."""
        self.service = service
        with StopRequest() as stop:
            with self._refusals():
                self.server_activate()
            facts = service.health({}, b"")
            print(f"serving {facts['photos']:,} photos in {facts['shards']} shards at {self.address}", flush=True)
            while stop.signal is None:
                self.handle_request()
            self._finish()

    def _finish(self):
        """Answer what was asked before the stop, for FINISH_SECONDS at most; later connections are refused."""
        self.ending, self.timeout = True, 0
        for _ in range(self.request_queue_size):  # connections that wait to be accepted
            self.handle_request()
        self.socket.close()
        with self._changed:
            self._changed.wait_for(lambda: not self._busy, FINISH_SECONDS)

    def set_busy(self, connection, busy):
        """Note whether a connection waits for an answer."""
        with self._changed:
            (self._busy.add if busy else self._busy.discard)(connection)
            self._changed.notify_all()

    def process_request(self, request, address):
        self.set_busy(request, True)
        super().process_request(request, address)

    def shutdown_request(self, request):
        super().shutdown_request(request)
        self.set_busy(request, False)

    def handle_error(self, _request, _address):
        """A connection that broke off, or what else kept an answer from being sent, concerns no other."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = SILENT_SECONDS
    disable_nagle_algorithm = True
    wbufsize = -1

    def parse_request(self):
        self.server.set_busy(self.connection, True)
        return super().parse_request()

    def handle_one_request(self):
        super().handle_one_request()
        self.close_connection |= self.server.ending
        if not self.close_connection:
            self.server.set_busy(self.connection, False)

    def do_GET(self):
        self._answer({"/": "health", "/health": "health"})

    def do_POST(self):
        self._answer({"/search": "search", "/words": "words", "/photo": "photo"})

    def _answer(self, methods):
        path, _, query = self.path.partition("?")
        length = self.headers.get("Content-Length", "0" if self.command == "GET" else "none")
        if not (length.isdecimal() and len(length) < 12 and int(length) <= MOST_BYTES):
            self._send(400, {"error": f"expected a body whose Content-Length is at most {MOST_BYTES:,}, found "
                                      f"{one_line(length)}"})
            self._drop_body()
            return
        body = self.rfile.read(int(length))
        try:
            if path not in methods:
                raise UserError(f"{self.command} {one_line(path)}: no such question; GET /health and POST /search, "
                                "/words and /photo are answered")
            settings = dict(urllib.parse.parse_qsl(query, errors="surrogateescape"))
            status, answer = 200, getattr(self.server.service, methods[path])(settings, body)
        except UserError as error:
            status, answer = 400, {"error": str(error)}
        except Exception as error:  # of the server, which goes on for the others
            status, answer = 500, {"error": f"the server failed: {one_line(error)}"}
            note(answer["error"])
        self._send(status, answer)

    def _send(self, status, answer):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.server.ending:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _drop_body(self):
        """Read on for a while, since who is still sending would not see the answer otherwise."""
        self.close_connection = True
        self.connection.settimeout(1)
        with contextlib.suppress(OSError):
            for _ in range(2**10):
                if not self.rfile.read1(2**20):
                    break

    def log_message(self, *_):
        """Nothing: a line for each query would drown what matters."""
