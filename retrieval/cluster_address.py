"""The address of a Ray cluster: its option type, and whether anything listens there. Light: Ray is not imported."""
import argparse
import socket

from util import UserError, one_line

ANSWER_SECONDS = 12  # in which a cluster has to answer


def ray_address(text):
    """An argparse type: `local`, `auto` or HOST:PORT."""
    host, _, port = text.rpartition(":")
    if text in ("auto", "local") or (host and "/" not in host and port.isdecimal() and int(port) < 2**16):
        return text
    raise argparse.ArgumentTypeError(f"expected local, auto or HOST:PORT, found {text!r}")


def check_reachable(address):
    """Raise UserError if nothing listens at HOST:PORT. Programs ask this before they load anything that takes long."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except OSError as error:
        raise UserError(f"there is no Ray cluster at {address}: {one_line(error)}") from error
