"""Search photos by a photo, by words, or for a photo's tags: `python search.py build | query | tags`.

In a notebook:

    import search
    photos = search.open_index("indexes/mine")
    photos.by_photo("beach.jpg", topk=10)
    photos.by_words("beach sunset")
    photos.tags("beach.jpg")
"""
import argparse
import filecmp
import http.client
import json
import os
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from storage.run_log import provenance
from storage.safe_files import fingerprint, read_json
from util import (
    PRECISIONS,
    ROOT,
    UserError,
    add_precision,
    gpu_number,
    gpu_numbers,
    number,
    one_line,
    run_program,
    stream,
)

BLOCK = 4096  # images that are embedded before they are encoded, so that no more embeddings are held
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # what counts as a photo in a folder
DEFAULT_TOPK = 20
ANSWER_SECONDS = 120  # that a server may take: the first photo loads its network


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Make a searchable index of photos from a trained checkpoint, and ask it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="build | query | tags")
    build = commands.add_parser("build", help="make an index, or add the photos that are not in it yet")
    build.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="an .npy file that train.py wrote")
    build.add_argument("dataset", metavar="DATASET", help="a data set, of which the database is taken, any folder of "
                                                          "photos, or what encode.py wrote")
    build.add_argument("--out", type=Path, metavar="DIR", help="the index (default indexes/<experiment> in --root)")
    build.add_argument("--trained-on", metavar="NAME",
                       help="data set whose tags the checkpoint learned (default: as its .json file says)")
    build.add_argument("--crops", type=int, choices=(10, 5, 1), default=10,
                       help="crops a photo, of the index and of its queries (default 10)")
    add_precision(build)
    build.add_argument("--lists", type=number(int, 0), metavar="N",
                       help="sort the codes into N lists, of which a query looks into some (default: none up to a "
                            "million photos, then about 4·√photos)")
    build.add_argument("--skip-bad", action="store_true", help="leave out photos that cannot be read")
    build.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0, help="of codes and lists (default 0)")
    build.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                       help="folder that holds data/, datasets/ and indexes/ (default: this program's folder)")
    query = commands.add_parser("query", help="the photos that are most like a photo or some words")
    tags = commands.add_parser("tags", help="the model's own tags for a photo")
    for asking, default in ((query, DEFAULT_TOPK), (tags, 10)):
        asking.add_argument("index", metavar="INDEX", type=Path, help="a folder that build wrote",
                            nargs="?" if asking is query else None)
        asking.add_argument("photo", metavar="PHOTO", type=Path, nargs="?" if asking is query else None)
        asking.add_argument("--topk", type=number(int, 1), default=default, metavar="K",
                            help=f"results to show (default {default})")
        asking.add_argument("--json", action="store_true", help="print JSON, for programs")
        asking.add_argument("--checkpoint", type=Path, metavar="FILE", help="the checkpoint, if it was moved")
    query.add_argument("--words", help="search for one or more words instead of a photo")
    query.add_argument("--figure", type=Path, metavar="FILE", help="draw the query and its results, PNG")
    query.add_argument("--nprobe", type=number(int, 1), metavar="N", help="lists to look into (default 32)")
    query.add_argument("--images", type=Path, metavar="DIR", help="folder of the indexed photos, if it was moved")
    query.add_argument("--server", metavar="ADDRESS",
                       help="in place of INDEX: host:port of a serve.py, which has the index and the network")
    build.add_argument("--gpu", type=gpu_numbers, metavar="GPU",
                       help="number of the GPU, several as 0,1 (default: the CPU)")
    for asking in (query, tags):
        asking.add_argument("--gpu", type=gpu_number, metavar="GPU", help="number of the GPU (default: the CPU)")
    options = parser.parse_args()
    if options.command == "query":
        check_query(options, parser.error)
    return options


def check_query(options, refuse):
    """Call `refuse(sentence)` for options that do not go together. With --server the first position is the PHOTO."""
    if options.server is not None:
        if options.photo is not None:
            refuse("query: with --server expected no INDEX")
        if any(value is not None for value in (options.checkpoint, options.images, options.gpu)):
            refuse("query: --checkpoint, --images and --gpu are options of the server")
        options.index, options.photo = None, options.index
    elif options.index is None:
        refuse("query: expected an INDEX or --server")
    if (options.photo is None) == (options.words is None):
        refuse("query: expected either a PHOTO or --words")


def main():
    options = parse_arguments()
    if options.command == "build":
        build(options.checkpoint, options.dataset, options.out, options.root, options.trained_on, options.crops,
              options.lists, options.skip_bad, options.seed, options.gpu, options.precision)
        return
    if options.command == "tags":
        show_tags(options, open_index(options.index, options.checkpoint, options.gpu))
    elif options.server is not None:
        show_results(options, Remote(options.server))
    else:
        show_results(options, open_index(options.index, options.checkpoint, options.gpu, options.images))


# ---------------------------------------------------------------- build

@dataclass(frozen=True)
class Source:
    """Photos to index. names: N paths relative to `folder`; labels: uint8 (N, L) or None; label_names: L or none;
    dataset: the `dataset.Dataset` whose database they are, or None; encoded: the folder of encode.py, or None."""
    folder: Path
    names: list
    labels: np.ndarray | None
    label_names: list
    dataset: object
    encoded: object = None


def build(checkpoint, dataset, out=None, root=ROOT, trained_on=None, crops=10, lists=None, skip_bad=False, seed=0,
          gpu=None, precision=PRECISIONS[0]):
    """Make the index of a data set's database or of a folder of photos; one that is there grows by the new photos.

    Arguments are those of the command line; `gpu` is a number, a list of them, or None for the CPU. Returns the
    `index.Index`.
    """
    checkpoint, root = Path(checkpoint), Path(root)
    out = Path(out) if out else root / "indexes" / checkpoint.stem
    source = photo_source(str(dataset), root)
    import net_val  # and TensorFlow, which takes seconds
    from retrieval import index
    weights, codebooks = net_val.read_checkpoint(checkpoint)
    tagged = training_dataset(checkpoint, source, root, trained_on)
    with index.writing(out) as save:  # no other process may write the index since this one read it
        if index.has_index(out):
            before = existing_content(out, checkpoint, source, crops, precision)
        else:
            before = new_content(checkpoint, codebooks, source, tagged, root, crops, seed, precision)
        rows = new_rows(source, before, out, skip_bad)
        codes = stored_codes(checkpoint, source, rows, before.facts)
        if codes is None:
            codes = encode_photos([source.folder / source.names[row] for row in rows], weights, before, gpu)
        content = replace(before, codes=np.concatenate([before.codes, codes]),
                          images=[*before.images, *(source.names[row] for row in rows)],
                          labels=None if before.labels is None else np.concatenate([before.labels,
                                                                                    source.labels[rows]]))
        lists = index.default_inverted_lists(len(content.codes)) if lists is None else lists
        made = save(content, lists)
    print(f"{out}: {len(made):,} photos, {len(rows):,} of them new, {8 * len(codebooks)} bits each"
          + (f", in {lists} lists" if lists else ""))
    return made


def photo_source(name, root):
    """The photos of data set `name`, or of the folder of that name. Raises UserError."""
    import dataset
    import encode
    if encode.writes_to(Path(name)):
        encoded = encode.read_encoded(Path(name))
        return Source(Path(encoded.manifest["images"]), encoded.names, None, [], None, encoded)
    if "/" in name or not (root / "data" / dataset.RELEASE_FOLDERS.get(name, name)).is_dir():
        return folder_source(Path(name), dataset.known_datasets(root))
    found = dataset.find_dataset(name, root)
    images, matrix = found.split_files("database")
    if not images.is_file():  # for training only
        return Source(found.images, dataset.read_image_list(found.split_files("train")[0]), None, [], found)
    names = dataset.read_image_list(images)
    labels = dataset.read_binary_matrix(matrix).toarray()
    if len(labels) != len(names):
        raise UserError(f"{matrix} has {len(labels)} rows, but {images} lists {len(names)} images")
    return Source(found.images, names, labels, dataset.read_label_names(found, labels.shape[1]), found)


def folder_source(folder, known):
    """The photos in a folder and its subfolders, by name. `known`: data sets to name if it is no folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is neither a data set nor a folder; data sets: {', '.join(known) or 'none yet'}")
    names = photo_names(folder)
    if broken := [name for name in names if "\n" in name]:
        raise UserError(f"{folder}: expected file names without line breaks, found {broken[0]!r}")
    return Source(folder, names, None, [], None)


def photo_names(folder):
    """The photos in a folder and its subfolders, relative to it and sorted. Raises UserError if there are none."""
    try:
        os.path.realpath(folder).encode()
    except UnicodeEncodeError:
        raise UserError(f"{folder}: expected a folder whose name is UTF-8, found another") from None
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                   if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    if not names:
        raise UserError(f"{folder}: expected photos ({' '.join(SUFFIXES)}), found none")
    return names


def training_dataset(checkpoint, source, root, name):
    """The data set whose tags the checkpoint learned: `name`, or what its record says, or else the source.

    Raises UserError if there is none, or if its tags were processed anew since.
    """
    import dataset
    import net_val
    path = checkpoint.with_suffix(".json")
    record = read_json(path) if path.is_file() else {}
    name = name or record.get("options", {}).get("dataset") or (source.dataset and source.dataset.name)
    if name is None:
        raise UserError(f"{path}: no such file: say with --trained-on which data set {checkpoint.name} learned")
    found = dataset.find_dataset(name, root)
    net_val.check_trained_with(checkpoint, found.tag_embeddings)
    return found


def new_content(checkpoint, codebooks, source, tagged, root, crops, seed, precision):
    """The content of an index without photos."""
    import dataset
    from retrieval import index
    names = dataset.read_tag_names(tagged.tag_list)
    groups, embeddings = dataset.read_tags(tagged, len(names))
    facts = {"experiment": checkpoint.stem, "checkpoint": str(checkpoint.resolve()),
             "checkpoint_sha256": fingerprint(checkpoint), "crops": crops, "seed": seed, "precision": precision,
             "images": os.path.realpath(source.folder), "dataset": source.dataset and source.dataset.name,
             "root": str(root.resolve()), "trained_on": tagged.name, "versions": provenance({})["versions"]}
    return index.Content(
        codes=np.empty((0, len(codebooks)), np.uint8), codebooks=codebooks, images=[],
        tag_names=[[names[column] for column in group] for group in groups], tag_embeddings=embeddings,
        labels=None if source.labels is None else source.labels[:0], label_names=source.label_names, facts=facts)


def existing_content(out, checkpoint, source, crops, precision):
    """The content of the index in `out`, to which photos are added. Raises UserError if they do not belong there."""
    from retrieval import index
    content = index.load(out).content
    check_checkpoint(out, content.facts, checkpoint)
    for what, there, here in (("crops", content.facts["crops"], crops),
                              ("precision", precision_of(content.facts), precision),
                              ("the photos of", content.facts["images"], os.path.realpath(source.folder)),
                              ("labels", _columns(content.labels), _columns(source.labels))):
        if there != here:
            raise UserError(f"{out} is an index with {what} {there}, not {here}: choose another --out")
    return content


def precision_of(facts):
    """The precision of an index's embeddings by its facts."""
    return facts.get("precision", PRECISIONS[0])


def _columns(labels):
    return 0 if labels is None else labels.shape[1]


def check_checkpoint(folder, facts, checkpoint):
    """Raise UserError if the index in `folder` was made with another checkpoint, or this one is not there."""
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such file, but {folder} was made with it; --checkpoint names it if it moved")
    if fingerprint(checkpoint) != facts["checkpoint_sha256"]:
        raise UserError(f"{folder} is an index of another checkpoint ({facts['experiment']}), not of {checkpoint}")


def new_rows(source, before, out, skip_bad):
    """Rows of the source's photos that are not in the index yet, int64; bad ones are refused, or left out and told."""
    import dataset
    import image_files
    known = set(before.images)
    if gone := known.difference(source.names):
        print(f"note: {len(gone):,} photos of {out} are not in {source.folder} any more, such as {min(gone)}; they "
              "stay in the index (to drop them, delete it and build it anew)", file=sys.stderr)
    rows = np.array([row for row, name in enumerate(source.names) if name not in known], np.int64)
    if source.encoded:  # without the bad ones
        return rows
    names = [source.names[row] for row in rows]
    if source.dataset:
        faults = dataset.faults_in(source.folder, names)
    else:  # links in a person's own folder are that person's own
        faults = image_files.image_faults([source.folder / name for name in names])
    if not faults:
        return rows
    listed = image_files.list_faults(
        faults, lambda i: f"{source.folder / names[i]}" + (f" (row {rows[i] + 1})" if source.dataset else ""))
    told = f"{len(faults)} of {len(rows)} photos cannot be used"
    if not skip_bad:
        raise UserError(f"{told} (--skip-bad leaves them out): {listed}")
    print(f"left out: {told}: {listed}", file=sys.stderr)
    if len(faults) == len(rows):
        raise UserError(f"{source.folder}: none of the {len(rows)} new photos can be used")
    return np.delete(rows, list(faults))


def stored_codes(checkpoint, source, rows, facts):
    """The codes of the source's photos `rows`, uint8 (n, M), if encode.py made them, or if they are all and
    validation.py left them beside the checkpoint."""
    import net_val
    if source.encoded:
        source.encoded.check(checkpoint, facts["crops"], precision_of(facts))
        return source.encoded.codes[rows]
    path = checkpoint.with_name(f"{checkpoint.stem}_retrieval.h5")
    if source.dataset is None or len(rows) < len(source.names) or not path.is_file():
        return None
    try:
        expected, _ = net_val.sources(source.dataset, checkpoint, facts["crops"], facts["seed"],
                                      precision=precision_of(facts))
    except UserError:  # it was made from files that are gone
        return None
    retrieval, _, _ = net_val.read_retrieval(path, expected, {})
    if retrieval is None:
        return None
    print(f"the codes are those of {path}")
    return retrieval.db_codes


def encode_photos(paths, weights, content, gpu):
    """Codes of photos, uint8 (N, M), embedded and encoded in blocks."""
    import net_val
    import quantizer
    from session import device_name
    codes = [content.codes[:0]]
    if paths:
        precision = precision_of(content.facts)
        encoder = net_val.Encoder(weights, content.facts["crops"], device_name(gpu, warn, precision), precision)
    factor = quantizer.semantic_factor(content.tag_embeddings)
    for start in range(0, len(paths), BLOCK):
        block = paths[start:start + BLOCK]
        embeddings = encoder.embed(block, f"embedding photos {start + 1} to {start + len(block)} of {len(paths)}")
        rng = stream(content.facts["seed"], "index", len(content.codes) + start)
        codes.append(quantizer.encode(embeddings, content.codebooks, factor, rng, net_val.CHUNK))
    return np.concatenate(codes)


def warn(line):
    print(line, file=sys.stderr)


# ---------------------------------------------------------------- ask

@dataclass(frozen=True)
class Result:
    """A photo that was found. hit: whether it shares a label with the query, None where that is not known."""
    rank: int
    score: float
    path: str
    hit: bool | None


def open_index(folder, checkpoint=None, gpu=None, images=None):
    """The photos of an index that `build` wrote, ready to be searched.

    Args:
        checkpoint: where the checkpoint is now, if it was moved.
        gpu: number of the GPU that embeds queries, None for the CPU.
        images: where the indexed photos are now, if they were moved.
    """
    from retrieval import faiss_engine, index
    loaded = index.load(folder)
    if faiss_engine.faiss is None:
        warn("note: FAISS is not installed, so NumPy searches, slower (pip install -r requirements-search.txt)")
    if "crops" not in loaded.content.facts:
        raise UserError(f"{folder} is an index of another program: {loaded.content.facts.get('made_by')}")
    if images is not None:
        loaded.content.facts["images"] = str(images)
    return Photos(loaded, Path(checkpoint or loaded.content.facts["checkpoint"]), gpu)


class Photos:
    """An index and the network that embeds queries, which is loaded when the first photo is asked for."""

    def __init__(self, index, checkpoint, gpu):
        self.index = index
        self._facts = index.content.facts
        self._checkpoint = checkpoint
        self._gpu = gpu
        self._one_photo = threading.Lock()

    @cached_property
    def _encoder(self):
        check_checkpoint(self.index.folder, self._facts, self._checkpoint)
        import net_val
        from session import device_name
        weights, _ = net_val.read_checkpoint(self._checkpoint)
        return net_val.Encoder(weights, self._facts["crops"], device_name(self._gpu, warn))

    def embed(self, photo, name=None):
        """The embedding of a photo, float32 (D,). Raises UserError for a file that is no sound image.

        `name`: what the photo is called, if not as the file is.
        """
        import image_files
        with self._one_photo:  # at a time: decoded, it may be large
            if fault := image_files.image_fault(photo):
                raise UserError(f"{name or photo} {fault}")
            return self._encoder.embed([photo])[0]

    def by_photo(self, photo, topk=DEFAULT_TOPK, name=None, **options):
        """The photos most like a photo, best first: a list of Result. `options`: as of `Index.search`."""
        return self._results(self.embed(photo, name), self._labels_of(photo, Path(name or photo).name), topk, options)

    def by_words(self, words, topk=DEFAULT_TOPK, **options):
        """The photos that one or more words describe best, best first: a list of Result."""
        query = self.index.words(words)
        names = {name: column for column, name in enumerate(self.index.content.label_names)}
        labels = np.zeros(len(names), np.uint8)
        labels[[names[word] for word in words.split() if word in names]] = 1
        return self._results(query, labels if labels.any() else None, topk, options)

    def tags(self, photo):
        """The model's tags for a photo, best first: a list of (cosine, names of the merged tag)."""
        rows, cosines = self.index.tags(self.embed(photo))
        return [(float(cosine), self.index.content.tag_names[row]) for row, cosine in zip(rows, cosines, strict=True)]

    def _results(self, query, labels, topk, options):
        scores, rows = self.index.search(query[None], topk, **options)
        known = labels is not None and self.index.content.labels is not None
        return [Result(rank, float(score), str(self.index.image_path(row)),
                       bool((self.index.content.labels[row] & labels).any()) if known else None)
                for rank, (score, row) in enumerate(zip(scores[0], rows[0], strict=True), 1) if row >= 0]

    @cached_property
    def _labelled(self):
        """Of the data set's queries and database, as far as they are there: paths of photos, and labels (N, L)."""
        import dataset
        splits = []
        try:
            found = dataset.find_dataset(self._facts["dataset"], Path(self._facts["root"]))
            for split in ("test", "database"):
                names, matrix = dataset.read_split(found, split)
                splits.append(([str(found.images / name) for name in names], matrix))
        except UserError:  # the data set is not there any more
            pass
        return splits

    def _labels_of(self, photo, name):
        """The labels of a photo of the data set's queries or database, uint8 (L,), or None.

        It is one of theirs if `name`, its file name, and its content are.
        """
        if self.index.content.labels is None:
            return None
        for paths, matrix in self._labelled:
            for row, path in enumerate(paths):
                if path.endswith(f"/{name}") and os.path.isfile(path) and filecmp.cmp(path, photo, shallow=False):
                    return matrix[[row]].toarray()[0]
        return None


class Remote:
    """The photos of an index that a `serve.py` has, asked as Photos is. Paths in its answers are the server's."""

    def __init__(self, address):
        self._url = address if address.startswith(("http://", "https://")) else f"http://{address}"

    def by_photo(self, photo, topk=DEFAULT_TOPK, probes=None):
        with open(photo, "rb") as file:
            content = file.read()
        settings = {"topk": topk, "nprobe": probes, "name": os.fsencode(photo.name)}
        return self._ask("photo?" + urllib.parse.urlencode({key: value for key, value in settings.items()
                                                            if value is not None}), content)

    def by_words(self, words, topk=DEFAULT_TOPK, probes=None):
        return self._ask("words", json.dumps({"words": words, "topk": topk, "nprobe": probes}).encode())

    def _ask(self, path, body):
        """A list of Result. Raises UserError for what the server refuses, and if none answers."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(f"{self._url.rstrip('/')}/{path}", body, ANSWER_SECONDS) as answer:
                return [Result(int(found["rank"]), float(found["score"]), str(found["path"]),
                               None if found["hit"] is None else bool(found["hit"]))
                        for found in json.load(answer)["results"]]
        except urllib.error.HTTPError as error:
            raise UserError(_refusal(error)) from None
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"{self._url}: no server answered: {one_line(getattr(error, 'reason', error))}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._url}: expected an answer of serve.py, found another ({one_line(error)})") from None


def _refusal(error):
    """The sentence in a server's HTTPError."""
    try:
        return str(json.load(error)["error"])
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return f"{error.url}: {error}"


# ---------------------------------------------------------------- show

def show_tags(options, photos):
    """Print the tags of a photo."""
    tags = photos.tags(options.photo)[:options.topk]
    if options.json:
        print(json.dumps({"photo": str(options.photo),
                          "tags": [{"cosine": cosine, "names": names} for cosine, names in tags]}, ensure_ascii=False))
        return
    for cosine, names in tags:
        print(f"{cosine:8.4f}  {'/'.join(names)}")


def show_results(options, photos):
    """Ask the query, print what was found, and draw it if that is wanted."""
    probes = {} if options.nprobe is None else {"probes": options.nprobe}
    if options.words is None:
        results = photos.by_photo(options.photo, options.topk, **probes)
    else:
        results = photos.by_words(options.words, options.topk, **probes)
    query = str(options.photo or options.words)
    if options.figure:
        draw(options.figure, options.photo, options.words, results)
    if options.json:
        print(json.dumps({"query": query, "results": [asdict(result) for result in results]}, ensure_ascii=False))
        return
    marks = {True: "hit ", False: "miss", None: "    "}
    print(f"rank    score  {'label' if results and results[0].hit is not None else '    '} photo")
    for result in results:
        print(f"{result.rank:4}{result.score:9.4f}  {marks[result.hit]}  {result.path}")
    if gone := [result.path for result in results if not Path(result.path).is_file()]:
        warn(f"note: {len(gone)} of these photos are not there any more, such as {gone[0]}")


def draw(path, photo, words, results):
    """The query and its results as a picture."""
    import figures
    query = (figures.thumbnail(photo), os.fsencode(photo.name).decode(errors="replace")) if photo else (words, "")
    figures.ranking_figure(path, [(*query, [(figures.thumbnail(result.path), f"{result.score:.3f}", result.hit)
                                            for result in results])])


if __name__ == "__main__":
    run_program(main)
