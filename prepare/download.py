"""Downloads over HTTP that continue after an interruption, and MD5 sums.

A file gets its name only after it has been checked.
"""
import argparse
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request

from storage.files import sync
from util import UserError, progress

BLOCK = 2**18  # bytes read at a time
TIMEOUT = 60  # seconds without an answer
TRIES = 3  # after this many tries in a row that bring no new byte, the download fails
PAUSE = 2.0  # seconds between two tries


def source(given, known, url, option, check):
    """The path that was given, or the first of `known` that exists, or the last of them after a download.

    Args:
        given: the value of the option called `option`, or None.
        url: where to download the last of `known` from, or None if it is not to be downloaded.
        check: see `fetch`.
    Raises UserError.
    """
    if given is not None:
        if not given.exists():
            raise UserError(f"{given}: no such file or folder, expected {known[-1].name} or what it unpacks to")
        return given
    for path in known:
        if path.exists():
            return path
    if url is None:
        raise UserError(f"expected {option} with the path of {known[-1].name}, or --download")
    fetch(url, known[-1], check)
    return known[-1]


def fetch(url, path, check):
    """Download `url` to `<path>.part`, which a later call continues, and rename it to `path`. Raises UserError.

    Args:
        check: function of the path of the whole file, called before it is renamed; if it raises UserError, the file is
            removed.
    """
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    idle = 0
    while fault := _transfer(url, part):
        reason, progressed = fault
        idle = 0 if progressed else idle + 1
        if idle == TRIES:
            raise UserError(f"{url}: {reason}; run this again to continue {part}")
        time.sleep(PAUSE)
    try:
        check(part)
    except UserError as error:
        part.unlink()
        raise UserError(f"{error}; the file was removed, run this again to download it from the start") from error
    sync(part)
    os.replace(part, path)
    sync(path.parent)


def _transfer(url, part):
    """Download what `part` lacks. Returns None once it is whole, else (what went wrong, whether bytes arrived)."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            start = _start(url, response, have)
            length = response.headers.get("Content-Length", "")
            total = start + int(length) if length.isdecimal() else None
            _save(response, part, start, total)
    except urllib.error.HTTPError as error:
        return _refusal(url, error, part, have)
    except (OSError, http.client.HTTPException) as error:
        return f"the download failed ({getattr(error, 'reason', error)})", _size(part) > have
    size = _size(part)
    if total is not None and size < total:
        return f"the server ended after {size:,} of {total:,} bytes", size > have
    return None


def _start(url, response, have):
    """The offset of the first byte that the server sends: `have`, or 0 if it does not support ranges."""
    if response.status != 206:
        return 0
    content_range = response.headers.get("Content-Range", "")
    if not content_range.startswith(f"bytes {have}-"):
        raise UserError(f"{url}: asked for the bytes from {have} on, the server sent {content_range!r}")
    return have


def _save(response, part, start, total):
    with open(part, "ab" if start else "wb") as file, \
            progress(initial=start, total=total, unit="B", unit_scale=True, desc=part.stem) as bar:
        while block := response.read(BLOCK):
            file.write(block)
            bar.update(len(block))


def _refusal(url, error, part, have):
    """What `_transfer` returns after an HTTP error. Raises UserError if trying again cannot help."""
    if error.code == 416:  # the file has no bytes after those that are here
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return None
        part.unlink()  # longer than the file on the server, so it is part of another file
        return "the file on the server is not the one that was downloaded before", False
    if error.code < 500:
        raise UserError(f"{url}: the server answered {error.code} {error.reason}") from error
    return f"the server answered {error.code} {error.reason}", False


def _size(path):
    return path.stat().st_size if path.exists() else 0


def md5_digits(text):
    """An argparse type: an MD5 in hex."""
    if not re.fullmatch(r"[0-9a-fA-F]{32}", text):
        raise argparse.ArgumentTypeError(f"expected 32 hex digits, found {text!r}")
    return text.upper()


def md5(path):
    """MD5 of a file, 32 upper-case hex digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file, \
            progress(total=path.stat().st_size, unit="B", unit_scale=True, desc="checking MD5", leave=False) as bar:
        while block := file.read(2**20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest().upper()


def check_md5(path, expected):
    """Raise UserError if the file has another MD5 than expected."""
    found = md5(path)
    if found != expected.upper():
        raise UserError(f"{path}: expected MD5 {expected.upper()}, found {found}")
