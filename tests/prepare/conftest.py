"""Fixtures of the tests of download.py, flickr25k.py and nuswide.py."""
import pytest

from file_server import serving
from prepare import download
from prepare import flickr25k as prepare_flickr25k
from prepare import nuswide as prepare_nuswide
from small_collections import Flickr, NusWide, hidden_files
from tiny import call


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.01)
    with serving({"a.zip": bytes(range(256)) * 4000}) as server:
        yield server


@pytest.fixture
def flickr(tmp_path):
    return Flickr(tmp_path)


@pytest.fixture
def nuswide(tmp_path):
    return NusWide(tmp_path)


@pytest.fixture
def refused(capsys, monkeypatch):
    """A function that runs a program on bad input and returns its one sentence; no split file may come of it."""
    def refuse(collection, *options, **changed):
        module = prepare_flickr25k if isinstance(collection, Flickr) else prepare_nuswide
        code, printed = call(monkeypatch, capsys, module, *collection.arguments(*options, **changed))
        assert code == 2
        assert not collection.splits.exists()
        assert not hidden_files(collection.root)
        error = printed.splitlines()[-1]
        assert error.startswith("error: ")
        assert "Traceback" not in printed
        return error
    return refuse
