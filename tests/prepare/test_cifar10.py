"""CIFAR-10's batches from an archive in the official format, downloaded from a server on this machine or given."""
import hashlib
import io
import pickle
import tarfile

import pytest

from file_server import serving
from gpq.data import FILES, META
from gpq_inputs import cifar_batches
from prepare import cifar10
from tiny import call


def make_archive(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture(scope="module")
def files():
    """551 images of each class, so that 500 can be labelled."""
    return {name: pickle.dumps(content, 2) for name, content in cifar_batches(3, images_per_file=920).items()}


def md5_of(archive):
    return hashlib.md5(archive, usedforsecurity=False).hexdigest()


def test_a_download_is_checked_unpacked_and_not_repeated(tmp_path, monkeypatch, capsys, files):
    archive = make_archive(files)
    with serving({"a.tar.gz": archive}) as server:
        arguments = ("--download", "--url", f"{server.url}a.tar.gz", "--md5", md5_of(archive))
        code, output = call(monkeypatch, capsys, cifar10, "--root", tmp_path, *arguments)
        assert code == 0, output
        assert "92 queries, 5,000 labelled images, 428 database images of 10 classes: class 0, class 1" in output
        assert {path.name: path.read_bytes() for path in (tmp_path / "cifar10").iterdir()} == files
        code, output = call(monkeypatch, capsys, cifar10, "--root", tmp_path, *arguments)
        assert code == 0
        assert "already holds all batches" in output
        assert len(server.asked) == 1


def test_what_an_interrupted_run_left_out_is_unpacked(tmp_path, monkeypatch, capsys, files):
    archive = tmp_path / "mine.tar.gz"
    archive.write_bytes(make_archive(files))
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10/data_batch_1").write_bytes(files["data_batch_1"])
    code, output = call(monkeypatch, capsys, cifar10, "--root", tmp_path, "--archive", archive,
                        "--md5", md5_of(archive.read_bytes()))
    assert code == 0, output
    assert {path.name for path in (tmp_path / "cifar10").iterdir()} == {META, *FILES}


@pytest.mark.parametrize(("spoil", "arguments", "message"), [
    (lambda files: None, (), "expected --archive with the path of cifar-10-python.tar.gz, or --download"),
    (lambda files: None, ("--archive", "none.tar.gz"), "none.tar.gz: no such file"),
    (make_archive, ("--archive", "mine.tar.gz"), "expected MD5 C58F30108F718F92721AF3B95E74349A, found"),
    (lambda files: make_archive({"batches.meta": files["batches.meta"]}), ("--archive", "mine.tar.gz", "--md5", "its"),
     "expected cifar-10-batches-py/data_batch_1 in this archive, found none"),
    (lambda files: make_archive(files)[:5000], ("--archive", "mine.tar.gz", "--md5", "its"), "cannot be read"),
    (lambda files: b"no archive", ("--archive", "mine.tar.gz", "--md5", "its"), "cannot be read"),
    (make_archive, ("--md5", "12"), "expected 32 hex digits, found '12'"),
], ids=["nothing", "missing", "another", "incomplete", "truncated", "no archive", "no MD5"])
def test_bad_archives_end_in_a_sentence_and_leave_no_half_batch(tmp_path, monkeypatch, capsys, files, spoil, arguments,
                                                                message):
    content = spoil(files)
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "mine.tar.gz").write_bytes(content)
        arguments = [md5_of(content) if argument == "its" else argument for argument in arguments]
    code, output = call(monkeypatch, capsys, cifar10, "--root", tmp_path, *arguments)
    assert code == 2
    assert message in output
    assert "Traceback" not in output
    folder = tmp_path / "cifar10"
    left = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}
    assert left.items() <= files.items()
