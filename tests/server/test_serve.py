"""`search.py serve`: an index with shards, its options, files that change meanwhile, a shard that is killed."""
import base64
import contextlib
import functools
import http.client
import json
import os
import select
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from indexes import TIED, TIED_NAME, copy_uncut, cut_in_two, make_tied, tied_queries
from retrieval import index, manifest, shards
from server.client import Remote
from servers import address_of, health, post, served, start
from storage.files import fingerprint
from tiny import run
from util import UserError

pytest.importorskip("faiss")
pytest.importorskip("starlette")

TOPK = 40


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_tied(tmp_path_factory)


@pytest.fixture(scope="module")
def address_of_index(folders):
    """address_of_index(kind, shards): the address of a server that these tests share."""
    with contextlib.ExitStack() as servers:
        yield functools.cache(lambda kind, count: servers.enter_context(served(folders[kind], "--shards", count)))


@pytest.fixture(scope="module")
def address(address_of_index):
    return address_of_index("flat", 1)


def assert_answered(answer, expected):
    """An answer of /search is what Index.search gives, to the last bit."""
    scores, rows = expected
    assert [line[line >= 0].tolist() for line in rows] == answer["rows"]
    assert [line[known >= 0].tolist() for line, known in zip(scores, rows, strict=True)] == answer["scores"]
    assert [[f"/photos/{TIED_NAME.format(row)}" for row in line] for line in answer["rows"]] == answer["paths"]


# ---------------------------------------------------------------- answers

@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", ["flat", "lists"])
def test_answers_are_those_of_the_whole_index_ties_included(folders, address_of_index, kind, count):
    whole, address = index.load(folders[kind]), address_of_index(kind, count)
    assert health(address)["photos"] == TIED
    assert health(address)["shards"] == count
    for size, topk, probes in ((1, TOPK, 2), (70, TOPK, 2), (3, TIED, 16), (2, TIED, 1), (5, 1, 3)):
        asked = tied_queries(size)
        status, answer = post(address, "search", {"vectors": asked.tolist(), "topk": topk, "nprobe": probes})
        assert status == 200, answer
        assert_answered(answer, whole.search(asked, topk, probes))
    encoded = base64.b64encode(tied_queries(9).tobytes()).decode()
    assert_answered(post(address, "search", {"vectors": encoded})[1], whole.search(tied_queries(9), 20))


def test_concurrent_queries_do_not_mix(folders, address_of_index):
    whole, address = index.load(folders["lists"]), address_of_index("lists", 2)
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda seed: post(address, "search", {"vectors": tied_queries(3, seed).tolist()}), range(40))
        for seed, (status, answer) in enumerate(answers):
            assert status == 200, answer
            assert_answered(answer, whole.search(tied_queries(3, seed), 20))


def test_words_give_the_same_json_with_a_server_and_without(folders, address_of_index):
    address = address_of_index("lists", 2)
    there = run("search.py", "query", "--server", address, "--words", "TAG7", "--json", "--nprobe", 3)
    assert there == run("search.py", "query", folders["lists"], "--words", "TAG7", "--json", "--nprobe", 3)
    assert json.loads(there[1])["results"]
    code, output = run("search.py", "query", "--server", f"http://{address}/", "--words", "tga3")
    assert code == 2
    assert "'tga3' is none of the 24 tags" in output


# ---------------------------------------------------------------- the start and the end

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_that_came_before_the_stop_are_answered_and_later_ones_refused(folders, number):
    asked = {"vectors": tied_queries(3).tolist(), "topk": TIED // 4}
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


@pytest.mark.parametrize(("options", "sentence"), [
    (["--shards", TIED + 1], f"{TIED + 1} shards and {TIED} photos"),
    (["--host", "256.0.0.1", "--token", "t"], "256.0.0.1:0: cannot listen there"),
    (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in, so choose a --token"),
    (["--token", "t é"], "argument --token: expected letters, digits, and - . _ ~ only"),
])
def test_what_cannot_be_served_is_one_sentence_and_exit_code_2(folders, options, sentence):
    code, output = run("search.py", "serve", folders["flat"], "--port", 0, *options)
    assert code == 2
    assert sentence in output.splitlines()[-1]
    assert "Traceback" not in output


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "faiss"])
def test_a_package_that_is_missing_is_one_sentence(folders, package):
    without = f"import sys, util, search; sys.modules[{package!r}] = None; util.run_program(search.main)"
    code, output = run("-c", without, "serve", folders["flat"], "--port", 0)
    assert code == 2
    assert len(output.splitlines()) == 1
    assert f"pip install -e '.[{'search' if package == 'faiss' else 'serve'}]'" in output


# ---------------------------------------------------------------- options

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


# ---------------------------------------------------------------- files

@pytest.mark.parametrize(("kind", "count"), [("flat", 1), ("lists", 2)])
def test_files_that_are_cut_or_altered_while_they_are_served_change_no_answer(folders, tmp_path, kind, count):
    copy_uncut(folders[kind], tmp_path / "index")
    asked = {"vectors": tied_queries(3).tolist(), "topk": TIED, "nprobe": 16}
    with served(tmp_path / "index", "--shards", count) as address:
        for path in sorted((tmp_path / "index").glob("**/*.*")):
            if path.name != manifest.MANIFEST and path.is_file() and path.stat().st_size:
                with open(path, "r+b") as file:
                    file.write(bytes(byte ^ 255 for byte in file.read()[:500_000]))
        found, words = post(address, "search", asked), post(address, "words", {"words": "tag7", "topk": TIED})
        for path in (tmp_path / "index").glob("**/*.*"):
            if path.name != manifest.MANIFEST and path.is_file():
                os.truncate(path, 0)
        assert post(address, "search", asked) == found
        assert post(address, "words", {"words": "tag7", "topk": TIED}) == words
    assert_answered(found[1], index.load(folders[kind]).search(tied_queries(3), TIED, 16))
    assert words[0] == 200


def test_a_shard_that_was_altered_or_is_missing_is_named(folders, tmp_path):
    shutil.copytree(folders["lists"], tmp_path / "index")
    _, shard = cut_in_two(tmp_path / "index")
    sound = shard.read_bytes()
    shard.write_bytes(sound[:-9] + bytes([sound[-9] ^ 1]) + sound[-8:])
    code, output = run("search.py", "serve", tmp_path / "index", "--shards", 2, "--port", 0)
    assert code == 2
    assert "shard-2.faiss was altered" in output.splitlines()[-1]
    assert "Traceback" not in output
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-2\.faiss: no such file.*delete .*shards-2 to have it made anew"):
        cut_in_two(tmp_path / "index")
    shutil.rmtree(shard.parent)
    assert cut_in_two(tmp_path / "index")[1].read_bytes() == sound


def test_shards_are_cut_once_and_again_when_the_index_was_rewritten(folders, tmp_path):
    copy_uncut(folders["flat"], tmp_path / "index")
    before = cut_in_two(tmp_path / "index")[0].stat().st_ino
    assert cut_in_two(tmp_path / "index")[0].stat().st_ino == before
    opened = shards.Part(str(cut_in_two(tmp_path / "index")[0]), fingerprint(tmp_path / "index" / manifest.MANIFEST), 0)
    content = index.load(tmp_path / "index").content
    content.codes = content.codes[::-1].copy()
    with served(tmp_path / "index", "--shards", 2) as address:
        asked = {"vectors": tied_queries(2).tolist()}
        before, deadline = post(address, "search", asked)[1], time.monotonic() + 60
        whole = index.save(tmp_path / "index", content)
        while (answer := post(address, "search", asked)[1]) == before:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert_answered(answer, whole.search(tied_queries(2), 20))
    with pytest.raises(UserError, match="was cut from another index"):
        shards.Shard(opened, threads=1)


# ---------------------------------------------------------------- Ray

@pytest.mark.slow
def test_a_ray_address_where_no_cluster_answers_is_one_sentence(folders):
    pytest.importorskip("ray")
    code, output = run("search.py", "serve", folders["flat"], "--port", 0, "--ray", "127.0.0.1:1")
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
                vectors = tied_queries(2, seed=1000 * thread + asked % 50)
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
