"""What `search.py encode` writes: codes in shards, and next to them what they depend on.

A list of photos is cut into shards. The codes of a shard depend only on the checkpoint, its photos, the options and its
number, so OUT is the same whoever makes them, and however often the work is interrupted:

    plan.json             written first: what the codes depend on
    list-00000.parquet    the column path: the first list of photos; and so on
    list-00000.json       its checksum
    shard-00000.parquet   the columns path and code; and so on
    shard-00000.json      its checksum, its number of photos, those left out and why
    left_out.parquet      the columns path and reason of the photos that are in no shard
    manifest.json         written last: counts, and the SHA-256 of each file

How it grows: the first run lists all photos. A later run of the same command completes the shards of the existing
lists, as they were listed. Photos that are new, and those that were left out and can be read by now, make a further
list, which is cut into further shards; existing shards are never written again. A photo that is gone keeps its code.

Letters: N photos, n of a shard, M codebooks.
"""
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from storage.files import (
    check_checksums,
    check_settings,
    fingerprint,
    read_json,
    read_record,
    replacing,
    with_checksums,
    write_json,
)
from util import CROPS, MOST_CODEBOOKS, UserError, one_line, progress

try:
    import pyarrow
    import pyarrow.parquet as parquet
except ImportError:  # optional: the extra `scale`
    pyarrow = parquet = None

PLAN, MANIFEST, LEFT_OUT = "plan.json", "manifest.json", "left_out.parquet"
MADE_BY = "search.py encode"  # in each plan


class Manifest(msgspec.Struct):
    """What the manifest has to say for an index to be made; its other keys are the plan and facts for people."""
    checkpoint_sha256: str
    experiment: str
    codebooks: Annotated[int, Meta(ge=1, le=MOST_CODEBOOKS)]
    crops: Literal[CROPS]
    images: Annotated[str, Meta(min_length=1, pattern=r"^[^\0]+$")]  # the folder of the photos
    count: int  # photos with a code
    left_out: int
    sha256: dict[str, str]  # of each shard and of LEFT_OUT


def need_arrow():
    """Raise UserError where pyarrow is missing."""
    if pyarrow is None:
        raise UserError("codes in shards need pyarrow: pip install -e '.[scale]'")


# ---------------------------------------------------------------- writing

@dataclass(frozen=True)
class Job:
    """Photos to encode.

    out: the folder for the codes; folder: of the photos; plan: the content of PLAN, see `begin`; shards: for each the
    names of its n photos, relative to `folder`.
    """
    out: Path
    folder: Path
    plan: dict
    shards: list

    def path(self, shard):
        return self.out / f"shard-{shard:05}.parquet"

    def record(self, shard):
        """The content of the JSON file next to a shard."""
        return read_json(self.path(shard).with_suffix(".json"))

    def missing(self, first=0):
        """Numbers, from `first` on, of the shards that are not complete. Raises UserError for one that was altered."""
        return [shard for shard in progress(range(first, len(self.shards)), desc="checking shards", leave=False)
                if not (self.path(shard).is_file() and check_checksums(self.path(shard).with_suffix(".json")))]

    def witness(self):
        """A photo that exists, to distinguish bad photos from a folder that a machine does not see; or None."""
        paths = (f"{self.folder}/{name}" for names in self.shards for name in names)
        return next((path for path in paths if os.path.isfile(path)), None)

    def left_out(self, missing=()):
        """{name: its path, printable, and the reason} of the photos that were left out and are in no later shard.

        `missing`: numbers of the shards that are not complete.
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
    """The plan of a run that encodes the photos `names`, and the lists of earlier runs, each a list of names.

    The plan is `settings` together with the length and SHA-256 of the first list. It is written where there is no shard
    yet. Raises UserError if there are shards of another plan.
    """
    started = any(out.glob("shard-*.json"))
    lists = read_lists(out) if started else []
    first = lists[0] if lists else names
    plan = {"made_by": MADE_BY, **settings, "photos": len(first),
            "photos_sha256": hashlib.sha256(b"\0".join(map(os.fsencode, first))).hexdigest()}
    if started:
        check_settings(out / PLAN, plan)
    else:
        for path in out.glob("list-*"):
            path.unlink()
        write_json(out / PLAN, plan)
    return plan, lists


def cut(lists, size):
    """Each list of names cut into shards of `size` names, the last one of each list into what remains."""
    return [names[start:start + size] for names in lists for start in range(0, len(names), size)]


def read_lists(out):
    """The lists of photos that earlier runs began to encode. Raises UserError for one that was altered."""
    lists = []
    while check_checksums((path := list_path(out, len(lists))).with_suffix(".json")):
        lists.append([os.fsdecode(name) for name in parquet.read_table(path)["path"].to_pylist()])
    return lists


def write_list(out, number, names):
    """Write a further list of photos, and next to it a JSON file with its checksum."""
    path = list_path(out, number)
    with with_checksums(path.with_suffix(".json"), {"photos": len(names)}, path) as (temporary,):
        parquet.write_table(pyarrow.table({"path": pyarrow.array(map(os.fsencode, names), pyarrow.binary())}),
                            temporary)


def list_path(out, number):
    return out / f"list-{number:05}.parquet"


def write_shard(job, shard, codes, faults):
    """Write a shard, and next to it a JSON file with its checksum and the photos that were left out."""
    names = job.shards[shard]
    left_out = [{"path": printable(names[row]), "reason": fault} for row, fault in faults.items()]
    path = job.path(shard)
    table = pyarrow.table({
        "path": pyarrow.array([name for row, name in enumerate(names) if row not in faults], pyarrow.string()),
        "code": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(codes.ravel()), job.plan["codebooks"])})
    with with_checksums(path.with_suffix(".json"), {"photos": len(codes), "left_out": left_out}, path) as (temporary,):
        parquet.write_table(table, temporary)


def finish(job, facts):
    """Write what was left out, then the manifest, which is returned as a Manifest."""
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
    write_json(job.out / MANIFEST, {**job.plan, **facts, "photos": count + len(left_out), "count": count,
                                    "left_out": len(left_out), "sha256": digests})
    return read_record(job.out / MANIFEST, Manifest)


def summary(manifest):
    """A manifest in words."""
    return (f"{manifest.count:,} photos in {len(manifest.sha256) - 1:,} shards"
            + (f"; {manifest.left_out:,} were left out, see {LEFT_OUT}" if manifest.left_out else ""))


# ---------------------------------------------------------------- reading

@dataclass(frozen=True)
class Encoded:
    """The codes in a folder. manifest: Manifest; names: N paths relative to its `images`; codes: uint8 (N, M)."""
    folder: Path
    manifest: Manifest
    names: list
    codes: np.ndarray

    def check(self, checkpoint, crops):
        """Raise UserError if the codes are those of another checkpoint or of other crops."""
        if self.manifest.checkpoint_sha256 != fingerprint(checkpoint):
            raise UserError(f"{self.folder} holds codes of another checkpoint ({self.manifest.experiment}), not of "
                            f"{checkpoint}")
        if self.manifest.crops != crops:
            raise UserError(f"{self.folder} holds codes of --crops {self.manifest.crops}, not {crops}")


def writes_to(folder):
    """Whether `search.py encode` has written into a folder, or begun to."""
    plan = folder / PLAN
    return plan.is_file() and f'"made_by": "{MADE_BY}"'.encode() in plan.read_bytes()


def read_encoded(folder):
    """The Encoded of a folder. Raises UserError if it is not finished, if a file was altered or does not fit."""
    need_arrow()
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is not finished, as it has no {MANIFEST}: run `search.py encode` again")
    check_checksums(path)
    manifest = read_record(path, Manifest)
    shards = [read_shard(folder / Path(name).name, manifest.codebooks) for name in manifest.sha256 if name != LEFT_OUT]
    return Encoded(folder, manifest, [name for names, _ in shards for name in names],
                   np.concatenate([np.empty((0, manifest.codebooks), np.uint8), *(codes for _, codes in shards)]))


def read_shard(path, codebooks):
    """The names of a shard's n photos, and their codes, uint8 (n, M). Raises UserError for a file that is no shard."""
    schema = pyarrow.schema([("path", pyarrow.string()), ("code", pyarrow.list_(pyarrow.uint8(), codebooks))])
    try:
        table = parquet.read_table(path, columns=schema.names).cast(schema)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: expected the names and codes of photos, found something else ({one_line(error)})"
                        ) from None
    names, codes = (table[name].combine_chunks() for name in schema.names)
    numbers = codes.flatten()
    if names.null_count or codes.null_count or numbers.null_count:
        raise UserError(f"{path}: expected the names and codes of photos, found empty cells among them")
    return names.to_pylist(), numbers.to_numpy().reshape(-1, codebooks)
