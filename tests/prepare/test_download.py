"""prepare/download.py with a server that breaks off, is busy, or knows no ranges."""
import pytest

from prepare import download
from util import UserError


def fetched(server, path, **check):
    download.fetch(server.url + "a.zip", path, **{"check": lambda _: None, **check})
    assert path.read_bytes() == server.files["a.zip"]
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_download_goes_on_where_the_server_broke_off(server, tmp_path):
    server.break_after = [300_000, 200_000]
    fetched(server, tmp_path / "a.zip")
    assert [asked for _, asked in server.asked] == [None, "bytes=300000-", "bytes=500000-"]


@pytest.mark.parametrize("have", [1, 500_000, 1_024_000])
def test_a_download_goes_on_with_what_an_earlier_run_left(server, tmp_path, have):
    (tmp_path / "a.zip.part").write_bytes(server.files["a.zip"][:have])
    fetched(server, tmp_path / "a.zip")
    assert server.asked[0][1] == f"bytes={have}-"


def test_a_server_without_ranges_starts_the_file_again(server, tmp_path):
    server.ranges, server.break_after = False, [300_000]
    fetched(server, tmp_path / "a.zip")
    assert [asked for _, asked in server.asked] == [None, "bytes=300000-"]


def test_a_part_longer_than_the_file_starts_again(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(bytes(2_000_000))
    fetched(server, tmp_path / "a.zip")


def test_a_busy_server_is_asked_again_and_one_that_stays_so_is_reported(server, tmp_path):
    server.busy = 2
    fetched(server, tmp_path / "a.zip")
    (tmp_path / "a.zip").unlink()
    server.busy = 99
    with pytest.raises(UserError, match=r"a\.zip: the server answered 503 .*; run this again to continue"):
        fetched(server, tmp_path / "a.zip")
    server.busy, server.break_after = 0, [300_000, 0, 0, 0]
    with pytest.raises(UserError, match=r"the server ended after 300,000 of 1,024,000 bytes; run this again"):
        fetched(server, tmp_path / "a.zip")
    fetched(server, tmp_path / "a.zip")
    assert server.asked[-1][1] == "bytes=300000-"


def test_a_file_or_a_server_that_is_not_there(server, tmp_path):
    server.files = {}
    with pytest.raises(UserError, match=r"a\.zip: the server answered 404 Not Found"):
        download.fetch(server.url + "a.zip", tmp_path / "a.zip", check=None)
    with pytest.raises(UserError, match=r"the download failed \(.*refused"):
        download.fetch("http://127.0.0.1:9/a.zip", tmp_path / "a.zip", check=None)
