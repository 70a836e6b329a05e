"""How long words wait while many clients ask for words, vectors and photos: `python bench/bench_clients.py INDEX`.

It starts serve.py on an index whose checkpoint and photos are there. Half of the clients ask for words, a quarter send
vectors, a quarter send photos of the index; each pauses after an answer. Photos come faster than a small machine embeds
them, so that some always wait. First the clients of words ask alone, then all do. The first photo, which loads the
network, comes before both.
"""
import argparse
import http.client
import json
import random
import threading
import time
from pathlib import Path

import numpy as np

from bench_serve import served
from retrieval import index
from util import number, stream

VECTORS = 8  # a request
JSON = {"Content-Type": "application/json"}


def requests(folder):
    """{kind: (path, headers, bodies)}."""
    whole = index.load(folder)
    words = [names[0] for names in whole.content.tag_names]
    vectors = stream(0, "bench clients").normal(size=(VECTORS, whole.content.query_length)).astype(np.float32)
    photos = [whole.image_path(row).read_bytes() for row in range(min(len(whole), 50))]
    return {"words": ("/words", JSON, [json.dumps({"words": word}) for word in words]),
            "vectors": ("/search", JSON, [json.dumps({"vectors": vectors.tolist()})]),
            "photos": ("/photo", {}, photos)}


def ask(connection, path, headers, body):
    """Seconds until the answer. Raises AssertionError for an error."""
    began = time.perf_counter()
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200, content
    return time.perf_counter() - began


def client(address, kind, until, pause, seconds):
    """Ask, wait for the answer, pause; and so on. `seconds`: the list of answers' seconds."""
    path, headers, bodies = kind
    connection = http.client.HTTPConnection(address, timeout=300)
    chosen = random.Random(threading.get_ident())
    time.sleep(pause * chosen.random())
    while time.perf_counter() < until:
        seconds.append(ask(connection, path, headers, chosen.choice(bodies)))
        time.sleep(pause * 2 * chosen.random())


def measure(address, kinds, counts, options):
    """{kind: seconds of each answer} of so many clients of each kind at once."""
    seconds, until = {name: [] for name in counts}, time.perf_counter() + options.seconds
    threads = [threading.Thread(target=client, args=(address, kinds[name], until, options.pause, seconds[name]))
               for name, count in counts.items() for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds


def show(title, measured, duration):
    print(title)
    for name, seconds in measured.items():
        middle, high = np.percentile(seconds, [50, 95]) * 1000
        print(f"  {name:8}{len(seconds) / duration:8.1f} a second   median {middle:8.1f} ms   95th percentile "
              f"{high:8.1f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("index", metavar="INDEX", type=Path, help="a folder that search.py build wrote")
    parser.add_argument("--clients", type=number(int, 4), default=64, help="clients at once (default 64)")
    parser.add_argument("--seconds", type=number(float, 1), default=30, help="of each part (default 30)")
    parser.add_argument("--pause", type=number(float, 0), default=0.5,
                        help="seconds that a client pauses between questions, on average (default 0.5)")
    options = parser.parse_args()
    kinds, quarter = requests(options.index), options.clients // 4
    counts = {"words": options.clients - 2 * quarter, "vectors": quarter, "photos": quarter}
    with served(options.index) as address:
        connection = http.client.HTTPConnection(address, timeout=300)
        path, headers, bodies = kinds["photos"]
        print(f"the first photo took {ask(connection, path, headers, bodies[0]):.1f} s")
        alone = measure(address, kinds, {"words": counts["words"]}, options)
        show(f"{counts['words']} clients of words alone", alone, options.seconds)
        mixed = measure(address, kinds, counts, options)
        show(f"{options.clients} clients at once", mixed, options.seconds)
        p95 = [np.percentile(found["words"], 95) for found in (alone, mixed)]
        print(f"words at the 95th percentile: {p95[1] / p95[0]:.2f} times as long as alone; no error")


if __name__ == "__main__":
    main()
