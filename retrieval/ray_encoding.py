"""Encoding many photos by the workers of Ray, on this machine or on a cluster.

Importing this module raises UserError where Ray is not installed.
"""
import contextlib
import json
import logging
import os
import platform
import signal
import sys
import threading

import numpy as np
import pyarrow

from retrieval import cluster
from retrieval.cluster import ray
from retrieval.encode import ShardEncoder, versions
from util import ROOT, UserError, cores, note, one_line

# A worker is one CPU: with more threads each, workers on one machine would be in each other's way.
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1",
              "OPENBLAS_NUM_THREADS": "1"}


class RayEncoder(ShardEncoder):
    """A ShardEncoder as an actor of Ray Data, which restarts it and repeats its shard when it dies."""

    def __init__(self, model, plan, *arguments):
        self._error = None if versions() == plan["versions"] else (
            f"{platform.node()} has the versions {versions()}, expected {plan['versions']}")
        super().__init__(ray.get(model), plan, *arguments)

    def __call__(self, table):
        """From a table of one row, shard and names, to one of one row: shard, codes, faults, error."""
        shard, names = table["shard"][0].as_py(), table["names"][0].as_py()
        codes, faults, error = np.empty(0, np.uint8), {}, self._error
        if not error:
            try:
                codes, faults = self.encode(shard, [os.fsdecode(name) for name in names.split(b"\0")])
            except UserError as caught:
                error = str(caught)
        return pyarrow.table({"shard": [shard], "codes": pyarrow.array([codes.tobytes()], pyarrow.binary()),
                              "faults": [json.dumps(faults)], "error": pyarrow.array([error], pyarrow.string())})


def encode_by_ray(job, missing, model, gpu, bar, address, workers=None, patience=600):
    """As `encoding.encode_here`, made by Ray's workers and in the order in which they finish.

    Args:
        address: of the cluster, as of `cluster.start`.
        workers (int): how many, or None for as many as there is room for.
        patience: seconds without a shard after which a note says what is waited for.
    """
    with quiet_logging():
        try:
            workers = join(address, workers, gpu)
            yield from encode_with(workers, job, missing, model, gpu, bar, patience)
        except ray.exceptions.RayError as error:
            raise UserError(f"Ray could not go on: {one_line(str(error).strip().splitlines()[-1])}") from error
        finally:
            ray.shutdown()


def encode_with(workers, job, missing, model, gpu, bar, patience):
    """The same with so many workers of Ray, which is connected."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    shards = ray.data.from_items([{"shard": shard, "names": b"\0".join(map(os.fsencode, job.shards[shard]))}
                                  for shard in missing], override_num_blocks=len(missing))
    own_gpu, gpus = (None, 0) if gpu is None else (0, 1)  # Ray shows each worker none but its own
    made = shards.map_batches(  # Ray Data's own defaults restart actors and repeat their work without limit
        RayEncoder, fn_constructor_args=(ray.put(model), job.plan, job.folder, job.witness(), own_gpu),
        batch_size=1, batch_format="pyarrow", num_cpus=1, num_gpus=gpus,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(missing)), max_tasks_in_flight_per_actor=1))
    left = set(missing)

    def tell():
        cpus, free = (found.get("CPU", 0) for found in (ray.cluster_resources(), ray.available_resources()))
        note(f"no shard came within {patience:g} s: {len(left)} are still to come, from {workers} workers; Ray has "
             f"{cpus:g} CPUs, {free:g} of them free")
    with waiting(patience, tell) as came:
        for table in made.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
            came()
            row = table.to_pylist()[0]
            if row["error"]:
                raise UserError(row["error"])
            shard, faults = row["shard"], {int(i): fault for i, fault in json.loads(row["faults"]).items()}
            left.remove(shard)
            yield shard, np.frombuffer(row["codes"], np.uint8).reshape(-1, job.plan["codebooks"]), faults
            bar.update(len(job.shards[shard]))


@contextlib.contextmanager
def quiet_logging():
    """Log nothing within the block: what is wrong with Ray is told in a sentence."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def join(address, workers, gpu):
    """Start Ray (`local`) or join a cluster, and return how many workers there are to be. Raises UserError."""
    workers = workers or (cores() if address == "local" else None)
    code = {"working_dir": str(ROOT), "excludes": [f"/{path.name}" for path in ROOT.iterdir()
                                                    if path.suffix != ".py" and not (path / "__init__.py").is_file()]}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        cluster.start(address, (workers or 0) + 1, {"env_vars": ONE_THREAD, **code})
    except SystemExit:  # of Ray's own handler of SIGTERM, with another code
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
def waiting(patience, tell):
    """Call `tell()` from a thread whenever the function that is given was not called for `patience` seconds."""
    event, ended = threading.Event(), threading.Event()

    def watch():
        while not ended.is_set():
            if not event.wait(patience) and not ended.is_set():
                tell()
            event.clear()
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield event.set
    finally:
        ended.set()
        event.set()
