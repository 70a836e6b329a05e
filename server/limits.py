"""Bounds on what a request may send, so that no client uses up the server's memory or time.

Bodies are read here and nowhere else. What bounds connections is another room's, web_server.py.
"""
import asyncio

from starlette.requests import ClientDisconnect

from util import UserError, one_line

MOST_JSON_BYTES = 16 * 2**20  # of a body of JSON
MOST_PHOTO_BYTES = 32 * 2**20  # of a photo, and of the form around it
MOST_BYTES_TOGETHER = 256 * 2**20  # of all bodies that are held at one time
BODY_SECONDS = 60  # in which a body has to arrive
DROP_SECONDS = 2  # for which a refused body is still read, since who is sending would not see the answer otherwise


class Refusal(UserError):
    """What the server does not answer: an HTTP status and a sentence."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


class Bodies:
    """Reads the bodies of requests and counts the bytes that all of them hold together."""

    def __init__(self):
        self._held = 0

    async def read(self, request, most, size=0):
        """The body of a request, bytes; the caller calls `release` once it needs it no more.

        Raises Refusal for a body without a sound Content-Length or above `most` bytes, for one that takes too long, and
        where all bodies together are too many; ClientDisconnect for one that ends early.
        """
        chunks, length = [], await self._length(request, most)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    self._held += len(chunk)
                    size += len(chunk)
                    chunks.append(chunk)
                    if self._held > MOST_BYTES_TOGETHER:
                        raise Refusal(503, "the server holds too many requests at the moment: try again")
            if size < length:
                raise ClientDisconnect
        except BaseException as error:
            self._held -= size
            chunks.clear()
            if isinstance(error, TimeoutError):
                raise Refusal(408, f"the body of the request did not arrive within {BODY_SECONDS} seconds") from None
            if isinstance(error, Refusal):
                await drop_body(request)
            raise
        return b"".join(chunks)

    def release(self, body):
        self._held -= len(body)

    async def _length(self, request, most):
        """The Content-Length of a request."""
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
    try:
        async with asyncio.timeout(DROP_SECONDS):
            while (await request.receive()).get("more_body"):
                pass
    except TimeoutError:
        pass
