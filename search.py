"""Search photos by a photo, by words, or for a photo's tags: `python search.py build | query | tags | serve`.

In a notebook:

    import search
    photos = search.open_index("mine")  # indexes/mine…
    photos.by_photo("beach.jpg", topk=10)
    photos.by_words("beach sunset")
    photos.tags("beach.jpg")
"""
import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from retrieval.cluster_address import check_reachable, ray_address
from retrieval.index_names import find_index, named_folder
from retrieval.result import DEFAULT_TOPK
from server.client import Remote, add_token
from util import CROPS, CROPS_HELP, ROOT, UserError, add_precision, gpu_number, gpu_numbers, note, number, run_program


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Make a searchable index of photos from a trained checkpoint, and ask it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="build | query | tags | serve")
    build = commands.add_parser("build", help="make an index, or bring one up to date")
    build.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="an .npy file that train.py wrote")
    build.add_argument("dataset", metavar="DATASET", help="a data set, of which the database is taken, any folder of "
                                                          "photos, or what encode.py wrote")
    place = build.add_mutually_exclusive_group()
    place.add_argument("--name", help="what the index is called, a folder of indexes/ in --root (default: as the "
                                      "checkpoint)")
    place.add_argument("--out", type=Path, metavar="DIR", help="the folder of the index, if it is to lie elsewhere")
    build.add_argument("--trained-on", metavar="NAME",
                       help="data set whose tags the checkpoint learned (default: as its .json file says)")
    build.add_argument("--crops", type=int, choices=CROPS, help=CROPS_HELP)
    add_precision(build)
    build.add_argument("--lists", type=number(int, 0), metavar="N",
                       help="sort the codes into N lists, of which a query looks into some (default: none up to a "
                            "million photos, then about 4·√photos)")
    build.add_argument("--skip-bad", action="store_true", help="leave out photos that cannot be read")
    build.add_argument("--keep-embeddings", action="store_true",
                       help="keep the photos' embeddings too, 600 bytes a photo, which put results of equal scores in "
                            "order (default: they come in the order of the index)")
    build.add_argument("--vectors", type=Path, metavar="FILE",
                       help="the file of word vectors that the tags were made of, so that any word in it can be "
                            "searched for (default: the one that tag_processing.py read, if it is still there)")
    build.add_argument("--prune", action="store_true", help="drop the photos that are gone from the index")
    build.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0, help="of codes and lists (default 0)")
    query = commands.add_parser("query", help="the photos that are most like a photo or some words")
    tags = commands.add_parser("tags", help="the model's own tags for a photo")
    for asking, default in ((query, DEFAULT_TOPK), (tags, 10)):
        asking.add_argument("index", metavar="INDEX", nargs="?" if asking is query else None,
                            help="how the name of an index begins, if one alone begins so, or its folder")
        asking.add_argument("photo", metavar="PHOTO", type=Path, nargs="?")
        asking.add_argument("--topk", type=number(int, 1), default=default, metavar="K",
                            help=f"results to show (default {default})")
        asking.add_argument("--json", action="store_true", help="print JSON, for programs")
        asking.add_argument("--checkpoint", type=Path, metavar="FILE", help="the checkpoint, if it was moved")
    query.add_argument("--words", help="search for one or more words instead of a photo")
    query.add_argument("--list", type=Path, metavar="FILE",
                       help="search for each of many photos, of which FILE has the paths, one a line")
    tags.add_argument("--list-words", action="store_true", help="the words that were learned, not a photo's tags")
    query.add_argument("--figure", type=Path, metavar="FILE", help="draw the query and its results, PNG")
    query.add_argument("--nprobe", type=number(int, 1), metavar="N", help="lists to look into (default 32)")
    query.add_argument("--images", type=Path, metavar="DIR", help="folder of the indexed photos, if it was moved")
    query.add_argument("--server", metavar="ADDRESS",
                       help="in place of INDEX: host:port of a `search.py serve`, which has the index and the network")
    add_token(query, "with --server: what the server asks for")
    build.add_argument("--gpu", type=gpu_numbers, metavar="GPU",
                       help="number of the GPU, several as 0,1 (default: the CPU)")
    for asking in (query, tags):
        asking.add_argument("--gpu", type=gpu_number, metavar="GPU", help="number of the GPU (default: the CPU)")
    for command in (build, query, tags):
        command.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                             help="folder that holds data/, datasets/ and indexes/ (default: this program's folder)")
    add_serve(commands)
    options = parser.parse_args()
    if options.command == "query":
        check_query(options, parser.error)
    elif options.command == "tags" and (options.photo is None) != options.list_words:
        parser.error("tags: expected either a PHOTO or --list-words")
    return options


def add_serve(commands):
    """Add the subcommand `serve`."""
    serve = commands.add_parser("serve", help="serve a page that searches an index, and answer programs over HTTP",
                                description="Serve a page that searches an index of photos, and answer programs over "
                                            "HTTP. Open the address that is printed; its /docs lists what programs "
                                            "may ask.")
    serve.add_argument("index", metavar="INDEX", help="how the name of an index in indexes/ begins, or its folder")
    serve.add_argument("--host", default="127.0.0.1",
                       help="address to listen at (default 127.0.0.1, this machine only; others need a --token)")
    serve.add_argument("--port", type=number(int, 0, 65535), default=8750,
                       help="port to listen at, 0 for any free one (default 8750)")
    serve.add_argument("--name", dest="names", action="append", default=[], metavar="HOST",
                       help="a host name that clients use for this machine, in addition to localhost and numeric "
                            "addresses; may be given several times")
    add_token(serve, "what clients have to send")
    serve.add_argument("--access-log", action="store_true", help="print a line for each request")
    serve.add_argument("--shards", type=number(int, 1, 4096), default=1, metavar="N",
                       help="parts of the index that are searched at once (default 1)")
    serve.add_argument("--ray", type=ray_address, metavar="ADDRESS",
                       help="one Ray process for each shard: local starts Ray on this machine, auto or host:port joins "
                            "a cluster (default: all shards in this process)")
    serve.add_argument("--nprobe", type=number(int, 1), default=32, metavar="N",
                       help="inverted lists to look into, unless a query has its own number (default 32)")
    serve.add_argument("--checkpoint", type=Path, metavar="FILE", help="the checkpoint, if it was moved")
    serve.add_argument("--gpu", type=gpu_number, metavar="GPU",
                       help="number of the GPU that embeds photos (default: the CPU)")
    serve.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                       help="folder that holds indexes/ (default: this program's folder)")


def check_query(options, refuse):
    """Call `refuse(sentence)` for options that do not go together. With --server the first position is the PHOTO."""
    if options.server is not None:
        if options.photo is not None:
            refuse("query: with --server expected no INDEX")
        if any(value is not None for value in (options.checkpoint, options.images, options.gpu)):
            refuse("query: --checkpoint, --images and --gpu are options of the server")
        options.index, options.photo = None, options.index and Path(options.index)
    elif options.index is None:
        refuse("query: expected an INDEX or --server")
    if sum(asked is not None for asked in (options.photo, options.words, options.list)) != 1:
        refuse("query: expected one of PHOTO, --words and --list")
    if options.list is not None and options.figure is not None:
        refuse("query: --figure draws one query, not those of --list")


def open_index(name, checkpoint=None, gpu=None, images=None, root=ROOT):
    """The photos of an index that `build` wrote, ready to be searched: a `photo_searcher.Photos`. Raises UserError.

    Args:
        name: its folder, or how its name in `root`/indexes begins.
        checkpoint: where the checkpoint is now, if it was moved.
        gpu: number of the GPU that embeds queries, None for the CPU.
        images: where the indexed photos are now, if they were moved.
    """
    from retrieval import query_network  # and TensorFlow, which takes seconds
    return query_network.open_index(find_index(name, root), checkpoint, gpu, images)


def main():
    options = parse_arguments()
    if options.command == "serve":
        folder, connect = find_index(options.index, options.root), None
        if options.ray is not None:
            check_reachable(options.ray)
            from retrieval import ray_shards
            connect = partial(ray_shards.connect, options.ray)

        def load_network(*which):
            from retrieval import query_network  # loads TensorFlow, which only photos need
            return query_network.load(*which)
        from server import serve
        opener = serve.Opener(folder, options.checkpoint, options.gpu, load_network, options.nprobe, options.shards,
                              connect)
        serve.serve(opener, options.host, options.port, options.names, options.token, options.access_log)
    elif options.command == "build":
        out = options.out or named_folder(options.checkpoint.stem if options.name is None else options.name,
                                          options.root)
        from retrieval import photos, up_to_date
        source = photos.photo_source(options.dataset, options.root)
        if up_to_date.tell_if_up_to_date(source, out, options):
            return
        from retrieval import build
        build.build(options.checkpoint, source, out, options.root, options.trained_on,
                       options.crops, options.lists, options.skip_bad, options.seed, options.gpu, options.precision,
                       options.prune, options.keep_embeddings, options.vectors)
    elif options.command == "tags" and options.list_words:
        from retrieval.searcher import load_index
        show_words(options, load_index(find_index(options.index, options.root)))
    elif options.command == "tags":
        show_tags(options, open_index(options.index, options.checkpoint, options.gpu, root=options.root))
    else:
        if options.server is not None:
            searcher = Remote(options.server, options.token)
        elif options.words is None:
            searcher = open_index(options.index, options.checkpoint, options.gpu, options.images, options.root)
        else:
            from retrieval.searcher import Searcher, load_index
            searcher = Searcher(load_index(find_index(options.index, options.root), options.images))
        if options.list is not None:
            answer_list(options, searcher)
            return
        results = ask(options, searcher)
        if options.figure:
            from retrieval import result_figure
            result_figure.draw(options.figure, options.photo, options.words, results)
        show_results(options, str(options.photo or options.words), results)


def ask(options, searcher):
    """What the query finds: a list of Result."""
    if options.words is None:
        return searcher.by_photo(options.photo, options.topk, **probes(options))
    return searcher.by_words(options.words, options.topk, **probes(options))


def answer_list(options, searcher):
    """Print what each photo of a list finds, as soon as it is found, or why it cannot be searched for.

    Raises UserError in the end if any cannot.
    """
    paths = read_list(options.list)
    refused = 0
    for path, found in searcher.by_photos(paths, options.topk, **probes(options)):
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


def probes(options):
    """The option of `Index.search` that --nprobe is."""
    return {} if options.nprobe is None else {"probes": options.nprobe}


# ---------------------------------------------------------------- show

def show_words(options, index):
    """Print the words that were learned, in the order of the alphabet."""
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
    """Print what was found for a query, a text."""
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
