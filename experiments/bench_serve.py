"""Queries a second over HTTP, from shards on Ray and from one process: `python experiments/bench_serve.py`.

Then a shard is killed, and the seconds until the next answer are printed. The codes are random. Several clients send
batches of vectors to the two servers in turns, so that other load on the machine affects both alike.
"""
import argparse
import base64
import contextlib
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from retrieval import index
from util import DIMENSIONS, ROOT, number, run_program, stream

CODEBOOKS, TOPK, ROUNDS = 4, 100, 5
BATCH, CLIENTS = 32, 4  # vectors a request; clients at the same time


def make_index(folder, images):
    rng = stream(0, "bench serve")
    codes = rng.integers(0, 256, (images, CODEBOOKS), dtype=np.uint8)
    codebooks = rng.normal(size=(CODEBOOKS, 256, DIMENSIONS)).astype(np.float32)
    index.save(folder, index.Content(
        codes, codebooks, [f"{i}.jpg" for i in range(images)], [["tag"]], codebooks[0, :1], None, [],
        {"seed": 0, "images": "/photos", "crops": 1, "checkpoint": "none", "checkpoint_sha256": "none",
         "experiment": "none", "root": "/", "dataset": None}))


@contextlib.contextmanager
def served(folder, *options):
    """The address of a server that runs during the block."""
    process = subprocess.Popen([sys.executable, "search.py", "serve", str(folder), "--port", "0", *options],
                               cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().rpartition("http://")[2].strip()
    finally:
        process.terminate()
        process.wait()


def ask(address, method, path, body=None):
    connection = http.client.HTTPConnection(address)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = json.load(answer)
    assert answer.status == 200, content
    return content


def rate(address, requests, body):
    """Queries a second in so many requests with the same body, which has BATCH vectors."""
    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda _: ask(address, "POST", "/search", body), range(requests)))
    return requests * BATCH / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=number(int, TOPK), default=1_000_000, help="codes (default a million)")
    parser.add_argument("--shards", type=number(int, 1), default=2, help="shards on Ray (default 2)")
    parser.add_argument("--requests", type=number(int, 1), default=40,
                        help=f"requests a round, each of {BATCH} vectors (default 40)")
    options = parser.parse_args()
    vectors = stream(0, "bench queries").normal(size=(BATCH, DIMENSIONS)).astype(np.float32)
    body = json.dumps({"vectors": base64.b64encode(vectors.tobytes()).decode(), "topk": TOPK})
    with tempfile.TemporaryDirectory() as folder:
        make_index(folder, options.images)
        with served(folder) as one, served(folder, "--shards", str(options.shards), "--ray", "local") as sharded:
            kinds = {"one process": one, f"{options.shards} shards on Ray": sharded}
            assert ask(one, "POST", "/search", body) == ask(sharded, "POST", "/search", body)
            rates = {name: [] for name in kinds}
            for _ in range(ROUNDS):
                for name, address in kinds.items():
                    rates[name].append(rate(address, options.requests, body))
            alone = statistics.median(rates["one process"])
            for name, values in rates.items():
                print(f"{name:20}{statistics.median(values):8.1f} queries/s, "
                      f"{statistics.median(values) / alone:.2f} times one process")
            before = ask(sharded, "POST", "/search", body)
            os.kill(ask(sharded, "GET", "/health")["processes"][0], signal.SIGKILL)
            began = time.perf_counter()
            assert ask(sharded, "POST", "/search", body) == before
            print(f"the first answer after SIGKILL of a shard came after {time.perf_counter() - began:.1f} s, "
                  "unchanged")


if __name__ == "__main__":
    run_program(main)
