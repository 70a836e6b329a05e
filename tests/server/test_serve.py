"""Serving an index: shards, answers over HTTP, hostile requests, a shard that is killed."""
import base64
import contextlib
import functools
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from faults import killed_at
from indexes import make_content
from retrieval import index, manifest, shards
from server import connections
from server.client import Remote
from storage.files import exclusive_lock, fingerprint
from tiny import PROJECT, command, run
from util import UserError, stream

pytest.importorskip("faiss")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

N, TOPK = 3000, 40
NAME = "{} é\udcff.jpg"  # of a photo; not UTF-8


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{kind: an index}, flat and with lists; each code is that of ten photos or so, so that many scores tie."""
    content = make_content(images=N)
    content.codes = content.codes[stream(0, "ties").integers(0, N // 10, N)]
    content.images = [NAME.format(row) for row in range(N)]
    content.labels, content.label_names = None, []
    content.facts |= {"crops": 1, "checkpoint": "gone.npy", "checkpoint_sha256": "none", "experiment": "none",
                      "root": "/", "dataset": None}
    made = {kind: tmp_path_factory.mktemp(kind) for kind in ("flat", "lists")}
    index.save(made["flat"], content)
    index.save(made["lists"], content, inverted_lists=16)
    return made


def start(folder, *options, **environment):
    """A server of an index."""
    return subprocess.Popen(command("serve.py", folder, "--port", 0, *options), cwd=PROJECT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **environment})


def address_of(process):
    """The address that a server prints once it answers."""
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("serving "):
            break
    assert printed, "nothing was printed"
    assert " at http://" in printed[-1], "".join(printed)
    return printed[-1].rpartition("http://")[2].strip()


@contextlib.contextmanager
def served(folder, *options, **environment):
    """The address of a server of an index, which ends with the block, well."""
    process = start(folder, *options, **environment)
    try:
        yield address_of(process)
    finally:
        process.terminate()
        rest = process.communicate(timeout=60)[0]
        assert "Traceback" not in rest, rest
        assert process.returncode == 128 + signal.SIGTERM, rest


@pytest.fixture(scope="module")
def address_of_index(folders):
    """address_of_index(kind, shards): the address of a server that these tests share."""
    with contextlib.ExitStack() as servers:
        yield functools.cache(lambda kind, count: servers.enter_context(served(folders[kind], "--shards", count)))


@pytest.fixture(scope="module")
def address(address_of_index):
    return address_of_index("flat", 1)


def post(address, path, body):
    """Status and answer."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://{address}/{path}", body, {"Content-Type": "application/json"})
    try:
        with direct.open(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def health(address):
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", "/health")
    return json.load(connection.getresponse())


def queries(count, seed=1):
    return stream(seed, "serve queries").normal(size=(count, 300)).astype(np.float32)


def assert_answered(answer, expected):
    """An answer of /search is what Index.search gives, to the last bit."""
    scores, rows = expected
    assert [line[line >= 0].tolist() for line in rows] == answer["rows"]
    assert [line[known >= 0].tolist() for line, known in zip(scores, rows, strict=True)] == answer["scores"]
    assert [[f"/photos/{NAME.format(row)}" for row in line] for line in answer["rows"]] == answer["paths"]


# ---------------------------------------------------------------- answers

@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", ["flat", "lists"])
def test_answers_are_those_of_the_whole_index_ties_included(folders, address_of_index, kind, count):
    whole, address = index.load(folders[kind]), address_of_index(kind, count)
    assert health(address)["photos"] == N
    assert health(address)["shards"] == count
    for size, topk, probes in ((1, TOPK, 2), (70, TOPK, 2), (3, N, 16), (2, N, 1), (5, 1, 3)):
        asked = queries(size)
        status, answer = post(address, "search", {"vectors": asked.tolist(), "topk": topk, "nprobe": probes})
        assert status == 200, answer
        assert_answered(answer, whole.search(asked, topk, probes))
    encoded = base64.b64encode(queries(9).tobytes()).decode()
    assert_answered(post(address, "search", {"vectors": encoded})[1], whole.search(queries(9), 20))


def test_of_scores_that_tie_at_the_last_place_the_lowest_rows_are_found(folders):
    content = index.load(folders["flat"]).content
    for kind, made in ((kind, index.load(folder)) for kind, folder in folders.items()):
        made.content.embeddings = None  # which would put them in another order
        for topk in (1, 7, 25):
            _, rows = made.search(queries(40), topk, probes=16)
            _, expected = index.search_numpy(queries(40), content.codes, content.codebooks, topk)
            np.testing.assert_array_equal(rows, expected, err_msg=kind)


def test_concurrent_queries_do_not_mix(folders, address_of_index):
    whole, address = index.load(folders["lists"]), address_of_index("lists", 2)
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda seed: post(address, "search", {"vectors": queries(3, seed).tolist()}), range(40))
        for seed, (status, answer) in enumerate(answers):
            assert status == 200, answer
            assert_answered(answer, whole.search(queries(3, seed), 20))


def test_words_give_the_same_json_with_a_server_and_without(folders, address_of_index):
    address = address_of_index("lists", 2)
    there = run("search.py", "query", "--server", address, "--words", "TAG7", "--json", "--nprobe", 3)
    assert there == run("search.py", "query", folders["lists"], "--words", "TAG7", "--json", "--nprobe", 3)
    assert json.loads(there[1])["results"]
    code, output = run("search.py", "query", "--server", f"http://{address}/", "--words", "tga3")
    assert code == 2
    assert "'tga3' is none of the 24 tags" in output


# ---------------------------------------------------------------- hostile requests

DOT = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
BAD = {
    "no JSON": ("search", b"{", "expected JSON"),
    "no object": ("search", b"[1]", "expected a JSON object, found list"),
    "deep JSON": ("search", b"[" * 4000, "expected JSON"),
    "many lists": ("search", b"[" * 100_000, "expected at most 4,096 vectors"),
    "bytes": ("words", b"\xff\xfe\x00", "expected JSON"),
    "no vectors": ("search", {}, "expected rows of 300 numbers"),
    "empty vectors": ("search", {"vectors": []}, "expected rows of 300 numbers"),
    "narrow vectors": ("search", {"vectors": [[1.0] * 299]}, "rows of 300 numbers, found an array of shape (1, 299)"),
    "one vector": ("search", {"vectors": [1.0] * 300}, "found an array of shape (300,)"),
    "ragged vectors": ("search", {"vectors": [[1.0] * 300, [1.0]]}, "expected rows of 300 numbers"),
    "words for numbers": ("search", {"vectors": [["a"] * 300]}, "expected rows of 300 numbers, found text among them"),
    "numbers in quotes": ("search", {"vectors": [[1.0] * 300, [*[1.0] * 299, "1.5"]]}, "found text among them"),
    "true for a number": ("search", {"vectors": [[*[1.0] * 299, True]]}, "found true or false among them"),
    "null for a number": ("search", {"vectors": [[*[1.0] * 299, None]]}, "found null among them"),
    "lists for numbers": ("search", {"vectors": [[[1.0] * 300]]}, "found lists among them"),
    "NaN": ("search", {"vectors": [[float("nan")] * 300]}, "NaN"),
    "an overflow": ("search", {"vectors": [[1e300] * 300]}, "expected numbers from"),
    "a long number": ("search", {"vectors": [[10**400] * 300]}, "expected rows of 300 numbers"),
    "no base64": ("search", {"vectors": "é"}, "expected rows of 300 numbers"),
    "half a number": ("search", {"vectors": "AAAA"}, "expected rows of 300 numbers"),
    "topk 0": ("search", {"vectors": [[1.0] * 300], "topk": 0}, "topk: expected a whole number from 1"),
    "topk absurd": ("words", {"words": "tag1", "topk": 10**30}, "topk: expected a whole number from 1"),
    "topk true": ("words", {"words": "tag1", "topk": True}, "topk: expected a whole number"),
    "nprobe in words": ("words", {"words": "tag1", "nprobe": "all"}, "nprobe: expected a whole number"),
    "unknown words": ("words", {"words": "tga3"}, "spelt most like it: tag3"),
    "no words": ("words", {"words": 7}, "words: expected a text"),
    "endless words": ("words", {"words": "a" * 10**6}, "words: expected a text of at most 1000 letters"),
    "topk of a photo": ("photo?topk=many", DOT, "topk: expected a whole number"),
    "topk that is no UTF-8": ("photo?topk=%ff", DOT, "topk: expected a whole number"),
    "no photo": ("photo?name=../../etc/passwd", b"", "passwd is empty"),
    "noise for a photo": ("photo", b"noise", "the photo is not an image"),
}


@pytest.mark.parametrize(("path", "body", "sentence"), BAD.values(), ids=BAD)
def test_a_bad_request_is_told_in_one_sentence_and_the_server_goes_on(address, path, body, sentence):
    status, answer = post(address, path, body)
    assert status == 400
    assert answer.keys() == {"error"}
    assert sentence in answer["error"]
    assert "\n" not in answer["error"]
    assert health(address)["photos"] == N


def test_a_connection_that_breaks_off_or_speaks_no_http_harms_no_other(address):
    host, port = address.split(":")
    for sent in (b"\x00\xff\r\n\r\n", b"POST /search HTTP/1.1\r\nContent-Length: 100\r\n\r\n{", b"GET"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent)
    assert health(address)["photos"] == N


# ---------------------------------------------------------------- the start and the end

def test_of_two_servers_that_start_on_one_port_at_once_one_is_refused_in_a_sentence():
    with (contextlib.closing(connections.listen("127.0.0.1", 0)) as first,
          pytest.raises(UserError, match=r"^127\.0\.0\.1:\d+: cannot listen there: Address already in use$")):
        connections.listen("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_that_came_before_the_stop_are_answered_and_later_ones_refused(folders, number):
    asked = {"vectors": queries(3).tolist(), "topk": N // 4}
    process = start(folders["flat"])
    address = address_of(process)
    idle = http.client.HTTPConnection(address)  # stays open, and is not waited for
    pending = [http.client.HTTPConnection(address) for _ in range(8)]
    for connection in pending:
        connection.request("POST", "/search", json.dumps(asked), {"Content-Type": "application/json"})
    idle.request("GET", "/health")
    idle.getresponse().read()  # the server has read what came before this
    process.send_signal(number)
    answered, _, _ = select.select([connection.sock for connection in pending], [], [], 0)
    assert len(answered) < 8
    answers = [connection.getresponse() for connection in pending]
    assert [answer.status for answer in answers] == [200] * 8
    assert len({answer.read() for answer in answers}) == 1
    with pytest.raises(OSError, match="refused"):
        post(address, "search", asked)
    process.communicate(timeout=5)
    assert process.returncode == 128 + number


# ---------------------------------------------------------------- options

def test_the_server_answers_by_page_and_words_before_tensorflow_is_loaded(address, folders):
    with urllib.request.urlopen(f"http://{address}/") as page:
        assert b"<title>Photos</title>" in page.read()
    assert post(address, "words", {"words": "tag7"})[0] == 200
    process = health(address)["processes"][0]
    assert "tensorflow" not in Path(f"/proc/{process}/maps").read_text()


def test_a_token_from_the_environment_lets_programs_in(folders):
    with served(folders["flat"], "--host", "0.0.0.0", WSDHQ_TOKEN="a~secret") as printed:
        assert printed.startswith("0.0.0.0:")
        assert printed.endswith("/?token=a~secret")
        address = printed.partition("/")[0].replace("0.0.0.0", "127.0.0.1")
        assert post(address, "words", {"words": "tag7"})[0] == 401
        with pytest.raises(UserError, match="expected the server's token"):
            Remote(address, "wrong").by_words("tag7")
        assert Remote(address, "a~secret").by_words("tag7", topk=3)
        arguments = ["query", "--server", address, "--words", "tag7", "--topk", "3", "--json"]
        code, there = run("search.py", *arguments, "--token", "a~secret")
        assert code == 0, there
        assert len(json.loads(there)["results"]) == 3


def test_names_of_host_and_index_and_a_log_without_the_token(folders, tmp_path):
    (tmp_path / "indexes").mkdir()
    (tmp_path / "indexes/mine_of_16_bits").symlink_to(folders["flat"])
    process = start("mine", "--root", tmp_path, "--name", "photos.example", "--access-log", "--token", "secret")
    printed = address_of(process)
    assert printed.startswith("photos.example:")
    port = int(printed.partition("/")[0].rpartition(":")[2])
    for host, status in (("photos.example", 303), ("other.example", 421)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/?token=secret", headers={"Host": host})
        assert connection.getresponse().status == status
        connection.close()
    process.terminate()
    log = process.communicate(timeout=60)[0]
    assert '"GET /?token=… HTTP/1.1" 303' in log
    assert "secret" not in log


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "faiss"])
def test_a_package_that_is_missing_is_one_sentence(folders, package):
    code, output = run("-c", f"import sys, util, serve; sys.modules[{package!r}] = None; "
                             f"sys.argv[1:] = [{str(folders['flat'])!r}, '--port', '0']; util.run_program(serve.main)")
    assert code == 2
    assert len(output.splitlines()) == 1
    assert (".[search]" if package == "faiss" else ".[serve]") in output


# ---------------------------------------------------------------- files and addresses

@pytest.mark.parametrize(("kind", "count"), [("flat", 1), ("lists", 2)])
def test_files_that_are_cut_or_altered_while_they_are_served_change_no_answer(folders, tmp_path, kind, count):
    copy_uncut(folders[kind], tmp_path / "index")
    asked = {"vectors": queries(3).tolist(), "topk": N, "nprobe": 16}
    with served(tmp_path / "index", "--shards", count) as address:
        for path in sorted((tmp_path / "index").glob("**/*.*")):
            if path.name != manifest.MANIFEST and path.is_file() and path.stat().st_size:
                with open(path, "r+b") as file:
                    file.write(bytes(byte ^ 255 for byte in file.read()[:500_000]))
        found, words = post(address, "search", asked), post(address, "words", {"words": "tag7", "topk": N})
        for path in (tmp_path / "index").glob("**/*.*"):
            if path.name != manifest.MANIFEST and path.is_file():
                os.truncate(path, 0)
        assert post(address, "search", asked) == found
        assert post(address, "words", {"words": "tag7", "topk": N}) == words
    assert_answered(found[1], index.load(folders[kind]).search(queries(3), N, 16))
    assert words[0] == 200


def cut(folder):
    """The paths of the two shards of an index."""
    parts = shards.cut(index.load(folder), 2, fingerprint(folder / manifest.MANIFEST))
    return [Path(part.path) for part in parts]


def test_a_shard_that_was_altered_or_is_missing_is_named(folders, tmp_path):
    shutil.copytree(folders["lists"], tmp_path / "index")
    _, shard = cut(tmp_path / "index")
    sound = shard.read_bytes()
    shard.write_bytes(sound[:-9] + bytes([sound[-9] ^ 1]) + sound[-8:])
    code, output = run("serve.py", tmp_path / "index", "--shards", 2, "--port", 0)
    assert code == 2
    assert "shard-2.faiss was altered" in output.splitlines()[-1]
    assert "Traceback" not in output
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-2\.faiss: no such file.*delete .*shards-2 to have it made anew"):
        cut(tmp_path / "index")
    shutil.rmtree(shard.parent)
    assert cut(tmp_path / "index")[1].read_bytes() == sound


def test_shards_are_made_once_and_anew_when_the_index_is_written_again(folders, tmp_path):
    copy_uncut(folders["flat"], tmp_path / "index")
    before = cut(tmp_path / "index")[0].stat().st_ino
    assert cut(tmp_path / "index")[0].stat().st_ino == before
    opened = shards.Part(str(cut(tmp_path / "index")[0]), fingerprint(tmp_path / "index" / manifest.MANIFEST), 0)
    content = index.load(tmp_path / "index").content
    content.codes = content.codes[::-1].copy()
    with served(tmp_path / "index", "--shards", 2) as address:
        asked = {"vectors": queries(2).tolist()}
        before, deadline = post(address, "search", asked)[1], time.monotonic() + 60
        whole = index.save(tmp_path / "index", content)
        while (answer := post(address, "search", asked)[1]) == before:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert_answered(answer, whole.search(queries(2), 20))
    with pytest.raises(UserError, match="was cut from another index"):
        shards.Shard(opened, threads=1)


def copy_uncut(folder, copy):
    """Copy an index without the shards that a server of an earlier test made of it."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("shards-*", ".shards*"))


CUT_ON_A_SMALL_DISK = """
import resource, sys
from pathlib import Path
from retrieval import index, shards
from util import run_program
def main():
    whole = index.load(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
    shards.cut(whole, 2, "a manifest")
run_program(main)
"""


@pytest.mark.parametrize("kind", ["flat", "lists"])
def test_a_disk_that_is_full_while_shards_are_cut_is_one_sentence_and_leaves_nothing(folders, tmp_path, kind):
    folder = tmp_path / "index"
    copy_uncut(folders[kind], folder)
    before = sorted(path.name for path in folder.iterdir())
    for size in (50, 300_000):
        done = subprocess.run([sys.executable, "-c", CUT_ON_A_SMALL_DISK, folder, str(size)], cwd=PROJECT,
                              capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert done.stderr == f"error: {folder}/shards-2/shard-1.faiss: it could not be written: File too large\n"
        assert sorted(path.name for path in folder.iterdir()) == sorted([*before, ".shards.lock"])
    assert len(cut(folder)) == 2


def test_two_processes_do_not_cut_one_index_at_once(folders, tmp_path):
    copy_uncut(folders["flat"], tmp_path / "index")
    with (exclusive_lock(tmp_path / "index" / shards.LOCK, "taken"),
          pytest.raises(UserError, match="another process is cutting this index into shards")):
        cut(tmp_path / "index")
    assert all(path.is_file() for path in cut(tmp_path / "index"))


def test_a_kill_at_any_moment_of_cutting_leaves_shards_that_can_be_used_or_cut_again(folders, tmp_path):
    copy_uncut(folders["flat"], tmp_path / "index")
    (tmp_path / "index/.shards-2.77.tmp").mkdir()  # half-written by a process that was killed
    whole, source = index.load(tmp_path / "index"), fingerprint(tmp_path / "index" / manifest.MANIFEST)

    def cut_content():
        return [Path(part.path).read_bytes() for part in shards.cut(whole, 2, source)]
    expected, call, killed = cut_content(), 1, True
    while killed:
        (tmp_path / "index/shards-2/shards.json").write_text("{}")  # so that they are cut again
        killed = killed_at(call, lambda *_: cut_content(), tmp_path / "index")
        assert cut_content() == expected
        call += 1
    assert call > 4
    assert not [*(tmp_path / "index").glob(".*.old"), *(tmp_path / "index").glob(".*.tmp")]


@pytest.mark.parametrize(("options", "sentence"), [
    (["--shards", N + 1], f"{N + 1} shards and {N} photos"),
    (["--host", "256.0.0.1", "--token", "t"], "256.0.0.1:0: cannot listen there"),
    (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in, so give a --token"),
    (["--token", "t é"], "argument --token: expected letters, digits, and - . _ ~ only"),
])
def test_what_cannot_be_served_is_one_sentence_and_exit_code_2(folders, options, sentence):
    code, output = run("serve.py", folders["flat"], "--port", 0, *options)
    assert code == 2
    assert sentence in output.splitlines()[-1]
    assert "Traceback" not in output


def test_a_port_that_is_taken_is_one_sentence(folders, address):
    code, output = run("serve.py", folders["flat"], "--port", address.split(":")[1])
    assert code == 2
    assert f"{address}: cannot listen there: Address already in use" in output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize("kind", [str, Path])
def test_a_client_sends_the_photo_at_a_path(address, tmp_path, kind):
    (tmp_path / "é.jpg").write_bytes(b"noise")
    with pytest.raises(UserError, match=r"^é\.jpg is not an image that OpenCV reads$"):
        Remote(address).by_photo(kind(tmp_path / "é.jpg"))
    with pytest.raises(UserError, match="expected the path of a photo, found list"):
        Remote(address).by_photo([tmp_path / "é.jpg"])


def test_a_server_that_does_not_answer_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as other:
        def answer():
            connection, _ = other.accept()
            asked = b""
            while b'"words"' not in asked:
                asked += connection.recv(2**16)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n[1]")
            connection.close()
        threading.Thread(target=answer).start()
        for address, sentence in ((f"127.0.0.1:{other.getsockname()[1]}", "expected an answer of serve.py"),
                                  ("127.0.0.1:port", "no server answered")):
            with pytest.raises(UserError, match=sentence):
                Remote(address).by_words("a")
    code, output = run("search.py", "query", "--server", "127.0.0.1:1", "--words", "a")
    assert code == 2, output
    assert "no server answered" in output
    assert len(output.splitlines()) == 1


def test_an_index_and_a_server_at_once_are_refused():
    code, output = run("search.py", "query", "--server", "127.0.0.1:1", "an index", "photo.jpg")
    assert code == 2
    assert "with --server expected no INDEX" in output


# ---------------------------------------------------------------- Ray

@pytest.mark.slow
def test_a_ray_address_where_no_cluster_answers_is_one_sentence(folders):
    pytest.importorskip("ray")
    code, output = run("serve.py", folders["flat"], "--port", 0, "--ray", "127.0.0.1:1")
    assert code == 2
    assert "there is no Ray cluster at 127.0.0.1:1" in output
    assert len(output.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "lists"])
def test_a_shard_that_is_killed_under_load_loses_no_query_and_changes_no_answer(folders, kind):
    pytest.importorskip("ray")
    whole = index.load(folders[kind])
    with served(folders[kind], "--ray", "local", "--shards", 2) as address:
        first = health(address)["processes"]
        assert len({*first, os.getpid()}) == 3
        killed = threading.Event()

        def load(thread):
            """Ask until some queries after the kill were answered; how many were, and those that were not right."""
            wrong, after, asked = [], 0, 0
            while after < 5:
                vectors = queries(2, seed=1000 * thread + asked % 50)
                after += killed.is_set()
                status, answer = post(address, "search", {"vectors": vectors.tolist(), "topk": TOPK})
                asked += 1
                expected = whole.search(vectors, TOPK)[1].tolist()
                if status != 200 or answer["rows"] != expected:
                    wrong.append(answer)
            return asked, wrong

        with ThreadPoolExecutor(4) as pool:
            loads = [pool.submit(load, thread) for thread in range(4)]
            time.sleep(1)
            os.kill(first[1], signal.SIGKILL)
            killed.set()
            for done in loads:
                asked, wrong = done.result(timeout=120)
                assert asked > 5
                assert not wrong
        now = health(address)["processes"]
        assert now[0] == first[0]
        assert now[1] != first[1]
