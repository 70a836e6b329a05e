"""HTTP: connections, requests and their answers in JSON. What is answered is another room's, service.py."""
import contextlib
import http.server
import json
import urllib.parse

from util import StopRequest, UserError, note, one_line

MOST_BYTES = 64 * 2**20  # of a request's body
SILENT_SECONDS = 60  # after which a connection is closed


class Server(http.server.ThreadingHTTPServer):
    """A thread for each connection. Raises UserError if the address cannot be had.

    Attributes:
        service: Service, once it runs.
    """
    request_queue_size = 128
    timeout = 0.5  # seconds between looks at whether to stop

    def __init__(self, host, port):
        try:
            super().__init__((host, port), Handler, bind_and_activate=False)
            self.server_bind()
        except OSError as error:
            raise UserError(f"{host}:{port}: cannot listen there: {error.strerror or error}") from None
        self.address = f"http://{host}:{self.server_port}"

    def run(self, service):
        """Answer until SIGTERM or Ctrl-C."""
        self.service = service
        with StopRequest() as stop:
            self.server_activate()
            facts = service.health({}, b"")
            print(f"serving {facts['photos']:,} photos in {facts['shards']} shards at {self.address}", flush=True)
            while stop.signal is None:
                self.handle_request()

    def handle_error(self, _request, _address):
        """A connection that broke off, or what else kept an answer from being sent, concerns no other."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = SILENT_SECONDS
    disable_nagle_algorithm = True
    wbufsize = -1

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
