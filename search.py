"""Search photos: `python search.py build | query | tags | encode | serve`.

In a notebook:

    import search
    photos = search.open_index("mine")  # indexes/mine…
    photos.by_photo("beach.jpg", topk=10)
    photos.by_words("beach sunset")
    photos.tags("beach.jpg")
"""
import argparse
import json
import os
import re
import signal
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from util import CROPS, ROOT, UserError, gpu_number, note, number, run_program

SHARD = 4096  # photos
TOKEN_VARIABLE = "WSDHQ_TOKEN"  # of the environment, which other users of the machine cannot see, unlike options


# ---------------------------------------------------------------- options

def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Make a searchable index of photos from a trained checkpoint, and search it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_build(commands)
    add_query(commands)
    add_tags(commands)
    add_encode(commands)
    add_serve(commands)
    options = parser.parse_args()
    if options.command == "query":
        check_query(options, parser.error)
    elif options.command == "tags" and (options.photo is None) != options.list_words:
        parser.error("tags: expected either a PHOTO or --list-words")
    return options


def add_build(commands):
    parser = commands.add_parser("build", help="make an index, or bring one up to date")
    add_checkpoint(parser)
    parser.add_argument("dataset", metavar="DATASET",
                        help="a data set, whose database is taken; a folder of photos; or the OUT of `search.py "
                             "encode`")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--name", help="name of the index, a folder in indexes/ of --root (default: the checkpoint's)")
    place.add_argument("--out", type=Path, metavar="DIR", help="folder of the index, if it is elsewhere")
    add_encoding(parser)
    parser.add_argument("--lists", type=number(int, 0), metavar="N",
                        help="sort the codes into N lists, some of which a query searches (default: none up to a "
                             "million photos, then about 4·√photos)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out photos that cannot be read")
    parser.add_argument("--keep-embeddings", action="store_true",
                        help="keep the photos' embeddings too, 600 bytes a photo, to rank results of equal scores by "
                             "them (default: by their order in the index)")
    parser.add_argument("--vectors", type=Path, metavar="FILE",
                        help="the file of word vectors that the tags were made from, so that any word in it can be "
                             "searched for (default: the one that tag_processing.py read, if it still exists)")
    parser.add_argument("--prune", action="store_true", help="drop the photos that are gone from the index")
    add_gpu(parser)
    add_root(parser)


def add_query(commands):
    parser = commands.add_parser("query", help="find the photos that are most like a photo or some words")
    add_index(parser, nargs="?")
    parser.add_argument("photo", metavar="PHOTO", type=Path, nargs="?")
    parser.add_argument("--words", help="search for one or more words instead of a photo")
    parser.add_argument("--list", type=Path, metavar="FILE",
                        help="search for each of many photos, whose paths are in FILE, one a line")
    add_results(parser, 20)
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the query and its results, PNG")
    parser.add_argument("--nprobe", type=number(int, 1), metavar="N", help="lists to search (default 32)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the indexed photos, if it was moved")
    parser.add_argument("--server", metavar="ADDRESS",
                        help="HOST:PORT of a `search.py serve`, whose index is searched; give no INDEX then")
    add_token(parser, "with --server: the token that the server expects")
    add_gpu(parser)
    add_root(parser)


def add_tags(commands):
    parser = commands.add_parser("tags", help="list the model's own tags for a photo")
    add_index(parser)
    parser.add_argument("photo", metavar="PHOTO", type=Path, nargs="?")
    parser.add_argument("--list-words", action="store_true", help="list the words that were learned")
    add_results(parser, 10)
    add_gpu(parser)
    add_root(parser)


def add_encode(commands):
    parser = commands.add_parser(
        "encode", help="encode millions of photos, on one machine or many",
        description="Encode photos into shards of codes, from which `search.py build CHECKPOINT OUT` makes an index. "
                    "After an interruption the same command continues.")
    add_checkpoint(parser)
    parser.add_argument("images", metavar="IMAGES", type=Path,
                        help="a folder of photos, or a text file of photos, one path a line, relative to its folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the codes")
    parser.add_argument("--ray", type=ray_address, metavar="ADDRESS",
                        help="encode with Ray's workers: `local` starts Ray here; `auto`, or HOST:PORT, joins a "
                             "cluster (default: encode in this process)")
    parser.add_argument("--workers", type=number(int, 1), metavar="N",
                        help="workers of Ray, one CPU each (default: as many as there is room for)")
    add_encoding(parser)
    parser.add_argument("--shard", type=number(int, 1), default=SHARD, metavar="N",
                        help=f"photos in a shard (default {SHARD})")
    parser.add_argument("--patience", type=number(float, 0.1), default=600, metavar="SECONDS",
                        help="after this many seconds without a shard from Ray, note how many are still to come "
                             "(default 600)")
    parser.add_argument("--gpu", type=gpu_number, metavar="GPU",
                        help="number of the GPU; with --ray, any number gives each worker a GPU (default: the CPU)")
    add_root(parser)


def add_serve(commands):
    parser = commands.add_parser(
        "serve", help="serve a page that searches an index, and answer programs over HTTP",
        description="Serve a page that searches an index of photos, and answer programs over HTTP. Open the address "
                    "that is printed; its /docs lists what programs may ask.")
    add_index(parser)
    parser.add_argument("--host", default="127.0.0.1",
                        help="address to listen at (default 127.0.0.1, this machine only; others need a --token)")
    parser.add_argument("--port", type=number(int, 0, 65535), default=8750,
                        help="port to listen at, 0 for any free one (default 8750)")
    parser.add_argument("--name", dest="names", action="append", default=[], metavar="HOST",
                        help="a host name that clients use for this machine, in addition to localhost and numeric "
                             "addresses; may be given several times")
    add_token(parser, "the token that clients have to send")
    parser.add_argument("--access-log", action="store_true", help="print a line for each request")
    parser.add_argument("--shards", type=number(int, 1, 4096), default=1, metavar="N",
                        help="number of parts of the index that are searched at the same time (default 1)")
    parser.add_argument("--ray", type=ray_address, metavar="ADDRESS",
                        help="one Ray process for each shard: `local` starts Ray here; `auto`, or HOST:PORT, joins a "
                             "cluster (default: all shards in this process)")
    parser.add_argument("--nprobe", type=number(int, 1), default=32, metavar="N",
                        help="inverted lists to search, unless a query has its own number (default 32)")
    add_gpu(parser)
    add_root(parser)


def add_checkpoint(parser):
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="an .npy file that train.py wrote")


def add_encoding(parser):
    """Options on which codes depend."""
    parser.add_argument("--trained-on", metavar="NAME",
                        help="data set whose tags the checkpoint learned (default: the one in its .json file)")
    parser.add_argument("--crops", type=int, choices=CROPS,
                        help="crops an image: ten, the five plain ones, the centre and its mirror image, or the centre "
                             "(default: 10 of AlexNet, otherwise as in the record of the checkpoint's encoder)")
    parser.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0, help="seed of codes and lists (default 0)")


def add_index(parser, **options):
    parser.add_argument("index", metavar="INDEX", **options,
                        help="folder of an index, or the beginning of a name in indexes/ that no other index shares")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="the checkpoint, if it was moved")


def add_results(parser, topk):
    parser.add_argument("--topk", type=number(int, 1), default=topk, metavar="K",
                        help=f"results to show (default {topk})")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_gpu(parser):
    parser.add_argument("--gpu", type=gpu_number, metavar="GPU", help="number of the GPU (default: the CPU)")


def add_root(parser):
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                        help="folder that holds data/, datasets/ and indexes/ (default: this program's folder)")


def add_token(parser, purpose):
    """Add the option --token. purpose: what the token is for, in words."""
    parser.add_argument("--token", type=_token, default=os.environ.get(TOKEN_VARIABLE) or None, metavar="TOKEN",
                        help=f"{purpose} (default: the environment variable {TOKEN_VARIABLE}, which does not appear in "
                             "the list of processes)")


def _token(text):
    if not re.fullmatch(r"[\w.~-]+", text, re.ASCII):  # so that it can be part of an address
        raise argparse.ArgumentTypeError("expected letters, digits, and - . _ ~ only")
    return text


def ray_address(text):
    """An argparse type: `local`, `auto` or HOST:PORT."""
    host, _, port = text.rpartition(":")
    if text in ("auto", "local") or (host and "/" not in host and port.isdecimal() and int(port) < 2**16):
        return text
    raise argparse.ArgumentTypeError(f"expected local, auto or HOST:PORT, found {text!r}")


def check_query(options, refuse):
    """Call `refuse(sentence)` for options that exclude each other. With --server the first position is the PHOTO."""
    if options.server is not None:
        if options.photo is not None:
            refuse("query: with --server expected no INDEX")
        if any(value is not None for value in (options.checkpoint, options.images, options.gpu)):
            refuse("query: --checkpoint, --images and --gpu are options of the server")
        options.index, options.photo = None, options.index and Path(options.index)
    elif options.index is None:
        refuse("query: expected an INDEX or --server")
    if sum(query is not None for query in (options.photo, options.words, options.list)) != 1:
        refuse("query: expected one of PHOTO, --words and --list")
    if options.list is not None and options.figure is not None:
        refuse("query: --figure draws one query, not those of --list")


# ---------------------------------------------------------------- commands

def main():
    options = parse_arguments()
    if options.command in ("build", "encode"):
        from models.checkpoint import unexported_alexnet
        if alexnet := unexported_alexnet(options.checkpoint):
            from models.make_encoder import export_alexnet  # loads the package onnx
            export_alexnet(options.checkpoint, alexnet)
    if options.command == "build":
        from retrieval import build, searcher
        out = options.out if options.name is None else searcher.named_folder(options.name, options.root)
        build.build(options.checkpoint, options.dataset, out, root=options.root, trained_on=options.trained_on,
                    crops=options.crops, inverted_lists=options.lists, skip_bad=options.skip_bad, seed=options.seed,
                    gpu=options.gpu, prune=options.prune, keep_embeddings=options.keep_embeddings,
                    vectors=options.vectors)
    elif options.command == "query":
        if options.server is not None:
            from server.client import Remote
            searcher = Remote(options.server, options.token)
        elif options.words is None:
            searcher = open_index(options.index, options.checkpoint, options.gpu, options.images, options.root)
        else:
            from retrieval.searcher import Searcher, find_index, load_index
            searcher = Searcher(load_index(find_index(options.index, options.root), options.images))
        if options.list is not None:
            answer_list(options, searcher)
            return
        results = ask(options, searcher)
        if options.figure:
            from retrieval import figures
            figures.results_figure(options.figure, options.photo, options.words, results)
        show_results(options, str(options.photo or options.words), results)
    elif options.command == "tags" and options.list_words:
        from retrieval.searcher import find_index, load_index
        show_words(options, load_index(find_index(options.index, options.root)))
    elif options.command == "tags":
        show_tags(options, open_index(options.index, options.checkpoint, options.gpu, root=options.root))
    elif options.command == "encode":
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
        encode_shards = None
        if options.ray is not None:
            from retrieval import ray_cluster
            ray_cluster.check_reachable(options.ray)
            encode_shards = ray_cluster.Workers(options.ray, options.workers, options.patience).encode_shards
        from retrieval import encode
        encode.encode(options.checkpoint, options.images, options.out, options.shard, crops=options.crops,
                      trained_on=options.trained_on, seed=options.seed, gpu=options.gpu, root=options.root,
                      encode_shards=encode_shards)
    elif options.command == "serve":
        from retrieval.searcher import find_index
        folder, connect = find_index(options.index, options.root), None
        if options.ray is not None:
            from retrieval import ray_cluster
            ray_cluster.check_reachable(options.ray)
            connect = partial(ray_cluster.connect, options.ray)
        from server import serve
        opener = serve.Opener(folder, options.checkpoint, options.gpu, options.nprobe, options.shards, connect)
        serve.serve(opener, options.host, options.port, options.names, options.token, options.access_log)


def open_index(name, checkpoint=None, gpu=None, images=None, root=ROOT):
    """The photos of an index that `build` wrote, ready to be searched: a `retrieval.searcher.Photos`. Raises UserError.

    Args:
        name: its folder, or the beginning of its name in `root`/indexes.
        checkpoint: where the checkpoint is now, if it was moved.
        gpu: number of the GPU that embeds queries, None for the CPU.
        images: where the indexed photos are now, if they were moved.
    """
    from retrieval.searcher import Photos, QueryEmbedder, find_index, load_index  # here, so that `--help` is quick
    loaded, known_labels = load_index(find_index(name, root), images), None
    facts, label_names = loaded.content.facts, loaded.content.label_names
    if label_names:
        from retrieval.labels import KnownLabels  # loads SciPy, which other indexes do without
        known_labels = KnownLabels(facts, len(label_names))
    return Photos(loaded, QueryEmbedder(loaded.folder, facts, checkpoint, gpu), known_labels)


def ask(options, searcher):
    """The results of the query, a list of Result."""
    if options.words is None:
        return searcher.by_photo(options.photo, options.topk, options.nprobe)
    return searcher.by_words(options.words, options.topk, options.nprobe)


def answer_list(options, searcher):
    """Print the results of each photo of a list as soon as they are found, or why it cannot be searched for.

    Raises UserError at the end if any photo cannot be searched for.
    """
    paths = read_list(options.list)
    refused = 0
    for path, found in searcher.by_photos(paths, options.topk, options.nprobe):
        if isinstance(found, UserError):
            refused += 1
            print(json.dumps({"query": path, "error": str(found)}, ensure_ascii=False) if options.json
                  else f"\n{path}\n{found}", flush=True)
        else:
            show_results(options, path, found)
    if refused:
        raise UserError(f"{options.list}: {refused:,} of {len(paths):,} photos could not be searched for; the line of "
                        "each says why")


def read_list(path):
    """The paths in a text file, one a line. Raises UserError if there are none."""
    text = path.read_bytes().decode(errors="surrogateescape")
    paths = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    if not paths or "\0" in text:
        raise UserError(f"{path}: expected the path of a photo in each line, found {'a NUL byte' if paths else 'none'}")
    return paths


# ---------------------------------------------------------------- output

def show_words(options, index):
    """Print the learned words in alphabetical order."""
    words = sorted(word for names in index.content.tag_names for word in names)
    print(json.dumps({"words": words}, ensure_ascii=False) if options.json else "\n".join(words))


def show_tags(options, photos):
    """Print the tags of a photo."""
    tags = photos.tags(options.photo)[:options.topk]
    if options.json:
        print(json.dumps({"photo": str(options.photo),
                          "tags": [{"cosine": cosine, "names": names} for cosine, names in tags]}, ensure_ascii=False))
        return
    for cosine, names in tags:
        print(f"{cosine:8.4f}  {'/'.join(names)}")


def show_results(options, query, results):
    """Print the results of a query, which is named by a text."""
    if options.json:
        print(json.dumps({"query": query, "results": [asdict(result) for result in results]}, ensure_ascii=False),
              flush=True)
        return
    if options.list is not None:
        print(f"\n{query}")
    marks = {True: "hit ", False: "miss", None: "    "}
    print(f"rank    score   cosine  {'label' if results and results[0].hit is not None else '    '} photo")
    for result in results:
        print(f"{result.rank:4}{result.score:9.4f}{result.cosine:9.4f}  {marks[result.hit]}  {result.path}")
    if gone := [result.path for result in results if not Path(result.path).is_file()]:
        note(f"{len(gone)} of these photos are not there any more, such as {gone[0]}")


if __name__ == "__main__":
    run_program(main)
