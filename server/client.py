"""A client of `search.py serve`: it searches the server's index over HTTP like one on this machine."""
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import msgspec

from retrieval.searcher import DEFAULT_TOPK, Result
from util import UserError, one_line

ANSWER_SECONDS = 120  # that a server may take: a photo may wait for many others


class Answer(msgspec.Struct):
    """What is used of a server's answer to a query."""
    results: list[Result]


class Refused(UserError):
    """What a server says about a query that it cannot answer."""


class Remote:
    """An index on a server, searched as by `searcher.Photos`. The paths in its answers are the server's.

    Of its methods, `probes` is the number of inverted lists to search, or None for the server's default.
    """

    def __init__(self, address, token=None):
        self._url = address if address.startswith(("http://", "https://")) else f"http://{address}"
        self._authorization = {"Authorization": f"Bearer {token}"} if token else {}

    def by_photo(self, photo, topk=DEFAULT_TOPK, probes=None):
        """The photos most like the photo at a path, best first: a list of Result."""
        if not isinstance(photo, str | os.PathLike):
            raise UserError(f"expected the path of a photo, found {type(photo).__name__}")
        photo = Path(photo)
        settings = {"topk": topk, "nprobe": probes, "name": os.fsencode(photo.name)}
        return self._ask("photo?" + urllib.parse.urlencode({key: value for key, value in settings.items()
                                                            if value is not None}), photo.read_bytes(),
                         "application/octet-stream")

    def by_photos(self, paths, topk=DEFAULT_TOPK, probes=None):
        """Yield for each of many paths the path and what `by_photo` returns for it, or the UserError that says why not.

        Raises UserError if no server answers.
        """
        for path in paths:
            try:
                yield path, self.by_photo(path, topk, probes)
            except Refused as error:
                yield path, error
            except OSError as error:
                yield path, UserError(f"{path} cannot be read ({error.strerror})")

    def by_words(self, words, topk=DEFAULT_TOPK, probes=None):
        """The photos that one or more words describe best, best first: a list of Result."""
        return self._ask("words", json.dumps({"words": words, "topk": topk, "nprobe": probes}).encode(),
                         "application/json")

    def _ask(self, path, body, kind):
        """A list of Result. Raises Refused if the server refuses the query, UserError if no server answers it."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            request = urllib.request.Request(f"{self._url.rstrip('/')}/{path}", body,
                                             {"Content-Type": kind, **self._authorization})
            with direct.open(request, timeout=ANSWER_SECONDS) as answer:
                return msgspec.convert(json.load(answer), Answer).results
        except urllib.error.HTTPError as error:
            raise (Refused if error.code in (400, 413) else UserError)(_refusal(error)) from None
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"{self._url}: no server answered: {one_line(getattr(error, 'reason', error))}") from None
        except (ValueError, RecursionError, msgspec.ValidationError) as error:
            raise UserError(f"{self._url}: expected an answer from `search.py serve`, found something else "
                            f"({one_line(error)})") from None


def _refusal(error):
    """The sentence in a server's HTTPError."""
    try:
        return str(json.load(error)["error"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, http.client.HTTPException):
        return f"{error.url}: {error}"
