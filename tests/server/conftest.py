"""A small index of drawn photos and a server of it, which the tests of a file share."""
import importlib

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    for package in ("faiss", "starlette"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("page") / "index"
    importlib.import_module("page_service").make_index(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with importlib.import_module("servers").page_served(folder) as server:
        yield server
