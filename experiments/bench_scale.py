"""An index of 1, 10 and 100 million 32-bit codes, flat and in lists: `python experiments/bench_scale.py RETRIEVAL_H5`.

validation.py wrote RETRIEVAL_H5 for a trained model. Codes are drawn around those of its database: each byte of a real
image's code is replaced, with probability ¼, by one of the 16 nearest codewords. The queries are embeddings of its
queries. Every build and every search runs in a process of its own, whose seconds and peak memory are printed. Recall is
the share of the first 100 results that score at least as high as the 100th of the exact scan, because images with the
same code are equally good.
"""
import argparse
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from retrieval import faiss_index, index
from retrieval.retrieval_file import read_content
from util import UserError, number, run_program, stream

CODEBOOKS = 4
NEIGHBOURS, REPLACED = 16, 0.25
TOPK, QUERIES = 100, 100
PROBES = (8, 32, 128)
SLACK = 1e-4  # of scores, which FAISS sums in another order than the exact scan


class Names:
    """Names `000000000.jpg` and so on, each made when it is written, so that they take no memory."""

    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count

    def __iter__(self):
        return (f"{row:09d}.jpg" for row in range(self._count))


def draw_codes(real, codebooks, count):
    """Codes that resemble those of real images, uint8 (count, M)."""
    rng = stream(0, "bench scale")
    codes = np.empty((count, len(codebooks)), np.uint8)
    for start in range(0, count, faiss_index.BLOCK):
        block = real[rng.integers(len(real), size=min(faiss_index.BLOCK, count - start))]
        for m, codewords in enumerate(codebooks):
            squares = np.square(codewords).sum(1)
            near = (squares - 2 * codewords @ codewords.T).argsort(1)[:, 1:NEIGHBOURS + 1]  # (K, 16)
            replaced = np.flatnonzero(rng.random(len(block)) < REPLACED)
            block[replaced, m] = near[block[replaced, m], rng.integers(NEIGHBOURS, size=len(replaced))]
        codes[start:start + len(block)] = block
    return codes


def build(retrieval, folder, count, lists):
    """Save the index of `count` codes: its seconds, peak memory, distinct codes and bytes on disk."""
    real = read_content(retrieval)
    content = index.Content(draw_codes(real.db_codes, real.codebooks, count), real.codebooks, Names(count), [["tag"]],
                            real.codebooks[0, :1], None, [], {"seed": 0, "images": "."})
    began = time.perf_counter()
    index.save(folder, content, lists)
    return {"build": time.perf_counter() - began, "build_memory": peak(),
            "distinct": len(np.unique(content.codes.view(np.uint32))),
            "disk": sum(path.stat().st_size for path in folder.iterdir()),
            "engine": next(folder.glob("engine*")).stat().st_size}


def ask(retrieval, folder, exact):
    """Load an index and search it: seconds, peak memory, and `{probed lists: (queries/s, recall)}`.

    `exact`: the file of the scores of the exact scan. The search of the flat index writes it, the other one reads it.
    """
    queries = read_content(retrieval).queries[:QUERIES]
    began = time.perf_counter()
    made = index.load(folder)
    loaded = time.perf_counter() - began
    found = {}
    for probes in PROBES if made.content.facts["lists"] else (0,):
        made.search(queries[:2], TOPK, max(probes, 1))
        began = time.perf_counter()
        scores, _ = made.search(queries, TOPK, max(probes, 1))
        rate = len(queries) / (time.perf_counter() - began)
        if not probes:
            np.save(exact, scores)
        least = np.load(exact)[:, -1:]
        found[probes] = rate, float((scores >= least - SLACK * np.abs(least)).mean())
    return {"load": loaded, "search_memory": peak(), "found": found}


def peak():
    """The process's peak memory so far, in GiB; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_child(function, *arguments):
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def report(count, lists, built, asked):
    for probes, (rate, recall) in asked["found"].items():
        kind = f"{lists} lists, {probes} probed" if lists else "flat"
        print(f"{count:>11,}  {kind:24}{built['build']:8.1f}{built['build_memory']:9.2f}{built['disk'] / 1e9:8.2f}"
              f"{asked['load']:8.1f}{asked['search_memory']:9.2f}{rate:11.1f}{recall:9.4f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("retrieval", metavar="RETRIEVAL_H5", type=Path, help="an <experiment>_retrieval.h5")
    parser.add_argument("--images", type=number(int, 1), nargs="+", default=[10**6, 10**7, 10**8], metavar="N",
                        help="codes (default 1, 10 and 100 million)")
    options = parser.parse_args()
    codebooks = len(read_content(options.retrieval).codebooks)
    if codebooks != CODEBOOKS:
        raise UserError(f"{options.retrieval}: expected codes of {CODEBOOKS} codebooks, which is 32 bits, found "
                        f"{codebooks}")
    print(f"{'codes':>11}  {'index':24}{'build s':>8}{'peak GiB':>9}{'disk GB':>8}{'load s':>8}{'peak GiB':>9}"
          f"{'queries/s':>11}{'recall':>9}")
    for count in options.images:
        with tempfile.TemporaryDirectory() as temporary:
            folder, exact = Path(temporary), Path(temporary) / "exact.npy"
            for lists in (0, index.default_inverted_lists(max(count, 2 * index.FLAT_IMAGES))):
                place = folder / f"lists-{lists}"
                built = in_child(build, options.retrieval, place, count, lists)
                report(count, lists, built, in_child(ask, options.retrieval, place, exact))
        print(f"{'':13}{built['distinct']:,} distinct codes; FAISS's file {built['engine'] / count:.2f} bytes a code")


if __name__ == "__main__":
    run_program(main)
