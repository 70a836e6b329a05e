"""What encode.py writes: codes in shards, and beside them what they depend on.

The list of photos is cut into shards. A shard's codes depend on nothing but the checkpoint, its photos, the options and
its number, so whoever makes them, and however often that begins anew, OUT is the same:

    plan.json             written first: what the codes depend on
    shard-00000.parquet   the columns path and code; and so on
    shard-00000.json      its checksum: count, photos left out and why, SHA-256
    left_out.parquet      the columns path and reason
    manifest.json         written last: counts, and the SHA-256 of each file

Letters: N photos, n of a shard, M codebooks.
"""
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.safe_files import (
    check_checksums,
    check_settings,
    fingerprint,
    read_json,
    replacing,
    with_checksums,
    write_json,
)
from util import UserError, progress

try:
    import pyarrow
    import pyarrow.parquet as parquet
except ImportError:  # optional: requirements-scale.txt
    pyarrow = parquet = None

PLAN, MANIFEST, LEFT_OUT = "plan.json", "manifest.json", "left_out.parquet"
NEEDED_FACTS = {"checkpoint_sha256", "codebooks", "crops", "experiment", "images", "precision", "sha256"}


def need_arrow():
    """Raise UserError where pyarrow is missing."""
    if pyarrow is None:
        raise UserError("codes in shards need pyarrow: pip install -r requirements-scale.txt")


# ---------------------------------------------------------------- writing

@dataclass(frozen=True)
class Job:
    """Photos to encode. out: where to; folder: of the photos; names: N paths relative to it; plan: the content of
    PLAN, see `encoding.make_plan`."""
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


def begin(job):
    """Write the plan. Raises UserError if there are shards of another one."""
    if any(job.out.glob("shard-*.json")):
        check_settings(job.out / PLAN, job.plan)
    else:
        write_json(job.out / PLAN, job.plan)


def write_shard(job, shard, codes, faults):
    """Write a shard and the JSON beside it, which tells its checksum and the photos that were left out."""
    names = job.shard_names(shard)
    left_out = [{"path": os.fsencode(names[row]).decode(errors="backslashreplace"), "reason": fault}
                for row, fault in faults.items()]
    path = job.path(shard)
    table = pyarrow.table({
        "path": pyarrow.array([name for row, name in enumerate(names) if row not in faults], pyarrow.string()),
        "code": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(codes.ravel()), job.plan["codebooks"])})
    with with_checksums(path.with_suffix(".json"), {"photos": len(codes), "left_out": left_out}, path) as (temporary,):
        parquet.write_table(table, temporary)


def finish(job, facts):
    """Write what was left out, then the manifest, and return it."""
    schema = pyarrow.schema([("path", pyarrow.string()), ("reason", pyarrow.string())])
    count, left_out, digests = 0, 0, {}
    with replacing(job.out / LEFT_OUT) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
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


def summary(manifest):
    """A manifest in words."""
    return (f"{manifest['count']:,} photos in {len(manifest['sha256']) - 1:,} shards"
            + (f"; {manifest['left_out']:,} were left out, see {LEFT_OUT}" if manifest["left_out"] else ""))


# ---------------------------------------------------------------- reading

@dataclass(frozen=True)
class Encoded:
    """What encode.py wrote. names: N paths relative to the manifest's `images`; codes: uint8 (N, M)."""
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
    """Whether encode.py has written into a folder, or begun to."""
    plan = folder / PLAN
    return plan.is_file() and b'"made_by": "encode.py"' in plan.read_bytes()


def read_encoded(folder):
    """The content of a folder that was encoded. Raises UserError if it is not finished, or a file was altered."""
    need_arrow()
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise UserError(f"{folder} is not finished, as it has no {MANIFEST}: run encode.py again")
    check_checksums(manifest)
    content = read_json(manifest)
    if missing := NEEDED_FACTS - content.keys():
        raise UserError(f"{manifest}: expected what encode.py writes, found no {', '.join(sorted(missing))}")
    shards = [parquet.read_table(folder / Path(name).name) for name in content["sha256"] if name != LEFT_OUT]
    codes = [shard["code"].combine_chunks().flatten().to_numpy() for shard in shards]
    return Encoded(folder, content, [name for shard in shards for name in shard["path"].to_pylist()],
                   np.concatenate(codes).reshape(-1, content["codebooks"]))
