"""An index that is cut into shards by its rows, so that several processes or machines search it at once.

Shard k of S has rows k·N/S to (k + 1)·N/S in a FAISS index of its own, in a file that who searches it maps into memory.
With lists, a shard has the centres of all lists and, of every list, its own rows. So all shards together look at just
what the whole index would look at, and their answers, merged, are its answers.
"""
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval import index
from storage.safe_files import CHECKSUMS, check_checksums, read_json, replacing_folder, write_json
from util import UserError, note, progress

RECORD = "shards.json"  # beside the shards: which index they were cut from


# ---------------------------------------------------------------- files

@dataclass(frozen=True)
class Part:
    """A shard's file. source: SHA-256 of the manifest of the index; first: the row that FAISS calls 0."""
    path: str
    source: str
    first: int


def cut(whole, shards, source):
    """The shards of an index, a list of Part; their files are written unless they are there already.

    Args:
        whole: index.Index.
        shards (int): how many.
        source: SHA-256 of the index's manifest. Shards of another one are replaced.
    Raises UserError if a shard is missing or was altered.
    """
    if shards > len(whole):
        raise UserError(f"expected at most as many shards as photos, found {shards} shards and {len(whole)} photos")
    starts = [shard * len(whole) // shards for shard in range(shards + 1)]
    names = [f"shard-{shard + 1}.faiss" for shard in range(shards)]
    folder = whole.folder.resolve() / f"shards-{shards}"
    if not _is_there(folder, source):
        with replacing_folder(folder) as new:
            for shard, name in enumerate(progress(names, desc="cutting the index into shards")):
                engine = _engine_of(whole, starts[shard], starts[shard + 1])
                index.faiss.write_index(engine, str(new / name))
            write_json(new / RECORD, {"source": source})
    listed = whole.content.facts["lists"] > 0  # FAISS's lists keep the rows of the whole
    return [Part(str(folder / name), source, 0 if listed else starts[shard]) for shard, name in enumerate(names)]


def _is_there(folder, source):
    """Whether the shards in `folder` are those of `source`. Raises UserError if they are, but not as written."""
    try:
        return ((folder / RECORD).is_file() and read_json(folder / RECORD).get("source") == source
                and check_checksums(folder / CHECKSUMS))
    except UserError as error:
        raise UserError(f"{error}; delete {folder} to have it made anew") from None


def _engine_of(whole, start, end):
    """FAISS's index of rows `start` to `end`."""
    content = whole.content
    if not content.facts["lists"]:
        return index.flat_engine(content.codes[start:end], content.codebooks)
    engine = index.empty_lists(whole.engine.quantizer, content.codebooks)
    whole.engine.copy_subset_to(engine, 0, start, end)  # 0: by a range of rows
    return engine


# ---------------------------------------------------------------- searching

class Shard:
    """A shard's file, opened by the process that searches it with so many threads."""

    def __init__(self, part, threads):
        if read_json(Path(part.path).with_name(RECORD)).get("source") != part.source:
            raise UserError(f"{part.path} was cut from another index since the server started")
        index.faiss.omp_set_num_threads(threads)
        self._engine = index.faiss.read_index(part.path, index.faiss.IO_FLAG_MMAP_IFC)
        self._first = part.first

    def search(self, queries, topk, probes):
        """As `Index.search`, of this shard's rows; and the number of the process."""
        scores, rows = index.search_faiss(self._engine, queries, min(topk, self._engine.ntotal), probes)
        return scores, rows + self._first, os.getpid()


class Threads:
    """Shards in this process: `ask` gives what `Shard.search` gives of each."""

    def __init__(self, parts):
        cpus = os.cpu_count()
        threads = max(1, cpus // len(parts))
        self._shards = [Shard(part, threads) for part in parts]
        self._pool = ThreadPoolExecutor(max(cpus, len(parts)), initializer=index.faiss.omp_set_num_threads,
                                        initargs=(threads,))

    def ask(self, *question):
        return list(self._pool.map(lambda shard: shard.search(*question), self._shards))


class Sharded(index.Index):
    """An index that its shards search.

    Attributes:
        processes: of each shard the numbers of the processes that have answered for it, the newest last.
    """

    def __init__(self, whole, backend):
        super().__init__(whole.folder, whole.content, None)
        self._backend = backend
        self.processes = []
        self.search(np.zeros((1, whole.content.codebooks.shape[2]), np.float32), 1)

    def search(self, queries, topk, probes=index.DEFAULT_PROBES):
        topk = min(topk, len(self))
        scores, rows, processes = zip(*self._backend.ask(np.ascontiguousarray(queries, np.float32), topk, probes),
                                      strict=True)
        self._remember(processes)
        return index.best_first(np.hstack(scores), np.hstack(rows), topk)

    def _remember(self, processes):
        self.processes = self.processes or [[process] for process in processes]
        for shard, (known, process) in enumerate(zip(self.processes, processes, strict=True), 1):
            if process not in known:
                known.append(process)
                note(f"shard {shard} had ended and was started again")
