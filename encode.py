"""Encode millions of photos, on one machine or many: `python encode.py CHECKPOINT IMAGES OUT [--ray ADDRESS]`.

The list of photos is cut into shards. A shard's codes depend on nothing but the checkpoint, its photos, the options and
its number, so whoever makes them, and however often that begins anew, OUT is the same:

    plan.json             written first: what the codes depend on
    shard-00000.parquet   the columns path and code; and so on
    shard-00000.json      its checksum: count, photos left out and why, SHA-256
    left_out.parquet      the columns path and reason
    manifest.json         written last: counts, and the SHA-256 of each file

Letters: N photos, n of a shard, M codebooks.
"""
import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval import cluster
from storage.safe_files import (
    check_checksums,
    check_settings,
    exclusive_lock,
    fingerprint,
    read_json,
    replacing,
    with_checksums,
    write_json,
)
from util import (
    PRECISIONS,
    ROOT,
    UserError,
    add_precision,
    add_shared_options,
    gpu_number,
    note,
    number,
    one_line,
    progress,
    run_program,
    stream,
)

PLAN, MANIFEST, LEFT_OUT = "plan.json", "manifest.json", "left_out.parquet"
SHARD = 4096  # photos
# A worker is one CPU: with more threads each, workers on one machine would be in each other's way.
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1",
              "OPENBLAS_NUM_THREADS": "1"}
NEEDED_FACTS = {"checkpoint_sha256", "codebooks", "crops", "experiment", "images", "precision", "sha256"}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Encode photos with a trained checkpoint into shards of codes, of which `search.py build "
                    "CHECKPOINT OUT` makes an index. After an interruption the same command goes on.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="an .npy file that train.py wrote")
    parser.add_argument("images", metavar="IMAGES", type=Path,
                        help="a folder of photos, or a text file of photos, one path a line, relative to its folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the codes")
    parser.add_argument("--ray", type=cluster.ray_address, metavar="ADDRESS",
                        help="let Ray's workers do it: `local` starts Ray here; `auto`, or HOST:PORT, joins a cluster "
                             "(default: this process does it)")
    parser.add_argument("--workers", type=number(int, 1), metavar="N",
                        help="of Ray, one CPU each (default: as many as there is room for)")
    parser.add_argument("--crops", type=int, choices=(10, 5, 1), default=10, help="crops a photo (default 10)")
    parser.add_argument("--trained-on", metavar="NAME",
                        help="data set whose tags the checkpoint learned (default: as its .json file says)")
    parser.add_argument("--shard", type=number(int, 1), default=SHARD, metavar="N",
                        help=f"photos a shard (default {SHARD})")
    parser.add_argument("--patience", type=number(float, 0.1), default=600, metavar="SECONDS",
                        help="without a shard from Ray, after which to say what is waited for (default 600)")
    parser.add_argument("--gpu", type=gpu_number, default=None, metavar="GPU",
                        help="number of the GPU; with --ray, any number gives each worker a GPU (default: the CPU)")
    add_precision(parser)
    add_shared_options(parser)
    return parser.parse_args()


def main():
    options = parse_arguments()
    signal.signal(signal.SIGTERM, stop)
    encode(**vars(options))


def stop(number, _frame):
    sys.exit(128 + number)


# ---------------------------------------------------------------- what is to be done

@dataclass(frozen=True)
class Job:
    """Photos to encode. out: where to; folder: of the photos; names: N paths relative to it; plan: see `make_plan`."""
    out: Path
    folder: Path
    names: list
    plan: dict

    def shards(self):
        return range(-(-len(self.names) // self.plan["shard"]))

    def shard_names(self, shard):
        return self.names[shard * self.plan["shard"]:(shard + 1) * self.plan["shard"]]

    def path(self, shard):
        return self.out / f"shard-{shard:05}.parquet"

    def missing(self):
        """Numbers of the shards that are not there with their checksum. Raises UserError for one that was altered."""
        return [shard for shard in progress(self.shards(), desc="checking shards", leave=False)
                if not (self.path(shard).is_file() and check_checksums(self.path(shard).with_suffix(".json")))]

    def witness(self):
        """A photo that is there, to tell bad photos from a folder that a machine does not see; or None."""
        return next((path for path in (f"{self.folder}/{name}" for name in self.names) if os.path.isfile(path)), None)


def encode(checkpoint, images, out, ray=None, workers=None, crops=10, trained_on=None, shard=SHARD, seed=0, gpu=None,
           patience=600, precision=PRECISIONS[0], root=ROOT):
    """Encode photos into `out`, or those that are missing there. Arguments are those of the command line."""
    need_arrow()
    if ray is not None:
        cluster.check_reachable(ray)
    import dataset
    import net_val
    import quantizer
    import search
    weights, codebooks = net_val.read_checkpoint(checkpoint)
    source = find_photos(images)
    tagged = search.training_dataset(checkpoint, source, root, trained_on)
    tagged.check_tags()
    factor = quantizer.semantic_factor(dataset.read_tag_embeddings(tagged.tag_embeddings))
    job = Job(out, source.folder, source.names,
              make_plan(checkpoint, tagged, source.names, crops, precision, seed, shard, len(codebooks)))
    with exclusive_lock(out / ".lock", f"{out}: another run is at work there"):
        begin(job)
        missing = job.missing()
        if not missing and (out / MANIFEST).is_file():
            print(f"{out} is finished: {summary(read_json(out / MANIFEST))}")
            return
        (out / MANIFEST).unlink(missing_ok=True)
        model = weights, codebooks, factor
        total = sum(len(job.shard_names(shard)) for shard in missing)
        with progress(total=total, desc="encoding photos", unit="photo") as bar:
            made = (encode_here(job, missing, model, gpu, bar) if ray is None or not missing else
                    encode_by_ray(job, missing, model, gpu, bar, ray, workers, patience))
            with contextlib.closing(made):
                for shard, codes, faults in made:
                    write_shard(job, shard, codes, faults)
        manifest = finish(job, {"experiment": checkpoint.stem, "checkpoint": str(checkpoint.resolve()),
                                "trained_on": tagged.name})
        print(f"{out}: {summary(manifest)}")


def summary(manifest):
    return (f"{manifest['count']:,} photos in {len(manifest['sha256']) - 1:,} shards"
            + (f"; {manifest['left_out']:,} were left out, see {LEFT_OUT}" if manifest["left_out"] else ""))


def need_arrow():
    """Raise UserError where pyarrow is missing."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UserError("codes in shards need pyarrow: pip install -r requirements-scale.txt") from None


def find_photos(images):
    """The photos of a folder or of a list of photos, a `search.Source`. Raises UserError."""
    import dataset
    import search
    if images.is_dir():
        folder, names = images, search.photo_names(images)
    elif images.is_file():
        folder, names = images.parent, dataset.read_image_list(images, errors="surrogateescape")
    else:
        raise UserError(f"{images}: expected a folder of photos or a list of them, found neither")
    return search.Source(Path(os.path.realpath(folder)), names, None, [], None)


def make_plan(checkpoint, tagged, names, crops, precision, seed, shard, codebooks):
    """All that the codes depend on, the photos by their names."""
    listed = hashlib.sha256(b"\0".join(map(os.fsencode, names)))
    return {"made_by": "encode.py", "checkpoint_sha256": fingerprint(checkpoint),
            "tags_sha256": fingerprint(tagged.tag_embeddings), "photos": len(names),
            "photos_sha256": listed.hexdigest(), "crops": crops, "precision": precision, "seed": seed, "shard": shard,
            "codebooks": codebooks, "versions": versions()}


def versions():
    """Of what embeds and encodes."""
    return {name: importlib.metadata.version(name) for name in ("tensorflow", "numpy", "opencv-python")}


def begin(job):
    """Write the plan. Raises UserError if there are shards of another one."""
    if any(job.out.glob("shard-*.json")):
        check_settings(job.out / PLAN, job.plan)
    else:
        write_json(job.out / PLAN, job.plan)


# ---------------------------------------------------------------- encoding

class ShardEncoder:
    """A network that stands ready to encode shards.

    Args:
        model: weights as of `net_val.read_checkpoint`, codebooks, float32 (M, K, D), and L of
            `quantizer.semantic_factor`.
        plan, folder, witness: those of the Job.
        gpu: number of the GPU, or None for the CPU.
    """

    def __init__(self, model, plan, folder, witness, gpu):
        import net_val
        from session import device_name
        weights, self._codebooks, self._factor = model
        self._plan, self._folder, self._witness = plan, folder, witness
        precision = plan["precision"]
        self._encoder = net_val.Encoder(weights, plan["crops"], device_name(gpu, note, precision), precision)

    def encode(self, shard, names, advance=lambda photos: None):
        """Codes of a shard's photos that can be used, uint8 (n, M), and {row: what is wrong} of the others.

        Raises UserError if the network gives NaN, and if no photo can be read since their folder is not there.
        """
        import net_val
        import quantizer
        faults = {row: fault for row, name in enumerate(names) if (fault := name_fault(name))}
        rows = [row for row in range(len(names)) if row not in faults]
        embeddings, bad = self._encoder.embed_sound([f"{self._folder}/{names[row]}" for row in rows], advance)
        advance(len(faults))
        faults |= {rows[i]: fault for i, fault in bad.items()}
        codes = np.empty((0, len(self._codebooks)), np.uint8)
        if len(embeddings):
            rng = stream(self._plan["seed"], "encode shard", shard)
            codes = quantizer.encode(embeddings, self._codebooks, self._factor, rng, net_val.CHUNK)
        elif self._witness and not os.path.isfile(self._witness):
            raise UserError(f"{platform.node()} does not see the photos: {self._witness}: no such file there")
        return codes, dict(sorted(faults.items()))


def name_fault(name):
    """What is wrong with a photo's name, or None."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name that is not UTF-8"
    return "has a line break in its name" if "\n" in name else None


def encode_here(job, missing, model, gpu, bar):
    """Each missing shard's number, codes and faults as of `ShardEncoder.encode`, made in this process."""
    encoder = missing and ShardEncoder(model, job.plan, job.folder, job.witness(), gpu)
    for shard in missing:
        yield shard, *encoder.encode(shard, job.shard_names(shard), bar.update)


# ---------------------------------------------------------------- Ray

class RayEncoder(ShardEncoder):
    """The same as an actor of Ray Data, which restarts it and repeats its shard when it dies."""

    def __init__(self, model, plan, *arguments):
        import ray
        self._error = None if versions() == plan["versions"] else (
            f"{platform.node()} has the versions {versions()}, expected {plan['versions']}")
        super().__init__(ray.get(model), plan, *arguments)

    def __call__(self, table):
        """From a table of one row, shard and names, to one of one row: shard, codes, faults, error."""
        import pyarrow
        shard, names = table["shard"][0].as_py(), table["names"][0].as_py()
        codes, faults, error = np.empty(0, np.uint8), {}, self._error
        if not error:
            try:
                codes, faults = self.encode(shard, [os.fsdecode(name) for name in names.split(b"\0")])
            except UserError as caught:
                error = str(caught)
        return pyarrow.table({"shard": [shard], "codes": pyarrow.array([codes.tobytes()], pyarrow.binary()),
                              "faults": [json.dumps(faults)], "error": pyarrow.array([error], pyarrow.string())})


def encode_by_ray(job, missing, model, gpu, bar, address, workers, patience):
    """As `encode_here`, made by Ray's workers and in the order in which they finish."""
    workers = join(address, workers, gpu)
    import ray
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    shards = ray.data.from_items([{"shard": shard, "names": b"\0".join(map(os.fsencode, job.shard_names(shard)))}
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
    try:
        with waiting(patience, tell) as came:
            for table in made.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
                came()
                row = table.to_pylist()[0]
                if row["error"]:
                    raise UserError(row["error"])
                shard, faults = row["shard"], {int(i): fault for i, fault in json.loads(row["faults"]).items()}
                left.remove(shard)
                yield shard, np.frombuffer(row["codes"], np.uint8).reshape(-1, job.plan["codebooks"]), faults
                bar.update(len(job.shard_names(shard)))
    except ray.exceptions.RayError as error:
        raise UserError(f"Ray could not go on: {one_line(str(error).strip().splitlines()[-1])}") from error
    finally:
        ray.shutdown()


def join(address, workers, gpu):
    """Start Ray (`local`) or join a cluster, and return how many workers there are to be. Raises UserError."""
    workers = workers or (len(os.sched_getaffinity(0)) if address == "local" else None)
    code = {"working_dir": str(ROOT), "excludes": [f"/{path.name}" for path in ROOT.iterdir()
                                                    if path.suffix != ".py" and not (path / "__init__.py").is_file()]}
    try:
        cluster.start(address, (workers or 0) + 1, {"env_vars": ONE_THREAD, **code})
    except SystemExit:  # of Ray's own handler of SIGTERM, with another code
        stop(signal.SIGTERM, None)
    signal.signal(signal.SIGTERM, stop)
    import ray.data
    logging.disable(logging.CRITICAL)  # Ray Data's, too
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


# ---------------------------------------------------------------- files

def write_shard(job, shard, codes, faults):
    """Write a shard and the JSON beside it, which tells its checksum and the photos that were left out."""
    import pyarrow
    import pyarrow.parquet
    names = job.shard_names(shard)
    left_out = [{"path": os.fsencode(names[row]).decode(errors="backslashreplace"), "reason": fault}
                for row, fault in faults.items()]
    path = job.path(shard)
    table = pyarrow.table({
        "path": pyarrow.array([name for row, name in enumerate(names) if row not in faults], pyarrow.string()),
        "code": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(codes.ravel()), job.plan["codebooks"])})
    with with_checksums(path.with_suffix(".json"), {"photos": len(codes), "left_out": left_out}, path) as (temporary,):
        pyarrow.parquet.write_table(table, temporary)


def finish(job, facts):
    """Write what was left out, then the manifest, and return it."""
    import pyarrow
    import pyarrow.parquet
    schema = pyarrow.schema([("path", pyarrow.string()), ("reason", pyarrow.string())])
    count, left_out, digests = 0, 0, {}
    with replacing(job.out / LEFT_OUT) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
        for shard in job.shards():
            record = read_json(job.path(shard).with_suffix(".json"))
            count += record["photos"]
            left_out += len(record["left_out"])
            digests.update(record["sha256"])
            if record["left_out"]:
                writer.write_table(pyarrow.Table.from_pylist(record["left_out"], schema))
    digests[LEFT_OUT] = fingerprint(job.out / LEFT_OUT)
    manifest = {**job.plan, **facts, "images": str(job.folder), "count": count, "left_out": left_out, "sha256": digests}
    write_json(job.out / MANIFEST, manifest)
    return manifest


@dataclass(frozen=True)
class Encoded:
    """What `encode` wrote. names: N paths relative to the manifest's `images`; codes: uint8 (N, M)."""
    folder: Path
    manifest: dict
    names: list
    codes: np.ndarray

    def check(self, checkpoint, crops, precision):
        """Raise UserError if the codes are of another checkpoint, of other crops or of another precision."""
        if self.manifest["checkpoint_sha256"] != fingerprint(checkpoint):
            raise UserError(f"{self.folder} holds codes of another checkpoint ({self.manifest['experiment']}), not of "
                            f"{checkpoint}")
        for option, wanted in (("crops", crops), ("precision", precision)):
            if self.manifest[option] != wanted:
                raise UserError(f"{self.folder} holds codes of --{option} {self.manifest[option]}, not {wanted}")


def writes_to(folder):
    """Whether this program has written into a folder, or begun to."""
    plan = folder / PLAN
    return plan.is_file() and b'"made_by": "encode.py"' in plan.read_bytes()


def read_encoded(folder):
    """The content of a folder that was encoded. Raises UserError if it is not finished, or a file was altered."""
    need_arrow()
    import pyarrow.parquet
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise UserError(f"{folder} is not finished, as it has no {MANIFEST}: run encode.py again")
    check_checksums(manifest)
    content = read_json(manifest)
    if missing := NEEDED_FACTS - content.keys():
        raise UserError(f"{manifest}: expected what encode.py writes, found no {', '.join(sorted(missing))}")
    shards = [pyarrow.parquet.read_table(folder / Path(name).name) for name in content["sha256"] if name != LEFT_OUT]
    codes = [shard["code"].combine_chunks().flatten().to_numpy() for shard in shards]
    return Encoded(folder, content, [name for shard in shards for name in shard["path"].to_pylist()],
                   np.concatenate(codes).reshape(-1, content["codebooks"]))


if __name__ == "__main__":
    run_program(main)
