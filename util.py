"""What every program here shares: errors for people, seeds, experiment names, logging and safe files.

No TensorFlow in this file, so that `--help` answers at once.
"""
import argparse
import collections
import contextlib
import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import logging
import math
import os
import pickle
import platform
import shutil
import signal
import subprocess
import sys
import tokenize
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

import plain_pickle

ROOT = Path(__file__).resolve().parent
DIMENSIONS = 300  # D: length of a word vector, and so of an image embedding
MOST_CODEBOOKS = 8  # M is 1 to 8: 8 to 64 bits an image
SHOWN = 10  # of many faults, so many are told
PRECISIONS = ("float32", "bfloat16")  # the first is the default, and that of files from before there was a choice


# ---------------------------------------------------------------- errors and command lines

class UserError(Exception):
    """Something the user can put right, told in one sentence. Programs print it and exit with code 2."""


def first_few(texts):
    """The first of a list of texts in one, and how many more there are."""
    more = len(texts) - SHOWN
    return "; ".join(texts[:SHOWN]) + (f"; and {more:,} more" if more > 0 else "")


def run_program(main):
    """Run `main()`; bad input and failing files end in one sentence and exit code 2, not in a traceback."""
    for stream_ in (sys.stdout, sys.stderr):
        stream_.reconfigure(errors="backslashreplace")  # a file's name need not be UTF-8
    try:
        main()
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def one_line(content):
    """An error, a shape or a type in words, on one line that is not too long."""
    return " ".join(str(content).split())[:200] or type(content).__name__


def note(line):
    """Tell the person at the terminal of something that is no error."""
    tqdm.write(f"note: {line}", file=sys.stderr)


class StopRequest:
    """Within its block, SIGTERM and Ctrl-C wait until the program comes to a good place to stop; a second one does not.

    Attributes:
        signal: the signal that came, or None.
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


def gpu_numbers(text):
    """The same for programs that can use several: then a list of their numbers, of `0,1` say."""
    if "," not in text:
        return gpu_number(text)
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected GPU numbers such as 0,1, found {text!r}")
    numbers = [int(part) for part in parts]
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"expected each GPU once, found {text!r}")
    return numbers


def add_precision(parser):
    """The option --precision."""
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0],
                        help="bfloat16: convolutions and matrix products in half the bits (on a GPU float16), which is "
                             "faster where the processor has instructions for it; weights, Adam's state and losses "
                             "keep theirs (default float32)")


def add_shared_options(parser):
    """The options that every program has."""
    parser.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0,
                        help="drives every random choice; two runs with one seed are alike (default 0)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                        help="folder that holds data/, datasets/, checkpoints/ and logs/ "
                             "(default: this program's folder)")


# ---------------------------------------------------------------- seeds

def stream(seed, purpose, *numbers):
    """A NumPy generator that depends on nothing but the seed, what it is for, and (say) the step.

    Random choices made this way need no state of their own to be resumed.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])


# ---------------------------------------------------------------- experiments

def experiment_name(dataset, loss, codebooks, fixed_margin, margin, gamma, lambda_, notes):
    """The name that log, checkpoint and h5 of one experiment share, as the release spells it."""
    def short(value):
        return str(int(value)) if value == int(value) else str(value)
    form = f"fixMargin_margin={short(margin)}" if fixed_margin else f"adaMargin_gamma={short(gamma)}"
    return f"{dataset}_{loss}_nbits={8 * codebooks}_{form}_lambda={float(lambda_)}_{notes}"


def open_log(path):
    """The program's logger: lines with a time stamp, appended to `path` and shown above any progress bar.

    Raises UserError while another run has the log, which is of the same experiment then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    log = logging.getLogger("wsdhq")
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    for handler in (_LogFile(path, encoding="utf-8"), _ConsoleHandler()):
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
    return log


def lock(file, sentence):
    """Keep a file to this process while it is open. Raises UserError, saying `sentence`, if another has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it however we end
    except BlockingIOError:
        raise UserError(sentence) from None


class _LogFile(logging.FileHandler):
    def __init__(self, path, **options):
        super().__init__(path, **options)
        try:
            lock(self.stream, f"{path}: another run of this experiment is at work; NOTES tell two apart")
        except UserError:
            self.close()
            raise

    def handleError(self, _record):
        raise  # what writing the record raised, such as a full disk


class _ConsoleHandler(logging.Handler):
    def emit(self, record):
        tqdm.write(self.format(record))
        sys.stdout.flush()


def progress(iterable=None, **options):
    """A tqdm bar for what takes over two seconds where a person watches; nothing in a file or a pipe."""
    return tqdm(iterable, disable=None, dynamic_ncols=True, delay=2, **options)


def made_ahead(make, keys, ahead=1):
    """An iterator over make(key) for each key in order; the next `ahead` ones are made in the background.

    The first are begun by the call itself, before anyone asks for them.
    """
    pool = ThreadPoolExecutor(1)
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


def provenance(files):
    """What a result depends on beside its options: versions, the commit and the SHA-256 of `{name: path}`."""
    packages = ("tensorflow", "numpy", "scipy", "scikit-learn", "h5py", "opencv-python", "gensim")
    return {
        "versions": {"python": platform.python_version(),
                     **{name: importlib.metadata.version(name) for name in packages}},
        "git_commit": _git_commit(),
        "fingerprints": {name: fingerprint(path) for name, path in files.items()},
    }


def _git_commit():
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40"],
                              cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def fingerprint(path):
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- safe files: writing

SEAL = "sha256.json"  # in a folder that was written whole


@contextlib.contextmanager
def replacing(path):
    """Give a temporary name beside `path`; when the block ends well, sync it and rename it to `path`.

    Whatever `path` held before stays whole until then, and stays if the block fails.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def sealing(seal, record, *paths):
    """As `replacing` for several files of one folder; the JSON `seal` then holds the record and their SHA-256.

    Gives a temporary name for each path. The old seal goes before the first file is renamed and the new one comes
    after the last, so that no file ever stands beside the seal of another.
    """
    with contextlib.ExitStack() as stack:
        new_seal = stack.enter_context(replacing(seal))
        temporaries = [stack.enter_context(replacing(path)) for path in paths]
        yield temporaries
        digests = {path.name: fingerprint(temporary) for path, temporary in zip(paths, temporaries, strict=True)}
        new_seal.write_text(_as_json({**record, "sha256": digests}), encoding="utf-8")
        for temporary in (*temporaries, new_seal):
            sync(temporary)
        seal.unlink(missing_ok=True)


def check_seal(seal):
    """Whether the JSON `seal` tells the SHA-256 of files beside it. Raises UserError if one is missing or altered."""
    digests = read_json(seal).get("sha256") if seal.is_file() else None
    if not isinstance(digests, dict):
        return False
    for name, digest in digests.items():
        path = seal.parent / Path(name).name
        if not path.is_file():
            raise UserError(f"{path}: no such file, but {seal.name} names it")
        if fingerprint(path) != digest:
            raise UserError(f"{path} was altered since it was written: its SHA-256 is not the one in {seal.name}")
    return True


@contextlib.contextmanager
def replacing_folder(path):
    """The same for a folder of files: give a new folder beside `path`; when the block ends well, it becomes `path`.

    SEAL in it holds the SHA-256 of each file that the block wrote.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        digests = {part.name: fingerprint(part) for part in sorted(temporary.iterdir())}
        (temporary / SEAL).write_text(_as_json({"sha256": digests}), encoding="utf-8")
        for part in [*temporary.iterdir(), temporary]:
            sync(part)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path):
    """Have the operating system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path, text):
    """Replace `path` by `text` (UTF-8)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # a file's name need not be UTF-8


def write_json(path, content):
    """Replace `path` by `content` as JSON that people can read."""
    write_text(path, _as_json(content))


def _as_json(content):
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def read_json(path):
    """The dict in a JSON file. Raises UserError for anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON, found something else ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def check_settings(path, settings, defaults=None):
    """Raise UserError unless the JSON file `path`, among what a run saved, holds the `settings` of the resuming run.

    `defaults`: of settings that older files lack.
    """
    stored = read_json(path)
    saved = {key: stored.get(key, (defaults or {}).get(key)) for key in stored.keys() | settings.keys()}
    differing = sorted(key for key in saved if saved[key] != settings.get(key))
    if differing:
        raise UserError(f"{path.parent} was saved with other settings: " + "; ".join(
            f"{key} was {saved[key]}, now {settings.get(key)}" for key in differing))


def write_weights(path, weights, record=None):
    """Replace `path` by `{layer: [kernel, bias], "C": codebooks}` in the release's `.npy` format, sealed with `record`.

    A 0-d object array whose pickle is protocol 4 and says `numpy.core`, so NumPy 1.19 reads it too.
    """
    path = Path(path)
    with sealing(path.with_suffix(".json"), record or {}, path) as (temporary,), open(temporary, "wb") as file:
        array = np.array(weights, dtype=object)
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        _ReleasePickler(file, protocol=4).dump(array)


class _ReleasePickler(pickle._Pickler):
    """Names NumPy's functions as NumPy 1 did; the C pickler has no place to say so."""

    def save_global(self, obj, name=None):
        module = getattr(obj, "__module__", "")
        if not module.startswith("numpy._core."):
            return super().save_global(obj, name)
        self.save(module.replace("numpy._core.", "numpy.core.", 1))
        self.save(name or obj.__qualname__)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)


# ---------------------------------------------------------------- safe files: reading

def read_pickle(path):
    """The content of a pickle of NumPy arrays and plain containers. Raises UserError for anything else."""
    with _open(path) as file:
        return _unpickle(file, path)


def read_npy(path, mapped=False):
    """The array in an `.npy` file; for a 0-d object array, the object in it. Raises UserError.

    `mapped`: plain values stay on the disk and are read as they are used.
    """
    with _open(path) as file:
        shape, dtype = _read_npy_header(file, path)
        if not dtype.hasobject:
            if mapped and all(shape):
                return np.load(path, mmap_mode="r", allow_pickle=False)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
        array = _unpickle(file, path)
    if not (isinstance(array, np.ndarray) and array.shape == shape):
        raise UserError(f"{path}: expected an array of shape {one_line(shape)}, found a damaged file")
    return array.item() if shape == () else array


def _read_npy_header(file, path):
    """Shape and dtype of an `.npy` file whose values are plain and of just as many bytes as follow, or objects."""
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0,
                       (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read_header(file)
        if not (dtype.itemsize and all(0 <= length < 2**63 for length in shape)):
            raise ValueError("its header says that there is an impossible array")
    except (*plain_pickle.ERRORS, RecursionError, SyntaxError, tokenize.TokenError) as error:
        raise UserError(f"{path}: expected a NumPy .npy file, found something else ({one_line(error)})") from error
    size = plain_pickle.bytes_left(file)
    if dtype.kind != "O" and not plain_pickle.fits(shape, dtype, size):
        raise UserError(f"{path}: expected plain values of shape {one_line(shape)} and type {one_line(dtype)} as its "
                        f"header says, found {size} bytes that do not fit")
    return shape, dtype


def read_weights(path):
    """The `{layer: [kernel, bias], …}` of an `.npy` file in the release's format. Raises UserError.

    `C`, where there is one, is a single float32 array; every layer is a list of two.
    """
    weights = read_npy(path)
    if not (isinstance(weights, dict) and all(isinstance(name, str) for name in weights)):
        raise UserError(f"{path}: expected a dict of layers, found {type(weights).__name__}")
    clean, floats = {}, {}  # floats: {id of an array: the same in float32}, for one may stand under many names
    for name, value in weights.items():
        arrays = [value] if name == "C" else value
        if not (isinstance(arrays, list | tuple) and len(arrays) == (1 if name == "C" else 2)):
            raise UserError(f"{path}: expected [kernel, bias] under {name!r}, found {type(value).__name__}")
        for array in arrays:
            if id(array) not in floats:
                floats[id(array)] = _finite_floats(path, name, array)
        arrays = [floats[id(array)] for array in arrays]
        clean[name] = arrays[0] if name == "C" else arrays
    return clean


def _finite_floats(path, name, array):
    if not (isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)):
        raise UserError(f"{path}: expected an array of floats under {name!r}, found {type(array).__name__}")
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit into float32 is refused below
        array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{path}: {name!r} holds NaN or infinite values")
    return array


def _open(path):
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    return open(path, "rb")


def _unpickle(file, path):
    try:
        return plain_pickle.load(file)
    except plain_pickle.ERRORS as error:
        raise UserError(f"{path}: this pickle was not read: {one_line(error)}") from error
