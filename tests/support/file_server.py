"""A server of files for the tests of downloads, on this machine alone."""
import contextlib
import http.server
import threading


class Server:
    """A server of files that can break off, know no ranges, or be busy; `asked`: (path, Range) of each request."""

    def __init__(self, files):
        self.files, self.asked = files, []
        self.break_after, self.ranges, self.busy = [], True, 0
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"

    def answer(self, request):
        asked = request.headers.get("Range")
        self.asked.append((request.path[1:], asked))
        content = self.files.get(request.path[1:])
        if self.busy or content is None:
            request.send_error(503 if self.busy else 404)
            self.busy = max(0, self.busy - 1)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if start and start >= len(content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        sent = self.break_after.pop(0) if self.break_after else len(content)
        request.wfile.write(content[start:start + sent])


@contextlib.contextmanager
def serving(files):
    """A Server of `{name: bytes}` that runs until the block ends."""
    server = Server(files)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()
