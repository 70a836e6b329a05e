"""Search an index of photos on a page, and answer programs over HTTP: `python serve.py INDEX`.

Open the address that it prints. What programs may ask stands at /docs of that address, and in docs/serving.md.
"""
import argparse
from functools import partial
from pathlib import Path

from search import ray_address
from server.access_token import add_token
from util import ROOT, gpu_number, number, run_program


def parse_arguments():
    parser = argparse.ArgumentParser(description="Serve a page that searches an index of photos, and answer programs "
                                                 "over HTTP.")
    parser.add_argument("index", metavar="INDEX", help="how the name of an index in indexes/ begins, or its folder")
    parser.add_argument("--host", default="127.0.0.1",
                        help="address to listen at (default 127.0.0.1, this machine; others need a --token)")
    parser.add_argument("--port", type=number(int, 0, 65535), default=8750,
                        help="port to listen at, 0 for any that is free (default 8750)")
    parser.add_argument("--name", dest="names", action="append", default=[], metavar="HOST",
                        help="a host name that clients use for this machine, besides localhost and addresses in "
                             "numbers; may be given several times")
    add_token(parser, "what clients have to show")
    parser.add_argument("--access-log", action="store_true", help="print a line for each request")
    parser.add_argument("--shards", type=number(int, 1, 4096), default=1, metavar="N",
                        help="parts of the index that are searched at once (default 1)")
    parser.add_argument("--ray", type=ray_address, metavar="ADDRESS",
                        help="one process of Ray a shard: local starts Ray on this machine, auto or host:port joins a "
                             "cluster (default: all shards in this process)")
    parser.add_argument("--nprobe", type=number(int, 1), default=32, metavar="N",
                        help="lists to look into, unless a query says so itself (default 32)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="the checkpoint, if it was moved")
    parser.add_argument("--gpu", type=gpu_number, default=None, metavar="GPU",
                        help="number of the GPU that embeds photos (default: the CPU)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                        help="folder that holds indexes/ (default: this program's folder)")
    return parser.parse_args()


def main():
    options = parse_arguments()
    from retrieval.searcher import find_index
    options.index = find_index(options.index, options.root)
    connect = None
    if options.ray is not None:
        from retrieval import ray_cluster
        ray_cluster.check_reachable(options.ray)
        connect = partial(ray_cluster.connect, options.ray)
    from server import serving
    serving.serve(options, connect)


if __name__ == "__main__":
    run_program(main)
