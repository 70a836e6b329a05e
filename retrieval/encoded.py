"""What encode.py writes: codes in shards, and beside them what they depend on.

A list of photos is cut into shards. A shard's codes depend on nothing but the checkpoint, its photos, the options and
its number, so whoever makes them, and however often that begins anew, OUT is the same:

    plan.json             written first: what the codes depend on
    list-00000.parquet    the column path: the first list of photos; and so on
    list-00000.json       its checksum
    shard-00000.parquet   the columns path and code; and so on
    shard-00000.json      its checksum: count, photos left out and why, SHA-256
    left_out.parquet      the columns path and reason of the photos that no shard holds
    manifest.json         written last: counts, and the SHA-256 of each file

How it grows: the first run lists all photos. A later run with the same command completes the shards of the lists that
are there, as they were listed. Photos that are new, and those that were left out and can be read by now, make a further
list, which is cut into further shards; shards that are there keep their bytes. A photo that is gone keeps its code.

Letters: N photos, n of a shard, M codebooks.
"""
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.files import check_checksums, check_settings, fingerprint, read_json, replacing, with_checksums, write_json
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
    """Photos to encode. out: where to; folder: of the photos; plan: the content of PLAN, see `begin`; shards: of each
    the names of its n photos, relative to `folder`."""
    out: Path
    folder: Path
    plan: dict
    shards: list

    def path(self, shard):
        return self.out / f"shard-{shard:05}.parquet"

    def record(self, shard):
        """The content of the JSON file beside a shard."""
        return read_json(self.path(shard).with_suffix(".json"))

    def missing(self, first=0):
        """Numbers, from `first` on, of the shards that are not there with their checksum.

        Raises UserError for one that was altered.
        """
        return [shard for shard in progress(range(first, len(self.shards)), desc="checking shards", leave=False)
                if not (self.path(shard).is_file() and check_checksums(self.path(shard).with_suffix(".json")))]

    def witness(self):
        """A photo that is there, to tell bad photos from a folder that a machine does not see; or None."""
        paths = (f"{self.folder}/{name}" for names in self.shards for name in names)
        return next((path for path in paths if os.path.isfile(path)), None)

    def left_out(self, missing=()):
        """{name: its path, printable, and the reason} of the photos that were left out and are in no later shard.

        `missing`: numbers of shards that are not there yet.
        """
        found, missing = {}, set(missing)
        for shard, names in enumerate(self.shards):
            for name in names if found else ():
                found.pop(name, None)
            if shard not in missing and (rows := self.record(shard)["left_out"]):
                shown = {printable(name): name for name in names}
                found |= {shown.get(row["path"], row["path"]): row for row in rows}
        return found


def printable(name):
    """A photo's name as UTF-8 text."""
    return os.fsencode(name).decode(errors="backslashreplace")


def begin(out, settings, names):
    """The plan of a run that is to encode the photos `names`, and the lists of earlier runs, each a list of names.

    The plan is `settings`, and the number and SHA-256 of the first list. Where no shard is there yet, it is written.
    Raises UserError if there are shards of another plan.
    """
    started = any(out.glob("shard-*.json"))
    lists = read_lists(out) if started else []
    first = lists[0] if lists else names
    plan = {**settings, "photos": len(first),
            "photos_sha256": hashlib.sha256(b"\0".join(map(os.fsencode, first))).hexdigest()}
    if started:
        check_settings(out / PLAN, plan, {"images": plan["images"]})
    else:
        for path in out.glob("list-*"):
            path.unlink()
        write_json(out / PLAN, plan)
    return plan, lists


def cut(lists, size):
    """Each list of names cut into shards of `size` names, the last one of each list into what remains."""
    return [names[start:start + size] for names in lists for start in range(0, len(names), size)]


def read_lists(out):
    """The lists of photos that runs have begun to encode. Raises UserError for one that was altered."""
    lists = []
    while check_checksums((path := list_path(out, len(lists))).with_suffix(".json")):
        lists.append([os.fsdecode(name) for name in parquet.read_table(path)["path"].to_pylist()])
    return lists


def write_list(out, number, names):
    """Write a further list of photos and the JSON beside it, which tells its checksum."""
    path = list_path(out, number)
    with with_checksums(path.with_suffix(".json"), {"photos": len(names)}, path) as (temporary,):
        parquet.write_table(pyarrow.table({"path": pyarrow.array(map(os.fsencode, names), pyarrow.binary())}),
                            temporary)


def list_path(out, number):
    return out / f"list-{number:05}.parquet"


def write_shard(job, shard, codes, faults):
    """Write a shard and the JSON beside it, which tells its checksum and the photos that were left out."""
    names = job.shards[shard]
    left_out = [{"path": printable(names[row]), "reason": fault} for row, fault in faults.items()]
    path = job.path(shard)
    table = pyarrow.table({
        "path": pyarrow.array([name for row, name in enumerate(names) if row not in faults], pyarrow.string()),
        "code": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(codes.ravel()), job.plan["codebooks"])})
    with with_checksums(path.with_suffix(".json"), {"photos": len(codes), "left_out": left_out}, path) as (temporary,):
        parquet.write_table(table, temporary)


def finish(job, facts):
    """Write what was left out, then the manifest, and return it."""
    schema = pyarrow.schema([("path", pyarrow.string()), ("reason", pyarrow.string())])
    left_out = list(job.left_out().values())
    with replacing(job.out / LEFT_OUT) as temporary:
        parquet.write_table(pyarrow.Table.from_pylist(left_out, schema), temporary)
    count, digests = 0, {}
    for shard in range(len(job.shards)):
        record = job.record(shard)
        count += record["photos"]
        digests.update(record["sha256"])
    digests[LEFT_OUT] = fingerprint(job.out / LEFT_OUT)
    manifest = {**job.plan, **facts, "photos": count + len(left_out), "count": count, "left_out": len(left_out),
                "sha256": digests}
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
