"""The server's addresses, who may use them, and how answers and errors are sent.

    GET  /                                the page, with /page.js and /page.css; /docs describes the other addresses
    GET  /health
    POST /search   {"vectors": [[300 numbers], …] or their float32 bytes in base64, "topk": 20, "nprobe": 32}
    POST /words    {"words": "beach sunset", "topk": 20, "nprobe": 32}
    POST /photo?topk=20&nprobe=32&name=beach.jpg   with the file as the body, or in a form
    POST /tags, POST /embedding           with a photo in the same way
    POST /query                           what the page asks: see service.Service.query
    GET  /words?prefix=bea                learned tags that begin with the prefix
    GET  /photos/ROW/thumbnail, /photos/ROW, /photos/ROW/tags

Every error is JSON, {"error": sentence}. Only rows of the index and the files of page/ are opened, never a name that a
client sends. The answers come from service.py; connections.py limits what clients may send.
"""
import asyncio
import hmac
import json
import os
import sys
import tempfile
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from server import photos
from server.connections import MOST_JSON_BYTES, MOST_PHOTO_BYTES, Bodies, Refusal
from server.service import photo_name
from util import UserError, note, one_line

PAGE = Path(__file__).with_name("page")
PAGE_FILES = {"/": ("index.html", "text/html"), "/docs": ("docs.html", "text/html"),
              "/page.js": ("page.js", "text/javascript"), "/page.css": ("page.css", "text/css")}
RENEW_SECONDS = 2  # between checks whether the index was rewritten
EMBEDDED_AT_ONCE = 16  # photos whose requests are answered at the same time
COOKIE = "token"
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
                               "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",  # so that no other page shows the photos
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Json(JSONResponse):
    """An answer in ASCII JSON, since the name of a file need not be UTF-8."""

    def render(self, content):
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class WebApp:
    """The application that uvicorn runs.

    Args:
        open_service: returns the service.Service of the index; called again whenever the index was rewritten.
        names: host names that clients may use in addition to numeric addresses and localhost.
        token: what every client has to send, or None.

    Attributes:
        service: service.Service.
    """

    def __init__(self, open_service, names=(), token=None):
        self._open_service = open_service
        self.service = open_service()
        self._bodies = Bodies()
        self._thumbnails = photos.Thumbnails()
        self._searching = ThreadPoolExecutor(4, "searching")
        self._vectors = ThreadPoolExecutor(2, "vectors", give_way)  # separate, since thousands at once take long
        self._embedding = ThreadPoolExecutor(EMBEDDED_AT_ONCE, "embedding", give_way)
        self._large_photos = ThreadPoolExecutor(1, "large photos", give_way)  # separate, so that no other photo waits
        self._drawing = ThreadPoolExecutor(2, "thumbnails")
        self._page = {address: ((PAGE / name).read_bytes(), kind) for address, (name, kind) in PAGE_FILES.items()}
        starlette = Starlette(routes=self._routes(), exception_handlers={HTTPException: _http_error})
        self._app = Guard(starlette, names, token)

    async def __call__(self, scope, receive, send):
        await self._app(scope, receive, send)

    def _routes(self):
        get = {"/health": self.health, "/words": self.words_with,
               "/photos/{row:int}": partial(self.picture, side=photos.LARGE_SIDE),
               "/photos/{row:int}/thumbnail": partial(self.picture, side=photos.THUMBNAIL_SIDE),
               "/photos/{row:int}/tags": self.row, **dict.fromkeys(PAGE_FILES, self.page)}
        post = {"/search": self._from_json("search", self._vectors),
                "/words": self._from_json("words", self._searching),
                "/query": self._from_json("query", self._searching),
                **{f"/{method}": self._from_photo(method) for method in ("photo", "tags", "embedding")}}
        return [Route(path, answering(handler), methods=[method])
                for method, handlers in (("GET", get), ("POST", post)) for path, handler in handlers.items()]

    async def renew(self):
        """Open the index again whenever it was rewritten, for ever. If the new one is damaged, the old one stays."""
        reported = None
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                if await self._run(self._drawing, self.service.is_outdated):
                    self.service = await self._run(self._drawing, self._open_service)
                    note(f"the index was rewritten: {len(self.service.index):,} photos")
            except Exception as error:  # also of Ray: the server must try again and not stop without a word
                if str(error) != reported:
                    reported = str(error)
                    note(f"the server continues with the index that it has: {one_line(error)}")

    def close(self):
        """Cancel whatever has not begun yet."""
        for pool in (self._searching, self._vectors, self._embedding, self._large_photos, self._drawing):
            pool.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ answers

    async def page(self, request):
        content, kind = self._page[request.url.path]
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    async def health(self, _request):
        return Json(self.service.health())

    async def words_with(self, request):
        prefix = request.query_params.get("prefix", "")[:100]
        return Json(self.service.words_with(prefix))

    async def row(self, request):
        return await self._run(self._searching, _as_json, self.service.row, self._row_of(request))

    async def picture(self, request, side):
        """A photo of the index as a JPEG, or the status 304 if the client has it already."""
        path = self.service.image_path(self._row_of(request))
        try:
            headers = {"ETag": f'"{self._thumbnails.tag(path, side)}"', "Cache-Control": "private, no-cache"}
            if request.headers.get("if-none-match") == headers["ETag"]:
                return Response(status_code=304, headers=headers)
            picture = await self._run(self._drawing, self._thumbnails.picture, path, side)
        except OSError:
            raise Refusal(404, f"{path} is no longer there") from None
        if picture is None:
            raise Refusal(404, f"{path} is not an image that OpenCV reads")
        return Response(picture, media_type="image/jpeg", headers=headers)

    def _row_of(self, request):
        """The row in the address of a request. Raises Refusal if the index does not have it."""
        row = request.path_params["row"]
        if row >= len(self.service.index):
            raise Refusal(404, f"photo {row}: the index has photos 0 to {len(self.service.index) - 1}")
        return row

    def _from_json(self, method, pool):
        """A handler that passes a body of JSON to a method of the service."""
        async def answer(request):
            kind = request.headers.get("content-type", "none").partition(";")[0].strip().lower()
            async with self._bodies.read(request, MOST_JSON_BYTES) as body:
                if kind != "application/json":
                    raise Refusal(415, f"expected Content-Type application/json, found {one_line(kind)}")
                return await self._run(pool, _as_json, getattr(self.service, method), body)
        return answer

    def _from_photo(self, method):
        """A handler that passes the file of a photo, and the settings in the address, to a method of the service."""
        async def answer(request):
            settings = dict(urllib.parse.parse_qsl(request.url.query, errors="surrogateescape"))
            async with self._bodies.read(request, MOST_PHOTO_BYTES) as content:
                if request.headers.get("content-type", "").startswith("multipart/"):
                    content, fields = await read_form(request.headers, content)
                    settings |= fields
                with tempfile.NamedTemporaryFile() as file:
                    path = Path(file.name)
                    await self._run(self._drawing, path.write_bytes, content)
                    if not photos.is_ordinary(content):
                        await self._run(self._large_photos, photos.make_ordinary, path, photo_name(settings))
                    return await self._run(self._embedding, _as_json, getattr(self.service, method), path, settings)
        return answer

    async def _run(self, pool, function, *arguments):
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)


def give_way():
    """Let a thread, and those that it starts, run only when others are idle, so that words do not wait for photos.

    On Linux every thread has a priority of its own; elsewhere this would change that of the whole process.
    """
    if sys.platform == "linux":
        os.nice(10)


def _as_json(answer, *arguments):
    """What a method of the service answers, encoded in the thread that calls it, since many results take long."""
    return Json(answer(*arguments))


async def read_form(headers, body):
    """The first file of a form, bytes, and its other fields {name: text}. The file's name is the setting `name`."""
    async def stream():
        yield body
    try:
        form = await MultiPartParser(headers, stream(), max_files=1, max_fields=10, max_part_size=10_000).parse()
    except MultiPartException as error:
        raise UserError(f"expected a form with one file ({one_line(error.message)})") from None
    fields = {name: value for name, value in form.items() if isinstance(value, str)}
    files = [value for value in form.values() if not isinstance(value, str)]
    if not files:
        raise UserError("expected a form with one file, found none")
    content = await files[0].read()
    await files[0].close()
    return content, {"name": files[0].filename, **fields}


# ---------------------------------------------------------------- errors

def answering(handler):
    """The handler, whose exceptions become answers in JSON."""
    async def answer(request):
        try:
            return await handler(request)
        except ClientDisconnect:
            return Response()  # nobody receives it
        except asyncio.CancelledError:
            return refused(503, "the server is shutting down")
        except UserError as error:
            return refused(getattr(error, "status", 400), str(error))
        except Exception as error:  # a fault of the server, which continues to answer others
            note(f"the server failed: {one_line(error)}")
            return refused(500, f"the server failed: {one_line(error)}")
    return answer


async def _http_error(request, error):
    """The answer to an unknown address or a method that the address does not have."""
    asked = f"{request.method} {one_line(request.url.path)}"
    sentences = {404: f"{asked}: unknown address; GET /docs lists those that are answered",
                 405: f"{asked}: expected {(error.headers or {}).get('Allow')}"}
    return refused(error.status_code, sentences.get(error.status_code, str(error.detail)), error.headers)


def refused(status, sentence, headers=None):
    """An answer {"error": sentence}. It ends the connection if the body of the request may not have been read."""
    close = {"Connection": "close"} if status in (408, 411, 413, 503) else {}
    return Json({"error": sentence}, status, headers={**(headers or {}), **close})


# ---------------------------------------------------------------- who may ask

class Guard:
    """Passes on only requests from the server's own page or from a program, and adds SECURITY to every answer.

    A page of another site must neither read answers by pointing its own name at this machine (DNS rebinding) nor send
    requests. So Host must be a numeric address, localhost or one of `names`, and the Origin of a POST, if it has one,
    must be the server itself.
    """

    def __init__(self, app, names, token):
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}
        self._token = token

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_secured(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"],
                                      *((name.lower().encode(), value.encode()) for name, value in SECURITY.items())]
            await send(message)
        request = Request(scope, receive)
        answer = self._refuse(request) or self._app
        await answer(scope, receive, send_secured)

    def _refuse(self, request):
        """An answer to those who may not ask, or None."""
        hosts = request.headers.getlist("host")
        host = hosts[0] if len(hosts) == 1 else ""
        if not self._is_own(host):
            return refused(421, f"expected the Host {' or '.join(sorted(self._names))} or a numeric address, found "
                                f"{one_line(host)}")
        origin = request.headers.get("origin")
        if request.method not in ("GET", "HEAD") and origin not in (None, f"{request.url.scheme}://{host}"):
            return refused(403, f"expected a request from this server's own page, found one from {one_line(origin)}")
        return self._refuse_without_token(request) if self._token else None

    def _is_own(self, host):
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname if host.isascii() and "/" not in host else None
        except ValueError:  # brackets around something else than an IPv6 address
            name = None
        return name is not None and (name.replace(".", "").isdecimal() or ":" in name or name in self._names)

    def _refuse_without_token(self, request):
        """The token comes as `Authorization: Bearer TOKEN`, in a cookie, or once as ?token= in the page's address."""
        if (shown := request.query_params.get("token")) is not None and request.url.path == "/":
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, shown, httponly=True, samesite="strict", max_age=365 * 24 * 3600)
            return answer if self._is_token(shown) else refused(401, "this is not the server's token")
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if self._is_token(bearer) or self._is_token(request.cookies.get(COOKIE, "")):
            return None
        return refused(401, "expected the server's token: open the address that the server printed, or send "
                            "Authorization: Bearer TOKEN")

    def _is_token(self, shown):
        return hmac.compare_digest(shown.encode(errors="replace"), self._token.encode())
