"""An index cut into shards by its rows, so that several processes or machines search it at once.

The rows are cut into parts of equal length, and each shard is a FAISS index of one part. A private copy of its file is
mapped into memory to be searched, so that nobody can alter it meanwhile. With inverted lists, a shard has the centres
of all lists and, of every list, its own rows. So all shards together search exactly what the whole index would search,
and their answers, merged, are its answers.
"""
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval import faiss_index, index
from storage.files import (
    CHECKSUMS,
    check_checksums,
    exclusive_lock,
    fingerprint,
    naming,
    private_copy,
    read_json,
    replacing_folder,
    write_json,
)
from util import UserError, cores, note, progress

RECORD = "shards.json"  # next to the shards: which index they were cut from
LOCK = ".shards.lock"  # in the index's folder


# ---------------------------------------------------------------- files

@dataclass(frozen=True)
class Part:
    """A shard's file. source: SHA-256 of the manifest of the index; first: the row that FAISS calls 0."""
    path: str
    source: str
    first: int


def cut(whole, shards, source):
    """The shards of an index, a list of Part; their files are written if they are not there yet.

    Args:
        whole: index.Index.
        shards (int): how many.
        source: SHA-256 of the index's manifest; shards of another one are replaced.
    Raises UserError if a shard is missing, was altered or cannot be written, and while another process cuts the index.
    """
    if shards > len(whole):
        raise UserError(f"expected at most as many shards as photos, found {shards} shards and {len(whole)} photos")
    starts = [shard * len(whole) // shards for shard in range(shards + 1)]
    names = [f"shard-{shard + 1}.faiss" for shard in range(shards)]
    folder = whole.folder.resolve() / f"shards-{shards}"
    if not _is_there(folder, source):
        with exclusive_lock(folder.with_name(LOCK), f"{folder}: another process is cutting this index into shards; "
                                                    "wait until it has ended"):
            _write(folder, whole, starts, names, source)
    inverted = whole.content.facts["lists"] > 0  # then shards keep the rows of the whole index
    return [Part(str(folder / name), source, 0 if inverted else starts[shard]) for shard, name in enumerate(names)]


def _write(folder, whole, starts, names, source):
    for half_written in folder.parent.glob(".shards-*.tmp"):  # left by a process that was killed
        shutil.rmtree(half_written)
    with replacing_folder(folder) as new:
        for shard, name in enumerate(progress(names, desc="cutting the index into shards")):
            faiss_index.write(_engine_of(whole, starts[shard], starts[shard + 1]), new / name, folder / name)
        with naming(folder / RECORD):
            write_json(new / RECORD, {"source": source})


def _is_there(folder, source):
    """Whether the shards in `folder` are those of `source`. Raises UserError if they are, but were altered."""
    try:
        return ((folder / RECORD).is_file() and read_json(folder / RECORD).get("source") == source
                and check_checksums(folder / CHECKSUMS))
    except UserError as error:
        raise UserError(f"{error}; delete {folder} to have it made anew") from None


def _engine_of(whole, start, end):
    """FAISS's index of rows `start` to `end`."""
    content = whole.content
    if not content.facts["lists"]:
        return faiss_index.flat_engine(content.codes[start:end], content.codebooks)
    engine = faiss_index.empty_inverted_lists(whole.engine.quantizer, content.codebooks)
    whole.engine.copy_subset_to(engine, 0, start, end)  # 0: a range of rows
    return engine


# ---------------------------------------------------------------- searching

class Shard:
    """A shard's file, opened by the process that searches it. threads (int): how many may search it at once."""

    def __init__(self, part, threads):
        path = Path(part.path)
        if read_json(path.with_name(RECORD)).get("source") != part.source:
            raise UserError(f"{path} was cut from another index since the server started")
        faiss_index.faiss.omp_set_num_threads(threads)
        with private_copy(path) as copy:
            if fingerprint(copy) != read_json(path.with_name(CHECKSUMS))["sha256"].get(path.name):
                raise UserError(f"{path} was altered since it was written: its checksum differs")
            self._engine = faiss_index.open_mapped(copy)
        self._first = part.first

    def search(self, queries, topk, probes):
        """Scores and rows as returned by `Index.search`, of this shard's images; and the number of the process."""
        scores, rows = faiss_index.search(self._engine, queries, min(topk, self._engine.ntotal), probes)
        return scores, rows + self._first, os.getpid()


class Threads:
    """Shards in this process: `ask` returns what `Shard.search` returns, of each.

    The first shard is searched by the calling thread, so that a single shard needs no other thread.
    """

    def __init__(self, parts):
        self._threads = max(1, cores() // len(parts))
        self._first, *self._others = [Shard(part, self._threads) for part in parts]
        self._pool = ThreadPoolExecutor(max(cores(), len(parts)), initializer=faiss_index.faiss.omp_set_num_threads,
                                        initargs=(self._threads,))

    def ask(self, *question):
        others = [self._pool.submit(shard.search, *question) for shard in self._others]
        faiss_index.faiss.omp_set_num_threads(self._threads)  # for the calling thread
        return [self._first.search(*question), *(answer.result() for answer in others)]


class Sharded(index.Index):
    """An index that is searched by its shards.

    Args:
        whole: index.Index.
        backend: Threads, or Actors of ray_cluster.py.

    Attributes:
        processes: for each shard the numbers of the processes that have answered for it, the newest last.
    """

    def __init__(self, whole, backend):
        super().__init__(whole.folder, whole.content, None)
        self._backend = backend
        self.processes = []
        self.search(np.zeros((1, whole.content.query_length), np.float32), 1)

    def _scan(self, queries, topk, probes):
        scores, rows, processes = zip(*self._backend.ask(queries, topk, probes), strict=True)
        self._remember(processes)
        return faiss_index.best_first(np.hstack(scores), np.hstack(rows), topk)

    def _remember(self, processes):
        self.processes = self.processes or [[process] for process in processes]
        for shard, (known, process) in enumerate(zip(self.processes, processes, strict=True), 1):
            if process not in known:
                known.append(process)
                note(f"shard {shard} had ended and was started again")
