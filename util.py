"""What every program shares: error messages, types of options, seeds, progress, work done ahead.

Nothing here loads TensorFlow, so that `--help` answers at once.
"""
import argparse
import collections
import contextlib
import gc
import itertools
import math
import os
import signal
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent
DIMENSIONS = 300  # D: length of a word vector, and so of an image embedding
MOST_CODEBOOKS = 8  # M is 1 to 8: 8 to 64 bits an image
SHOWN = 10  # at most this many errors are shown
CROPS = (10, 5, 2, 1)  # how many crops of an image may be embedded


# ---------------------------------------------------------------- errors and command lines

class UserError(Exception):
    """Something that the user can put right, in one sentence. Programs print it and exit with code 2."""


def first_few(texts):
    """The first of a list of texts, joined, and how many more there are."""
    more = len(texts) - SHOWN
    return "; ".join(texts[:SHOWN]) + (f"; and {more:,} more" if more > 0 else "")


def collect_garbage_seldom():
    """Collect garbage less often: otherwise Python spends a second on it while TensorFlow is imported."""
    gc.set_threshold(50_000, 20, 100)


def run_program(main):
    """Run `main()`. Bad input and failing files end in one sentence and exit code 2, not in a traceback."""
    collect_garbage_seldom()
    for stream_ in (sys.stdout, sys.stderr):
        stream_.reconfigure(errors="backslashreplace")  # a file's name need not be UTF-8
    try:
        main()
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def leads_out(name):
    """Whether a path is absolute or contains `..`."""
    return name.startswith("/") or (".." in name and ".." in name.split("/"))


def one_line(content):
    """An error, a shape or a type as text, on one line of at most 200 characters."""
    return " ".join(str(content).split())[:200] or type(content).__name__


def note(line):
    """Print a note, which is not an error, to stderr."""
    tqdm.write(f"note: {line}", file=sys.stderr)


class StopRequest:
    """Within its block, SIGTERM or Ctrl-C waits until the program reaches a good place to stop; a second one does not.

    Attributes:
        signal: the signal that was received, or None.
    """

    def __enter__(self):
        self.signal = None
        self._handlers = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _remember(self, number, _frame):
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __exit__(self, *_):
        self._restore()
        if self.signal is not None:
            sys.exit(128 + self.signal)


def number(kind, low=-math.inf, high=math.inf):
    """An argparse type: an int or a float with low <= value <= high."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)):
            noun = "a whole number" if kind is int else "a number"
            span = "" if low == -math.inf else f" of at least {low}" if high == math.inf else f" from {low} to {high}"
            raise argparse.ArgumentTypeError(f"expected {noun}{span}, found {text!r}")
        return value
    return parse


def gpu_number(text):
    """An argparse type for GPU: the number of a GPU, or None for the CPU (`-1` or `cpu`)."""
    if text in ("-1", "cpu"):
        return None
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a GPU number such as 0, or -1 or cpu, found {text!r}")


def add_shared_options(parser):
    """The options that every program has."""
    parser.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0,
                        help="seed of every random choice; two runs with the same seed are alike (default 0)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                        help="folder that holds data/, datasets/, checkpoints/ and logs/ "
                             "(default: this program's folder)")


# ---------------------------------------------------------------- seeds

def stream(seed, purpose, *numbers):
    """A NumPy generator that depends only on the seed, the purpose, and numbers such as the step.

    Random choices made this way have no state that would have to be saved and resumed.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])


def sample(vectors, most, rng):
    """All vectors, (N, …), or if there are more than `most`, a random sample of that size in their order."""
    if len(vectors) <= most:
        return vectors
    return vectors[np.sort(rng.choice(len(vectors), most, replace=False))]


# ---------------------------------------------------------------- vectors and steps

def unit_length(vectors):
    """Vectors scaled to length 1 along the last axis, of the same type; zero vectors stay as they are."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


def check_finite(step, finite):
    """Raise UserError for the first of `{name: bool}` that is not finite after a 1-based step."""
    for name, is_finite in finite.items():
        if not is_finite:
            raise UserError(f"step {step}: {name} holds NaN or infinite values, so the training has diverged; try a "
                            "lower learning rate, or --resume from the last state, if one was saved")


# ---------------------------------------------------------------- cores, progress and work done ahead

def cores():
    """How many processor cores this process may use, at least 1."""
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def progress(iterable=None, delay=2, disable=None, **options):
    """A tqdm bar on a terminal for what takes more than `delay` seconds; nothing in a file or a pipe."""
    return tqdm(iterable, disable=disable, dynamic_ncols=True, delay=delay, **options)


def advance(bar, loss):
    """Advance the `bar` of a training by one step, and show its loss."""
    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
    bar.update()


@contextlib.contextmanager
def counting(score, queries, what):
    """Give `score`, a function of a slice of `queries` queries, with a bar that counts the queries it has scored."""
    with progress(total=queries, desc=what, leave=False) as bar:
        def counted(chosen):
            found = score(chosen)
            bar.update(len(range(queries)[chosen]))
            return found
        yield counted


def prefetch(make, keys, ahead=1, workers=1):
    """An iterator over make(key) for each key in order; the next `ahead` ones are made in the background, by `workers`
    threads.

    The call itself begins the first ones, before any is asked for.
    """
    pool = ThreadPoolExecutor(workers)
    keys = iter(keys)
    pending = collections.deque(pool.submit(make, key) for key in itertools.islice(keys, ahead + 1))

    def results():
        try:
            while pending:
                made = pending.popleft().result()
                pending.extend(pool.submit(make, key) for key in itertools.islice(keys, 1))
                yield made
        finally:
            pool.shutdown(cancel_futures=True)
    return results()
