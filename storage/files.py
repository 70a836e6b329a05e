"""Files that are written whole or not at all, their checksums, JSON, and locks.

What a path held before stays until its replacement is on the disk.
"""
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import filelock
import msgspec

from util import UserError, one_line

CHECKSUMS = "sha256.json"  # in a folder that was written whole
OLD = ".old"  # ends the name of a folder that is being replaced


# ---------------------------------------------------------------- writing

@contextlib.contextmanager
def replacing(path):
    """Give a temporary name next to `path`; when the block succeeds, sync that file and rename it to `path`.

    What `path` held before stays whole until then, and stays if the block fails.
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
def with_checksums(record_file, record, *paths):
    """As `replacing`, for several files of one folder; the JSON `record_file` then holds `record` and their SHA-256.

    Gives a temporary name for each path. The old record is deleted before the first file is renamed and the new one is
    put in place after the last, so that a record never holds the checksum of another version of a file.
    """
    with contextlib.ExitStack() as stack:
        new_record = stack.enter_context(replacing(record_file))
        temporaries = [stack.enter_context(replacing(path)) for path in paths]
        yield temporaries
        digests = {path.name: fingerprint(temporary) for path, temporary in zip(paths, temporaries, strict=True)}
        new_record.write_text(_as_json({**record, "sha256": digests}), encoding="utf-8")
        for temporary in (*temporaries, new_record):
            sync(temporary)
        record_file.unlink(missing_ok=True)


class Checksums(msgspec.Struct, frozen=True):
    """The SHA-256, in hex, of each file next to a record, by its name."""
    sha256: dict[str, str] = {}


def check_checksums(record_file, known=None):
    """{name: SHA-256} of the files next to the JSON `record_file` that it names; empty if it names none or is missing.

    `known`: {name: SHA-256} of files that need not be read again.
    Raises UserError if one of the files is missing or altered.
    """
    digests = read_record(record_file, Checksums).sha256 if record_file.is_file() else {}
    for name, digest in digests.items():
        path = record_file.parent / Path(name).name
        if not path.is_file():
            raise UserError(f"{path}: no such file, but {record_file.name} names it")
        if ((known or {}).get(name) or fingerprint(path)) != digest:
            raise UserError(f"{path} was altered since it was written: its SHA-256 is not the one in "
                            f"{record_file.name}")
    return digests


@contextlib.contextmanager
def replacing_folder(path):
    """As `replacing`, for a folder of files: give a new folder that becomes `path` if the block succeeds.

    CHECKSUMS in it holds the SHA-256 of each file that the block wrote. The old folder is renamed to `.NAME.old` and
    deleted last; after a kill between the renames, `recover_folders` restores its name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}{OLD}")
    _recover(old)
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process with the same process number
    temporary.mkdir()
    try:
        yield temporary
        digests = {part.name: fingerprint(part) for part in sorted(temporary.iterdir())}
        write_json(temporary / CHECKSUMS, {"sha256": digests})
        for part in [*temporary.iterdir(), temporary]:
            sync(part)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover_folders(parent):
    """Finish what a kill interrupted in `replacing_folder`, so that each folder of `parent` is the old or the new one.

    Call it before such folders are read, while no other process writes them.
    """
    for old in Path(parent).glob(f".*{OLD}"):
        _recover(old)


def _recover(old):
    path = old.with_name(old.name[1:].removesuffix(OLD))
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.rename(path)


@contextlib.contextmanager
def naming(path):
    """Turn an OSError that names no file, as for a full disk, into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise UserError(f"{path}: it could not be written: {error.strerror or error}") from error


def sync(path):
    """Make the operating system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- room on the disk

@contextlib.contextmanager
def reserved_space(path, size):
    """Reserve `size` bytes next to `path` during the block, so that `path` can be written after it.

    Raises UserError if the disk has less room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    check_space(path.parent, size)
    reserved = path.with_name(f".{path.name}.reserved")
    try:
        with open(reserved, "wb") as file:
            if hasattr(os, "posix_fallocate"):  # other systems have the check above alone
                _allocate(file, path, size)
        yield
    finally:
        reserved.unlink(missing_ok=True)


def _allocate(file, path, size):
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise UserError(f"{path}: there is no room for its {size / 1e6:,.0f} MB ({error.strerror})") from error


def check_space(folder, size):
    """Raise UserError unless the disk of `folder`, which may not exist yet, has `size` bytes free."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if shutil.disk_usage(existing).free < size:
        raise UserError(f"{folder}: what is to be written here takes {size / 1e6:,.0f} MB, and the disk has "
                        f"{shutil.disk_usage(existing).free / 1e6:,.0f} MB free")


# ---------------------------------------------------------------- private copies

@contextlib.contextmanager
def private_copy(path):
    """Give the path of a copy, in TMPDIR, that nobody else writes to. It is deleted after the block.

    What the block mapped into memory stays readable and unchanged. Raises UserError if there is no room.
    """
    with tempfile.TemporaryDirectory(prefix="private-") as folder:
        try:
            shutil.copyfile(path, copy := Path(folder) / Path(path).name)
        except OSError as error:
            raise UserError(f"{path}: it could not be copied to {tempfile.gettempdir()}, where a server keeps private "
                            f"copies of what it reads: {error.strerror}") from error
        yield copy


# ---------------------------------------------------------------- locks

@contextlib.contextmanager
def exclusive_lock(path, sentence):
    """Hold the lock file `path` during the block. Raises UserError(sentence) if another process holds it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=0)  # the system releases it however this process ends
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(sentence) from None
    try:
        yield
    finally:
        lock.release()


# ---------------------------------------------------------------- text and JSON

def fingerprint(path):
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path, text):
    """Replace the file `path` by `text` (UTF-8)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # a file's name need not be UTF-8


def write_json(path, content):
    """Replace the file `path` by `content` as indented JSON."""
    write_text(path, _as_json(content))


def _as_json(content):
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def json_object(content):
    """The dict in a text of JSON, str or bytes. Raises UserError for anything else."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"expected JSON, found something else ({one_line(error)})") from None
    if not isinstance(found, dict):
        raise UserError(f"expected a JSON object, found {type(found).__name__}")
    return found


def read_json(path):
    """The dict in a JSON file. Raises UserError for anything else."""
    try:
        return json_object(path.read_bytes())
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_record(path, kind):
    """The content of a JSON file as a `kind`, a msgspec.Struct. Raises UserError, which names the part at fault."""
    return as_record(path, read_json(path), kind)


def as_record(source, content, kind):
    """A dict as a `kind`, a msgspec.Struct. Raises UserError, which names `source`, a file."""
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{source}: {one_line(error)}") from None


def check_settings(path, settings):
    """Raise UserError unless the JSON file `path`, which a run saved, holds the `settings` of the run that resumes."""
    saved = read_json(path)
    differing = sorted(key for key in saved.keys() | settings.keys() if saved.get(key) != settings.get(key))
    if differing:
        raise UserError(f"{path.parent} was saved with other settings: " + "; ".join(
            f"{key} was {saved.get(key)}, now {settings.get(key)}" for key in differing))
