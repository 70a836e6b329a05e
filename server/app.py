"""The server's side of HTTP: which addresses there are, who may ask, and how answers and errors are sent.

    GET  /                                the page, with /page.js and /page.css; /docs describes the addresses below
    GET  /health
    POST /search   {"vectors": [[300 numbers], …] or their float32 bytes in base64, "topk": 20, "nprobe": 32}
    POST /words    {"words": "beach sunset", "topk": 20, "nprobe": 32}
    POST /photo?topk=20&nprobe=32&name=beach.jpg   with the file as the body, or in a form
    POST /tags, POST /embedding           with a photo in the same way
    POST /query                           what the page asks: see answers.Service.query
    GET  /words?prefix=bea                learned tags that begin so
    GET  /photos/ROW/thumbnail, /photos/ROW, /photos/ROW/tags

Errors are JSON, {"error": sentence}, whatever was asked. No file is opened by a name that a client sends: only rows of
the index, and the files of page/. What is answered is another room's, answers.py; connections are web_server.py's.
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
from server.limits import MOST_JSON_BYTES, MOST_PHOTO_BYTES, Bodies, Refusal
from server.thumbnails import SIDES, Thumbnails
from util import UserError, cores, note, one_line

PAGE = Path(__file__).with_name("page")
PAGE_FILES = {"/": ("index.html", "text/html"), "/docs": ("docs.html", "text/html"),
              "/page.js": ("page.js", "text/javascript"), "/page.css": ("page.css", "text/css")}
RENEW_SECONDS = 2  # between looks at whether the index was written again
COOKIE = "token"
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
                               "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",  # no other page shows the photos
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Json(JSONResponse):
    """An answer in JSON of ASCII letters, since a file's name need not be UTF-8."""

    def render(self, content):
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class WebApp:
    """The application that uvicorn runs.

    Args:
        open_service: gives the answers.Service; called again whenever the index was written again.
        names: host names that clients may use besides addresses in numbers and localhost.
        token: what every client has to show, or None.

    Attributes:
        service: answers.Service.
    """

    def __init__(self, open_service, names=(), token=None):
        self._open_service = open_service
        self.service = open_service()
        self._bodies = Bodies()
        self._thumbnails = Thumbnails()
        self._searching = ThreadPoolExecutor(4, "searching")
        self._vectors = ThreadPoolExecutor(2, "vectors", give_way)  # apart, as many at once take long
        self._embedding = ThreadPoolExecutor(cores() + 1, "embedding", give_way)
        self._large_photos = ThreadPoolExecutor(1, "large photos", give_way)  # apart, so that no other photo waits
        self._drawing = ThreadPoolExecutor(2, "thumbnails")
        self._page = {address: ((PAGE / name).read_bytes(), kind) for address, (name, kind) in PAGE_FILES.items()}
        starlette = Starlette(routes=self._routes(), exception_handlers={HTTPException: _http_error})
        self._app = Guard(starlette, names, token)

    async def __call__(self, scope, receive, send):
        await self._app(scope, receive, send)

    def _routes(self):
        get = {"/health": self.health, "/photos/{row:int}": self.large, "/photos/{row:int}/thumbnail": self.thumbnail,
               "/photos/{row:int}/tags": self.row, **dict.fromkeys(PAGE_FILES, self.page)}
        post = {"/search": self._from_json("search", self._vectors), "/photo": self._from_photo("photo"),
                "/tags": self._from_photo("tags"), "/embedding": self._from_photo("embedding"),
                "/query": self._from_json("query", self._searching)}
        words = self._from_json("words", self._searching)
        return [Route("/words", answering(self.words_with), methods=["GET"]),
                Route("/words", answering(words), methods=["POST"]),
                *(Route(path, answering(answer), methods=["GET"]) for path, answer in get.items()),
                *(Route(path, answering(answer), methods=["POST"]) for path, answer in post.items())]

    async def renew(self):
        """Open the index again whenever it was written again, for ever. One that is damaged leaves the old one."""
        told = None
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                if await self._run(self._drawing, self.service.is_outdated):
                    self.service = await self._run(self._drawing, self._open_service)
                    note(f"the index was written again: {len(self.service.index):,} photos")
            except (UserError, OSError) as error:
                if str(error) != told:
                    told = str(error)
                    note(f"the server goes on with the index as it was: {told}")

    def close(self):
        """Begin nothing more of what still waits."""
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
        return await self._run(self._searching, _as_json, self._known(self.service.row, request))

    async def thumbnail(self, request):
        return await self._picture(request, SIDES["thumbnail"])

    async def large(self, request):
        return await self._picture(request, SIDES["large"])

    async def _picture(self, request, side):
        """A photo of the index as a JPEG, or that the client has it already."""
        path = self._known(self.service.image_path, request)()
        try:
            headers = {"ETag": f'"{self._thumbnails.tag(path, side)}"', "Cache-Control": "private, no-cache"}
            if request.headers.get("if-none-match") == headers["ETag"]:
                return Response(status_code=304, headers=headers)
            picture = await self._run(self._drawing, self._thumbnails.picture, path, side)
        except OSError:
            raise Refusal(404, f"{path} is not there any more") from None
        if picture is None:
            raise Refusal(404, f"{path} is not an image that OpenCV reads")
        return Response(picture, media_type="image/jpeg", headers=headers)

    def _known(self, answer, request):
        """`answer` of the row in a request's address. Raises Refusal where the index does not have it."""
        row = request.path_params["row"]
        if row >= len(self.service.index):
            raise Refusal(404, f"photo {row}: the index has photos 0 to {len(self.service.index) - 1}")
        return partial(answer, row)

    def _from_json(self, method, pool):
        """A handler that gives a body of JSON to a method of the service."""
        async def answer(request):
            kind = request.headers.get("content-type", "none").partition(";")[0].strip().lower()
            body = await self._bodies.read(request, MOST_JSON_BYTES)
            try:
                if kind != "application/json":
                    raise Refusal(415, f"expected Content-Type application/json, found {one_line(kind)}")
                return await self._run(pool, _as_json, getattr(self.service, method), body)
            finally:
                self._bodies.release(body)
        return answer

    def _from_photo(self, method):
        """A handler that gives the file of a photo, and the settings in its address, to a method of the service."""
        async def answer(request):
            body = await self._bodies.read(request, MOST_PHOTO_BYTES)
            try:
                content, settings = body, dict(urllib.parse.parse_qsl(request.url.query, errors="surrogateescape"))
                if request.headers.get("content-type", "").startswith("multipart/"):
                    content, fields = await read_form(request.headers, body)
                    settings |= fields
                with tempfile.NamedTemporaryFile() as file:
                    path = Path(file.name)
                    await self._run(self._drawing, path.write_bytes, content)
                    if not photos.is_ordinary(content):
                        name = one_line(settings.get("name") or "the photo")
                        await self._run(self._large_photos, photos.make_ordinary, path, name)
                    return await self._run(self._embedding, _as_json, getattr(self.service, method), path, settings)
            finally:
                self._bodies.release(body)
        return answer

    async def _run(self, pool, function, *arguments):
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)


def give_way():
    """Let a thread, and those that it starts, run only while others have nothing to do: words do not wait for photos.

    On Linux a thread has a priority of its own; elsewhere this would be the whole process's.
    """
    if sys.platform == "linux":
        os.nice(10)


def _as_json(answer, *arguments):
    """What a method of the service answers. Made in the thread that calls it, since many results take long."""
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
    """The handler with what it raises as JSON."""
    async def answer(request):
        try:
            return await handler(request)
        except ClientDisconnect:
            return Response()  # to nobody
        except asyncio.CancelledError:
            return refused(503, "the server has come to its end")
        except UserError as error:
            return refused(getattr(error, "status", 400), str(error))
        except Exception as error:  # of the server, which goes on for the others
            note(f"the server failed: {one_line(error)}")
            return refused(500, f"the server failed: {one_line(error)}")
    return answer


async def _http_error(request, error):
    """What Starlette refuses: an address or a method that there is not."""
    asked = f"{request.method} {one_line(request.url.path)}"
    sentences = {404: f"{asked}: no such question; GET /docs tells what is answered",
                 405: f"{asked}: expected {(error.headers or {}).get('Allow')}"}
    return refused(error.status_code, sentences.get(error.status_code, str(error.detail)), error.headers)


def refused(status, sentence, headers=None):
    """An answer {"error": sentence}. The connection ends where the body of the request may not have been read."""
    close = {"Connection": "close"} if status in (408, 411, 413, 503) else {}
    return Json({"error": sentence}, status, headers={**(headers or {}), **close})


# ---------------------------------------------------------------- who may ask

class Guard:
    """Lets requests through that the server's own page or a program may send, and puts SECURITY into every answer.

    A page of another site must neither read answers by pointing its own name at this machine (DNS rebinding) nor send
    requests. So Host has to be an address in numbers, localhost or one of `names`; and the Origin of a POST, where
    there is one, the server itself.
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
        """An answer to who may not ask, or None."""
        hosts = request.headers.getlist("host")
        host = hosts[0] if len(hosts) == 1 else ""
        if not self._is_own(host):
            return refused(421, f"expected the Host {' or '.join(sorted(self._names))} or an address in numbers, found "
                                f"{one_line(host)}")
        origin = request.headers.get("origin")
        if request.method not in ("GET", "HEAD") and origin not in (None, f"{request.url.scheme}://{host}"):
            return refused(403, f"expected a request of this server's own page, found one of {one_line(origin)}")
        return self._refuse_without_token(request) if self._token else None

    def _is_own(self, host):
        name = urllib.parse.urlsplit(f"//{host}").hostname if host.isascii() and "/" not in host else None
        numbers = (name or "").replace(".", "").isdecimal() or ":" in (name or "")
        return numbers or (name or "").lower() in self._names

    def _refuse_without_token(self, request):
        """The token comes as `Authorization: Bearer TOKEN`, in a cookie, or once as ?token= in the page's address."""
        if (shown := request.query_params.get("token")) is not None and request.url.path == "/":
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, shown, httponly=True, samesite="strict", max_age=365 * 24 * 3600)
            return answer if self._is_token(shown) else refused(401, "this is not the server's token")
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if self._is_token(bearer) or self._is_token(request.cookies.get(COOKIE, "")):
            return None
        return refused(401, "expected the server's token: open the address that it printed, or send it as "
                            "Authorization: Bearer TOKEN")

    def _is_token(self, shown):
        return hmac.compare_digest(shown.encode(errors="replace"), self._token.encode())
