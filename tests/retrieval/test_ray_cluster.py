"""Encoding photos by Ray's workers, with the full network: two workers, signals and kills, clusters."""
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from encoding import files, make_root
from retrieval import ray_cluster
from tiny import EXPERIMENT, PROJECT, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("ray"))


@pytest.fixture(scope="module")
def checkpoint(root):
    return root / "checkpoints" / f"{EXPERIMENT}.npy"


def start(root, checkpoint, out, *options):
    """The program in the background, on a thread as Ray's workers, with enough to do to be disturbed."""
    return subprocess.Popen([sys.executable, "search.py", "encode", checkpoint, root / "photos", out, "--shard",
                             "1", "--root", root, *map(str, options)], cwd=PROJECT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, env={**os.environ, **ray_cluster.ONE_THREAD})


def end(process):
    output = process.communicate(timeout=600)[0]
    assert "Traceback" not in output, output
    return process.returncode, output


def wait_for_shards(out, count, process):
    while len(list(out.glob("shard-*.json"))) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def descendants(pid):
    """Processes that a process started, and those that they started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return children + [process for child in children for process in descendants(child)]


@pytest.fixture(scope="module")
def undisturbed(root, checkpoint):
    """What one process gives."""
    code, output = end(start(root, checkpoint, root / "undisturbed"))
    assert code == 0, output
    return files(root / "undisturbed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("ray", [(), ("--ray", "local", "--workers", 1)], ids=["alone", "ray"])
def test_a_signal_ends_it_at_once_and_the_same_command_goes_on(root, checkpoint, undisturbed, tmp_path, number, ray):
    process = start(root, checkpoint, tmp_path, *ray)
    wait_for_shards(tmp_path, 2, process)
    process.send_signal(number)
    code, output = end(process)
    assert code == 128 + number, output
    assert 2 <= len(list(tmp_path.glob("shard-*.json"))) < 20
    code, output = end(start(root, checkpoint, tmp_path))
    assert code == 0, output
    assert files(tmp_path) == undisturbed


@pytest.mark.parametrize("killed", ["nobody", "a worker", "the driver"])
def test_two_workers_write_the_same_bytes_whoever_is_killed(root, checkpoint, undisturbed, tmp_path, killed):
    process = start(root, checkpoint, tmp_path, "--ray", "local", "--workers", 2)
    wait_for_shards(tmp_path, 3, process)
    workers = [pid for pid in descendants(process.pid)
               if "RayEncoder" in Path(f"/proc/{pid}/cmdline").read_text(errors="replace")]
    assert len(workers) == 2
    if killed != "nobody":
        os.kill(workers[0] if killed == "a worker" else process.pid, signal.SIGKILL)
        assert len(list(tmp_path.glob("shard-*.json"))) < 20
    code, output = end(process)
    if killed == "the driver":
        assert code == -signal.SIGKILL
        code, output = end(start(root, checkpoint, tmp_path, "--ray", "local", "--workers", 2))
    assert code == 0, output
    assert files(tmp_path) == undisturbed


def test_a_port_at_which_something_else_listens_is_one_sentence_and_no_endless_wait(root, checkpoint, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        code, output = end(start(root, checkpoint, tmp_path, "--ray", f"127.0.0.1:{server.getsockname()[1]}"))
    assert code == 2
    assert "no Ray cluster could be joined: nothing answered within 12 seconds" in output


def test_a_cluster_is_joined_more_workers_than_it_has_room_for_are_refused_and_a_long_wait_is_noted(
        root, checkpoint, undisturbed, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    cluster = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2",
         f"--port={address.split(':')[1]}", "--include-dashboard=false", "--disable-usage-stats"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "RAY_worker_niceness": "0"})
    try:
        wait_for("Ray runtime started", cluster)
        code, output = end(start(root, checkpoint, tmp_path, "--ray", address, "--workers", 2))
        assert code == 2
        assert "has 2 CPUs and 0 GPUs, of which one CPU stays free: room for 1 workers, found --workers 2" in output
        code, output = end(start(root, checkpoint, tmp_path, "--ray", address, "--patience", 0.5))
        assert code == 0, output
        assert "note: no shard came within 0.5 s: 20 are still to come, from 1 workers; Ray has 2 CPUs" in output
        assert files(tmp_path) == undisturbed
        monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
        code, output = end(start(root, checkpoint, tmp_path / "other", "--ray", address))
        assert code == 2
        assert "within 12 seconds, or it expects another token than RAY_AUTH_TOKEN" in output
    finally:
        cluster.terminate()
        cluster.wait()
