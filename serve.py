"""Answer queries over HTTP, from an index in shards, here or on a cluster: `python serve.py INDEX`.

    GET  /health
    POST /search   {"vectors": [[300 numbers], …] or their float32 bytes in base64, "topk": 20, "nprobe": 32}
    POST /words    {"words": "beach sunset", "topk": 20, "nprobe": 32}
    POST /photo?topk=20&nprobe=32&name=beach.jpg   with the file as the body

Answers are JSON, of what cannot be answered {"error": sentence}.
"""
import argparse
import base64
import contextlib
import http.server
import json
import tempfile
import urllib.parse
from dataclasses import asdict
from pathlib import Path

import numpy as np

import search
from retrieval import cluster
from storage.safe_files import fingerprint
from util import StopRequest, UserError, gpu_number, note, number, one_line, run_program

MOST_BYTES = 64 * 2**20  # of a request's body
MOST_RESULTS = 10**6  # of a request's queries together
MOST_LETTERS = 1000  # of a query in words
LARGEST = 1e9  # absolute value in a query, so that no score overflows
SILENT_SECONDS = 60  # after which a connection is closed


def parse_arguments():
    parser = argparse.ArgumentParser(description="Answer queries over HTTP from an index of photos, cut into shards.")
    parser.add_argument("index", metavar="INDEX", type=Path, help="a folder that search.py build wrote")
    parser.add_argument("--shards", type=number(int, 1, 4096), default=1, metavar="N",
                        help="parts of the index that are searched at once (default 1)")
    parser.add_argument("--ray", type=cluster.ray_address, metavar="ADDRESS",
                        help="one process of Ray a shard: local starts Ray on this machine, auto or host:port joins a "
                             "cluster (default: all shards in this process)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1, this machine)")
    parser.add_argument("--port", type=number(int, 0, 65535), default=8750,
                        help="port to listen at, 0 for any that is free (default 8750)")
    parser.add_argument("--nprobe", type=number(int, 1), default=32, metavar="N",
                        help="lists to look into, unless a query says so itself (default 32)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="the checkpoint, if it was moved")
    parser.add_argument("--gpu", type=gpu_number, default=None, metavar="GPU",
                        help="number of the GPU that embeds photos (default: the CPU)")
    return parser.parse_args()


def main():
    options = parse_arguments()
    server = Server(options.host, options.port)
    if options.ray is not None:
        cluster.check_reachable(options.ray)
    from retrieval import faiss_engine, manifest, shards
    if faiss_engine.faiss is None:
        raise UserError("serving needs FAISS: pip install -r requirements-search.txt")
    manifest.read(options.index)
    if options.ray is not None:
        cluster.start(options.ray, options.shards + 1)
    source = fingerprint(options.index / manifest.MANIFEST)
    photos = search.open_index(options.index, options.checkpoint, options.gpu)
    parts = shards.cut(photos.index, options.shards, source)
    if options.ray is None:
        photos.index = shards.Sharded(photos.index, shards.Threads(parts))
    else:
        from retrieval import ray_shards
        photos.index = shards.Sharded(photos.index, ray_shards.Actors(parts))
    server.run(Service(photos, options.nprobe))


# ---------------------------------------------------------------- answers

class Service:
    """What is answered: each method takes the settings of a request, a dict, and its body, bytes.

    Raises UserError for what cannot be answered.
    """

    def __init__(self, photos, probes):
        self.photos = photos
        self._probes = probes

    def health(self, _settings, _body):
        index = self.photos.index
        return {"photos": len(index), "shards": len(index.processes), "lists": index.content.facts["lists"],
                "processes": [known[-1] for known in index.processes]}

    def search(self, _settings, body):
        settings, index = read_object(body), self.photos.index
        vectors = read_vectors(settings.get("vectors"), index.content.query_length)
        options = self._options(settings, MOST_RESULTS // len(vectors))
        answers = [(scores[rows >= 0], rows[rows >= 0])  # the lists that were looked into may hold too few
                   for scores, rows in zip(*index.search(vectors, **options), strict=True)]
        return {"scores": [scores.tolist() for scores, _ in answers],
                "rows": [rows.tolist() for _, rows in answers],
                "paths": [[str(index.image_path(row)) for row in rows] for _, rows in answers]}

    def words(self, _settings, body):
        settings = read_object(body)
        words = settings.get("words")
        if not isinstance(words, str) or len(words) > MOST_LETTERS:
            raise UserError(f"words: expected a text of at most {MOST_LETTERS} letters, found {one_line(words)}")
        return as_answer(self.photos.by_words(words, **self._options(settings, MOST_RESULTS)))

    def photo(self, settings, body):
        settings = {key: int(value) if value.isdecimal() and len(value) < 10 else value
                    for key, value in settings.items()}
        options = self._options(settings, MOST_RESULTS)
        with tempfile.NamedTemporaryFile() as file:
            file.write(body)
            file.flush()
            return as_answer(self.photos.by_photo(file.name, name=str(settings.get("name", "the photo")), **options))

    def _options(self, settings, most):
        """Options of `Index.search`, for at most so many results a query."""
        return {"topk": whole_number(settings, "topk", search.DEFAULT_TOPK, most),
                "probes": whole_number(settings, "nprobe", self._probes, 10**9)}


def as_answer(results):
    return {"results": [asdict(result) for result in results]}


def whole_number(settings, name, default, most):
    """A setting from 1 to `most`; of one that is not there the default."""
    value = settings.get(name)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= most:
        raise UserError(f"{name}: expected a whole number from 1 to {most:,}, found {one_line(value)}")
    return value


def read_object(body):
    """The dict that a body of JSON holds."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"expected JSON, found something else ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"expected a JSON object, found {type(content).__name__}")
    return content


def read_vectors(given, length):
    """Queries, float32 (Q, length), from lists of numbers or from base64 of their bytes."""
    try:
        with np.errstate(over="ignore"):  # refused below
            if isinstance(given, str):
                vectors = np.frombuffer(base64.b64decode(given, validate=True), "<f4").reshape(-1, length)
            else:
                vectors = np.array(given, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"vectors: expected rows of {length} numbers ({one_line(error)})") from None
    if vectors.ndim != 2 or vectors.shape[1] != length or not len(vectors):
        raise UserError(f"vectors: expected rows of {length} numbers, found an array of shape {vectors.shape}")
    if not (np.abs(vectors) <= LARGEST).all():
        raise UserError(f"vectors: expected numbers from {-LARGEST:g} to {LARGEST:g}, found NaN or others")
    return vectors


# ---------------------------------------------------------------- HTTP

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


if __name__ == "__main__":
    run_program(main)
