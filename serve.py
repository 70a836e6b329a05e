"""Answer queries over HTTP, from an index in shards, here or on a cluster: `python serve.py INDEX`.

    GET  /health
    POST /search   {"vectors": [[300 numbers], …] or their float32 bytes in base64, "topk": 20, "nprobe": 32}
    POST /words    {"words": "beach sunset", "topk": 20, "nprobe": 32}
    POST /photo?topk=20&nprobe=32&name=beach.jpg   with the file as the body

Answers are JSON. To what cannot be answered, it is {"error": sentence}.
"""
import argparse
from functools import partial
from pathlib import Path

from retrieval.cluster_address import check_reachable, ray_address
from retrieval.server import Server
from util import gpu_number, number, run_program


def parse_arguments():
    parser = argparse.ArgumentParser(description="Answer queries over HTTP from an index of photos, cut into shards.")
    parser.add_argument("index", metavar="INDEX", type=Path, help="a folder that search.py build wrote")
    parser.add_argument("--shards", type=number(int, 1, 4096), default=1, metavar="N",
                        help="parts of the index that are searched at once (default 1)")
    parser.add_argument("--ray", type=ray_address, metavar="ADDRESS",
                        help="one process of Ray a shard: local starts Ray on this machine, auto or host:port joins a "
                             "cluster (default: all shards in this process)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1, this machine)")
    parser.add_argument("--port", type=number(int, 0, 65535), default=8750,
                        help="port to listen at, 0 for any that is free (default 8750)")
    parser.add_argument("--nprobe", type=number(int, 1), default=32, metavar="N",
                        help="lists to look into, unless a query says so itself (default 32)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="the checkpoint, if it was moved")
    parser.add_argument("--gpu", type=gpu_number, default=None, metavar="GPU",
                        help="number of the GPU that embeds photos (default: the CPU)")
    return parser.parse_args()


def main():
    options = parse_arguments()
    server = Server(options.host, options.port)
    connect = None
    if options.ray is not None:
        check_reachable(options.ray)
        from retrieval import ray_shards
        connect = partial(ray_shards.connect, options.ray)
    from retrieval import service
    server.run(service.open_service(options.index, options.shards, options.nprobe, options.checkpoint, options.gpu,
                                    connect))


if __name__ == "__main__":
    run_program(main)
