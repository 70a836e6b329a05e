"""The token that a server may ask of its clients: an option of serve.py and of search.py. Light, for `--help`."""
import argparse
import os
import re

VARIABLE = "WSDHQ_TOKEN"  # of the environment, which other users of the machine cannot see as they see options


def add_token(parser, purpose):
    """Add the option --token to a parser. purpose: what the token is for, in words."""
    parser.add_argument("--token", type=_token, default=os.environ.get(VARIABLE) or None, metavar="TOKEN",
                        help=f"{purpose} (default: the environment variable {VARIABLE}, which does not stand in the "
                             "list of processes)")


def _token(text):
    if not re.fullmatch(r"[\w.~-]+", text, re.ASCII):  # so that it can stand in an address
        raise argparse.ArgumentTypeError("expected letters, digits, and - . _ ~ only")
    return text
