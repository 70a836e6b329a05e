"""TensorFlow's notes, on drivers that it does not find and the like, are kept from the terminal; its errors are not.

A user who sets TF_CPP_MIN_LOG_LEVEL sees all that this level lets through.
"""
import contextlib
import os
import subprocess
import sys

# Passes its input on, but not the notes and warnings that TensorFlow's libraries write before their logging is set up.
FILTER = r"""
import re, sys
for line in sys.stdin.buffer:
    if not re.match(rb"WARNING: All log messages before absl|[IW][0-9]{4} ", line):
        sys.stderr.buffer.write(line)
"""

QUIET = "3"  # which programs started by this one inherit; without drivers even 2 tells of them, errors are exceptions


@contextlib.contextmanager
def without_notes():
    """Within the block, in which TensorFlow is imported, what is written to stderr passes through FILTER.

    The filter is a process of its own, so that what a library says before it ends this process is heard too.
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", QUIET) != QUIET:
        yield
        return
    stderr = os.dup(2)
    try:
        with subprocess.Popen([sys.executable, "-ISc", FILTER], stdin=subprocess.PIPE) as passing:
            os.dup2(passing.stdin.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(stderr, 2)
    finally:
        os.close(stderr)
