"""Ray: joining a cluster of machines or starting one on this machine, to encode photos or to search shards.

Importing this module raises UserError where Ray is not installed.
"""
import contextlib
import json
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.encoder import encoder_next_to
from retrieval.encode import ShardEncoder, versions
from retrieval.shards import Shard
from util import ROOT, UserError, cores, note, one_line

ANSWER_SECONDS = 12  # in which a cluster has to answer
START_SECONDS = 120  # in which Ray has to start every shard
SHARD_CPUS = 0.1  # that a shard reserves, so that every shard finds room on a small machine
OWN_TOKEN = "~/.ray/auth_token"  # where Ray keeps the token of clusters started by this user
JOIN = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"
# A worker is one CPU: with more threads each, the workers of one machine would get in each other's way.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# Ray reads these when it is imported.
os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal",
                   "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1"})
if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or os.path.isfile(os.path.expanduser(OWN_TOKEN)):
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # otherwise Ray does not show it to a cluster at HOST:PORT
try:
    import pyarrow
    import ray
except ImportError:
    raise UserError("this needs Ray: pip install -e '.[scale]'") from None


# ---------------------------------------------------------------- the cluster

def check_reachable(address):
    """Raise UserError if nothing listens at HOST:PORT."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except OSError as error:
        raise UserError(f"there is no Ray cluster at {address}: {one_line(error)}") from error


def start(address, cpus, environment=None):
    """Join the Ray cluster at `address`, `auto` for the one of this machine; or start one for `local`, of `cpus` CPUs.

    `environment`: Ray's runtime_env of the workers. Raises UserError where no cluster answers.
    """
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # programs report what is wrong in a sentence
    options = {"log_to_driver": False, "configure_logging": False, "runtime_env": environment}
    if address == "local":
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: other work would starve it
        options |= {"num_cpus": cpus, "include_dashboard": False}
    else:
        _try_to_join(address)
    try:
        ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(f"Ray ({address}) could not be joined: {one_line(error)}") from error


def _try_to_join(address):
    """Join in a separate process, which can be given up; Ray itself tries for minutes and then ends the program."""
    try:
        done = subprocess.run([sys.executable, "-c", JOIN, address], capture_output=True, text=True,
                              timeout=ANSWER_SECONDS)
        why = done.stderr.strip().rpartition("\n")[2] if done.returncode else None
    except subprocess.TimeoutExpired:
        why = f"nothing answered within {ANSWER_SECONDS} seconds, or it expects another token than RAY_AUTH_TOKEN"
    if why is not None:
        raise UserError(f"{address}: no Ray cluster could be joined: {one_line(why)}")


# ---------------------------------------------------------------- encoding photos

class RayEncoder(ShardEncoder):
    """A ShardEncoder as an actor of Ray Data, which restarts it and repeats its shard when it dies.

    Args:
        files: Ray's reference to `checkpoint_files`, as the actor's machine need not have the checkpoint.
        name: of the checkpoint's file.
        plan, arguments: those of ShardEncoder.
    """

    def __init__(self, files, name, factor, plan, *arguments):
        self._error = None if versions() == plan["versions"] else (
            f"{platform.node()} has the versions {versions()}, expected {plan['versions']}")
        with tempfile.TemporaryDirectory() as folder:
            for file, content in ray.get(files).items():
                Path(folder, file).write_bytes(content)
            super().__init__(Path(folder, name), factor, plan, *arguments)

    def __call__(self, table):
        """From a table of one row with shard and names to one of one row with shard, codes, faults and error."""
        shard, names = table["shard"][0].as_py(), table["names"][0].as_py()
        codes, faults, error = np.empty(0, np.uint8), {}, self._error
        if not error:
            try:
                codes, faults = self.encode(shard, [os.fsdecode(name) for name in names.split(b"\0")])
            except UserError as caught:
                error = str(caught)
        return pyarrow.table({"shard": [shard], "codes": pyarrow.array([codes.tobytes()], pyarrow.binary()),
                              "faults": [json.dumps(faults)], "error": pyarrow.array([error], pyarrow.string())})


def checkpoint_files(checkpoint):
    """{name: content} of a checkpoint, its encoder and their records."""
    files = [file.with_suffix(suffix) for file in (checkpoint, encoder_next_to(checkpoint))
             for suffix in (file.suffix, ".json")]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


@dataclass(frozen=True)
class Workers:
    """Ray's workers, which encode photos.

    address: of the cluster, see `start`; count: how many, or None for as many as there is room for; patience: seconds
    without a shard after which a note says how many are still to come.
    """
    address: str
    count: int | None
    patience: float

    def encode_shards(self, job, missing, checkpoint, factor, gpu, bar):
        """The same as `encode.encode_here`, but shards come in the order in which they are finished."""
        with quiet_logging():
            try:
                count = join(self.address, self.count, gpu)
                made = start_encoding(min(count, len(missing)), job, missing, checkpoint, factor, gpu)
                left = set(missing)
                with waiting(self.patience, lambda: note_waiting(self.patience, len(left), count)) as came:
                    for table in made.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
                        came()
                        row = table.to_pylist()[0]
                        if row["error"]:
                            raise UserError(row["error"])
                        shard, faults = row["shard"], {int(i): fault for i, fault in json.loads(row["faults"]).items()}
                        left.remove(shard)
                        yield shard, np.frombuffer(row["codes"], np.uint8).reshape(-1, job.plan["codebooks"]), faults
                        bar.update(len(job.shards[shard]))
            except ray.exceptions.RayError as error:
                raise UserError(f"Ray could not continue: {one_line(str(error).strip().splitlines()[-1])}") from error
            finally:
                ray.shutdown()


def start_encoding(workers, job, missing, checkpoint, factor, gpu):
    """The data set of Ray whose rows are the encoded shards, as RayEncoder returns them."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    shards = ray.data.from_items([{"shard": shard, "names": b"\0".join(map(os.fsencode, job.shards[shard]))}
                                  for shard in missing], override_num_blocks=len(missing))
    own_gpu, gpus = (None, 0) if gpu is None else (0, 1)  # Ray shows each worker only its own
    return shards.map_batches(  # Ray Data's own defaults restart actors and repeat their work without limit
        RayEncoder, fn_constructor_args=(ray.put(checkpoint_files(checkpoint)), checkpoint.name, factor, job.plan,
                                         job.folder, job.witness(), own_gpu),
        batch_size=1, batch_format="pyarrow", num_cpus=1, num_gpus=gpus,
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1))


def join(address, workers, gpu):
    """Start Ray (`local`) or join a cluster, and return the number of workers. Raises UserError."""
    workers = workers or (cores() if address == "local" else None)
    code = {"working_dir": str(ROOT), "excludes": [f"/{path.name}" for path in ROOT.iterdir()
                                                    if path.suffix != ".py" and not (path / "__init__.py").is_file()]}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        start(address, (workers or 0) + 1, {"env_vars": ONE_THREAD, **code})
    except SystemExit:  # raised by Ray's own handler of SIGTERM, with another exit code
        sys.exit(128 + signal.SIGTERM)
    signal.signal(signal.SIGTERM, handler)
    found = ray.cluster_resources()
    most = int(found.get("CPU", 0)) - 1  # one for Ray's own work: without it, nothing would be read or written
    if gpu is not None:
        most = min(most, int(found.get("GPU", 0)))
    if not 1 <= (workers or most) <= most:
        raise UserError(f"Ray ({address}) has {found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs, of which "
                        f"one CPU stays free: room for {max(most, 0)} workers, found --workers {workers or 1}")
    return workers or most


@contextlib.contextmanager
def quiet_logging():
    """Log nothing within the block: what is wrong with Ray is reported in a sentence."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def waiting(patience, report):
    """Give a function; call `report()` from a thread whenever it was not called for `patience` seconds."""
    event, ended = threading.Event(), threading.Event()

    def watch():
        while not ended.is_set():
            if not event.wait(patience) and not ended.is_set():
                report()
            event.clear()
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield event.set
    finally:
        ended.set()
        event.set()


def note_waiting(patience, left, workers):
    """Note that no shard came for a while."""
    cpus, free = (found.get("CPU", 0) for found in (ray.cluster_resources(), ray.available_resources()))
    note(f"no shard came within {patience:g} s: {left} are still to come, from {workers} workers; Ray has {cpus:g} "
         f"CPUs, {free:g} of them free")


# ---------------------------------------------------------------- searching shards

def connect(address, shards):
    """Join or start Ray with room for this many shards. Returns the class that opens them."""
    start(address, shards + 1)
    return Actors


class Actors:
    """Shards in processes of Ray, which is connected. One that ends is started again, and its query is repeated.

    Args:
        parts: list of shards.Part.
    """

    def __init__(self, parts):
        actor = ray.remote(num_cpus=SHARD_CPUS, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")(
            Shard)
        self._actors = [actor.remote(part, threads=1) for part in parts]
        try:
            ray.get([actor.__ray_ready__.remote() for actor in self._actors], timeout=START_SECONDS)
        except ray.exceptions.GetTimeoutError:
            raise UserError(f"Ray did not start {len(parts)} shards within {START_SECONDS} seconds: is there room for "
                            "them in the cluster?") from None
        except ray.exceptions.RayActorError as error:
            why = str(error).strip().splitlines()[-1]
            raise UserError(f"a shard did not start: {one_line(why)}") from None

    def ask(self, *question):
        """What `Shard.search` returns for the question, of each shard."""
        return ray.get([actor.search.remote(*question) for actor in self._actors])
