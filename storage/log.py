"""What is kept about a run: the experiment's name, its log, and what its result depends on."""
import contextlib
import importlib.metadata
import logging
import platform
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from storage.files import exclusive_lock, fingerprint
from util import ROOT


def experiment_name(dataset, loss, codebooks, form, lambda_, notes):
    """The name that log, checkpoint and h5 of one experiment share, as the release spells it. `form`: of the loss, from
    one of the functions below."""
    return f"{dataset}_{loss}_nbits={8 * codebooks}_{form}_lambda={float(lambda_)}_{notes}"


def margin_form(gamma, fixed_margin=None):
    """How names spell the adaptive margin with the exponent `gamma`, or a fixed margin."""
    return (f"adaMargin_gamma={_shortest(gamma)}" if fixed_margin is None
            else f"fixMargin_margin={_shortest(fixed_margin)}")


def softmax_form(temperature, pairs):
    """How names spell the settings of SOFTMAX and MILNCE."""
    return f"temperature={_shortest(temperature)}_pairs={_shortest(pairs)}"


def _shortest(number):
    return str(int(number)) if number == int(number) else str(number)


def open_log(path):
    """The program's logger: lines with a time stamp, appended to `path` and shown above any progress bar.

    Raises UserError if another run of the same experiment has the log open.
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


class _LogFile(logging.FileHandler):
    """The log file, which is locked for this process until the handler is closed."""

    def __init__(self, path, **options):
        self._lock_file = contextlib.ExitStack()
        self._lock_file.enter_context(exclusive_lock(
            path.with_name(f".{path.name}.lock"), f"{path}: another run of this experiment is in progress; give this "
            "one other NOTES"))
        super().__init__(path, **options)

    def close(self):
        super().close()
        self._lock_file.close()

    def handleError(self, _record):
        raise  # the error in writing the record, such as a full disk


class _ConsoleHandler(logging.Handler):
    def emit(self, record):
        if getattr(record, "bar_shows_it", False) and sys.stdout.isatty():
            return
        tqdm.write(self.format(record))
        sys.stdout.flush()


def log_progress(log, bar, line):
    """Log the progress of a training. On a terminal the line goes to the file only, because `bar` shows the same."""
    log.info(line, extra={"bar_shows_it": not bar.disable})


def plain(options):
    """`{name: value}` for JSON: paths as text."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


def provenance(files):
    """What a result depends on in addition to its options: versions, the commit, and the SHA-256 of `{name: path}`."""
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
