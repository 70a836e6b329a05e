"""Encode millions of photos, on one machine or many: `python encode.py CHECKPOINT IMAGES OUT [--ray ADDRESS]`.

What OUT holds: see retrieval/encoded.py. After an interruption the same command goes on.
"""
import argparse
import signal
import sys
from functools import partial
from pathlib import Path

from retrieval.cluster_address import check_reachable, ray_address
from util import CROPS, CROPS_HELP, add_precision, add_shared_options, gpu_number, number, run_program

SHARD = 4096  # photos


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Encode photos with a trained checkpoint into shards of codes, of which `search.py build "
                    "CHECKPOINT OUT` makes an index. After an interruption the same command goes on.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="an .npy file that train.py wrote")
    parser.add_argument("images", metavar="IMAGES", type=Path,
                        help="a folder of photos, or a text file of photos, one path a line, relative to its folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the codes")
    parser.add_argument("--ray", type=ray_address, metavar="ADDRESS",
                        help="let Ray's workers do it: `local` starts Ray here; `auto`, or HOST:PORT, joins a cluster "
                             "(default: this process does it)")
    parser.add_argument("--workers", type=number(int, 1), metavar="N",
                        help="of Ray, one CPU each (default: as many as there is room for)")
    parser.add_argument("--crops", type=int, choices=CROPS, help=CROPS_HELP)
    parser.add_argument("--trained-on", metavar="NAME",
                        help="data set whose tags the checkpoint learned (default: as its .json file says)")
    parser.add_argument("--shard", type=number(int, 1), default=SHARD, metavar="N",
                        help=f"photos a shard (default {SHARD})")
    parser.add_argument("--patience", type=number(float, 0.1), default=600, metavar="SECONDS",
                        help="without a shard from Ray, after which to say what is waited for (default 600)")
    parser.add_argument("--gpu", type=gpu_number, default=None, metavar="GPU",
                        help="number of the GPU; with --ray, any number gives each worker a GPU (default: the CPU)")
    add_precision(parser)
    add_shared_options(parser)
    return parser.parse_args()


def main():
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    encode_shards = None
    if options.ray is not None:
        check_reachable(options.ray)
        from retrieval import ray_encoding
        encode_shards = partial(ray_encoding.encode_by_ray, address=options.ray, workers=options.workers,
                                patience=options.patience)
    from retrieval import encode
    encode.encode(options.checkpoint, options.images, options.out, options.shard, options.crops, options.trained_on,
                    options.seed, options.gpu, options.precision, options.root, encode_shards)


if __name__ == "__main__":
    run_program(main)
