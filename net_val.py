"""Validation: the encoding graph, the codes of a whole split, and MAP (section 8 of the method).

What belongs here: what validation.py does, from a checkpoint to its numbers. How the retrieval file is laid out stands
in storage/retrieval_file.py.
Letters: N images, B images a run of the graph, D = 300, M codebooks of K = 256 codewords, L labels.
"""
import time
from dataclasses import replace

import numpy as np

import metrics
import quantizer
from backbones import layers, of_weights
from dataset import find_dataset, load_retrieval, read_image_list, read_label_names, read_tag_embeddings
from image_files import IMAGE_SIDE, ImageStore, decodable_images
from session import device_name, first_device, in_towers, open_session, tf
from storage.arrays import read_weights
from storage.retrieval_file import SPLITS, Retrieval, read_retrieval, sources, write_retrieval
from storage.run_log import open_log, provenance
from storage.safe_files import check_checksums, fingerprint, read_json, write_json
from util import (
    DIMENSIONS,
    MOST_CODEBOOKS,
    PRECISIONS,
    UserError,
    counting,
    first_few,
    note,
    prefetch,
    progress,
    stream,
)

CROPS_AT_ONCE = 160  # crops a run of the graph
CHUNK = 700  # images that share the visiting orders of ICM in validation
PRECISION_AT = (1, 10, 100, 1000)


# ---------------------------------------------------------------- the program

def validate(options, draw=None):
    """What validation.py does. `draw`: `figures.write_all` where figures are wanted."""
    folder = find_dataset(options.dataset, options.root)
    splits = load_splits(folder, skip_bad=True) if options.skip_bad else None
    attributes = sources(folder, options.checkpoint, options.crops, options.seed, splits, options.precision)
    experiment = options.checkpoint.stem
    log = open_log(options.root / "logs" / f"{experiment}.log")
    retrieval = embed_and_encode(options, folder, splits, attributes, log)
    results = report(options, retrieval, {**attributes[0], **attributes[1]}, experiment, log)
    if draw:
        draw(options.checkpoint.with_name(f"{experiment}_figures"), retrieval, results,
             read_label_names(folder, retrieval.db_label.shape[1]), image_paths(folder, splits),
             options.root / "logs" / f"{experiment}.log", options.seed, log)


def embed_and_encode(options, folder, splits, attributes, log):
    """The content of the retrieval file, computed as far as the one that is there was made from other files.

    `splits`: as of `load_splits`, or None, and they are loaded when they are needed.
    """
    path = options.checkpoint.with_name(f"{options.checkpoint.stem}_retrieval.h5")
    embeddings, labels = attributes
    retrieval, same_labels, why = read_retrieval(path, embeddings, labels)
    if same_labels:
        log.info(f"embeddings and codes are those of {path}: {why}.")
        return retrieval
    splits = splits or load_splits(folder, skip_bad=False)
    if retrieval is None:
        log.info(f"embedding and encoding: {why}.")
        device = device_name(options.gpu, log.warning, options.precision)
        retrieval = compute_retrieval(folder, options.checkpoint, splits, options.crops, options.seed,
                                              device, options.precision, log)
    else:
        log.info(f"embeddings and codes are those of {path}, with new labels: {why}.")
        retrieval = with_labels(retrieval, splits)
    write_retrieval(path, retrieval, {**embeddings, **labels})
    return retrieval


def image_paths(folder, splits):
    """`{split: image files}` in the order of the retrieval file, whose rows are all unless bad ones were left out.

    `splits`: as of `load_splits` where bad images may have been left out, else None.
    """
    if splits:
        return {split: content.paths for split, content in splits.items()}
    return {split: [folder.images / name for name in read_image_list(folder.split_files(split)[0])]
            for split in SPLITS}


def report(options, retrieval, attributes, experiment, log):
    """Measure, print the table, and write the metrics file. The results as of `measure`."""
    queries, images = len(retrieval.qry_label), len(retrieval.db_label)
    topk = min(options.topk, images)
    if topk < options.topk:
        log.info(f"the database holds {images} images, so MAP counts the first {topk} results, not {options.topk}.")
    log.info(f"{queries} queries, {images} database images, {8 * len(retrieval.codebooks)} bits an image.")
    results = measure(retrieval, topk, options.seed, log)
    numbers = as_numbers(results, topk)
    if numbers["AQD"]["map"] is None:
        log.warning(f"no query shares a label with any of its first {topk} results, so there is no MAP.")
    path = options.checkpoint.with_name(f"{experiment}_metrics.json")
    write_json(path, {"dataset": options.dataset, "bits": 8 * len(retrieval.codebooks), "topk": topk,
                      "queries": queries, "database_images": images, **numbers,
                      "sources": attributes, **provenance({})})
    print_table(numbers, topk)
    log.info(f"saved {path}.")
    return results


def print_table(results, topk):
    """The results as a table for people; the random row shows what the others are worth."""
    columns = list(results["AQD"]["precision"])
    print(f"\n{'':8}{'MAP@' + str(topk):>10}{'min(R,K)':>10}" + "".join(f"{'P@' + n:>9}" for n in columns))
    def cell(value, width):
        return f"{'none' if value is None else f'{value:.4f}':>{width}}"
    for name, row in results.items():
        print(f"{name:8}{cell(row['map'], 10)}{cell(row['map_min_rk'], 10)}"
              + "".join(cell(row["precision"][n], 9) for n in columns))
    print()


# ---------------------------------------------------------------- checkpoint and embeddings

def read_checkpoint(path):
    """`{layer: [kernel, bias]}` and codebooks, float32 (M, K, D), of a checkpoint. Raises UserError.

    A checkpoint that was altered since it was written is refused; one without a checksum, as the release's, is noted.
    """
    if not check_checksums(path.with_suffix(".json")):
        note(f"{path} has no checksum in a JSON file beside it, so damage to it would go unnoticed")
    weights = read_weights(path)
    stacked = weights.get("C")
    if stacked is None:
        raise UserError(f"{path}: expected a checkpoint with codebooks under 'C', found only "
                        f"{', '.join(map(str, weights))}")
    codebooks = len(stacked) // quantizer.CODEWORDS
    if stacked.shape != (codebooks * quantizer.CODEWORDS, DIMENSIONS) or not (
            1 <= codebooks <= MOST_CODEBOOKS):
        raise UserError(f"{path}: expected C with shape (M·{quantizer.CODEWORDS}, {DIMENSIONS}) for M from 1 to "
                        f"{MOST_CODEBOOKS}, found {stacked.shape}")
    backbone = of_weights(weights)
    kept = layers.check_weights(weights, backbone.LAYERS, path)
    if layers.LAST not in kept:
        raise UserError(f"{path}: expected {layers.LAST} with shape {backbone.LAYERS[layers.LAST]}, found another")
    return kept, stacked.reshape(codebooks, quantizer.CODEWORDS, DIMENSIONS)


def check_trained_with(checkpoint, tag_embeddings):
    """Raise UserError if the record beside the checkpoint tells of other tag embeddings than this file's."""
    path = checkpoint.with_suffix(".json")
    record = read_json(path) if path.is_file() else {}
    trained, found = record.get("fingerprints", {}).get(tag_embeddings.name), fingerprint(tag_embeddings)
    if trained not in (None, found):
        raise UserError(f"{checkpoint} was trained with a {tag_embeddings.name} of SHA-256 {trained[:12]}…, and "
                        f"{tag_embeddings} has {found[:12]}…: they are of other data sets, or tags were processed anew")


def crops_of(count, side):
    """The crops of an image: (top and left in pixels, whether the image is flipped first), `count` times.

    Ten: four near the corners and the centre, flipped and plain; five: the plain ones; one: the plain centre. `side`:
    pixels of a crop.
    """
    middle = (IMAGE_SIDE - side) // 2
    far = 2 * middle  # for AlexNet 28, as in the release, though 29 would fit
    offsets = ((0, 0), (far, far), (far, 0), (0, far), (middle, middle))
    return {10: [(offset, flip) for flip in (True, False) for offset in offsets],
            5: [(offset, False) for offset in offsets],
            1: [(offsets[-1], False)]}[count]


class EncodingGraph:
    """The graph that embeds images by the mean over their crops, finalized.

    Args:
        backbone: one of `backbones.BACKBONES`.
        crops (int): 10, 5 or 1, as of `crops_of`.
        device: as of `session.device_name`; several share the images.
    """

    def __init__(self, backbone, crops, device):
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.device(first_device(device)):
            self.images = tf.placeholder(tf.uint8, [None, IMAGE_SIDE, IMAGE_SIDE, 3])  # (B, 256, 256, 3)
            self.variables, self._first_values = layers.make_variables(backbone.LAYERS, trainable=())
            self.embeddings = in_towers(
                lambda images, _: self._embed(backbone, crops_of(crops, backbone.SIDE), images), self.images, device)
            self._initialize = tf.global_variables_initializer()
            self.graph.finalize()

    def _embed(self, backbone, crops, images):
        """r of images, float32 (B, D)."""
        parts = []
        for (top, left), flip in crops:
            seen = tf.reverse(images, [2]) if flip else images
            parts.append(seen[:, top:top + backbone.SIDE, left:left + backbone.SIDE])
        outputs, _ = backbone.embed(tf.concat(parts, 0), self.variables)  # (crops·b, D)
        return tf.reduce_mean(tf.reshape(outputs, [len(crops), -1, DIMENSIONS]), 0)

    def initialize(self, session, weights):
        """Take `weights`, `{layer: [kernel, bias]}`."""
        session.run(self._initialize, layers.feed_weights(self._first_values, weights))


def embed_runs(load, count, graph, session, crops):
    """For each run of the graph its rows, the embeddings of its sound images, float32 (B, D), and {row: what is wrong}.

    `load(rows)` gives the sound images, uint8 (B, 256, 256, 3), and {place in rows: what is wrong} of the others.
    """
    size = CROPS_AT_ONCE // crops
    runs = [range(start, min(start + size, count)) for start in range(0, count, size)]
    for rows, (images, faults) in zip(runs, prefetch(load, runs), strict=True):
        embeddings = np.empty((0, DIMENSIONS), np.float32)
        if len(images):
            embeddings = session.run(graph.embeddings, {graph.images: images})
        yield rows, embeddings, {rows[place]: fault for place, fault in faults.items()}


def embed_images(store, graph, session, crops, what):
    """Embeddings of every image of a store, each exactly once, float32 (N, D)."""
    parts = []
    with progress(total=len(store), desc=what, unit="image") as bar:
        for rows, embeddings, _ in embed_runs(
                lambda rows: (store.images(rows), {}), len(store), graph, session, crops):
            parts.append(embeddings)
            bar.update(len(rows))
    return np.concatenate(parts)


class Encoder:
    """A trained network that stands ready to embed images.

    Args:
        weights: `{layer: [kernel, bias]}`, which tell the backbone.
        crops, device: as of EncodingGraph.
        precision: as of `session.open_session`.
    """

    def __init__(self, weights, crops, device, precision=PRECISIONS[0]):
        self._crops = crops
        self._graph = EncodingGraph(of_weights(weights), crops, device)
        self._session = open_session(self._graph.graph, precision)
        self._graph.initialize(self._session, weights)

    def embed(self, paths, what="embedding"):
        """Embeddings of image files, float32 (N, D); `what` is told where it takes long."""
        embeddings = embed_images(ImageStore(paths), self._graph, self._session, self._crops, what)
        _check_embeddings(embeddings, paths)
        return embeddings

    def embed_sound(self, paths, advance):
        """Embeddings of the image files that can be decoded, float32 (n, D), and {row: what is wrong} of the others.

        `advance(images)` is told how many more were looked at.
        """
        parts, faults = [np.empty((0, DIMENSIONS), np.float32)], {}
        for rows, embeddings, bad in embed_runs(
                lambda rows: decodable_images(paths[rows.start:rows.stop]), len(paths), self._graph, self._session,
                self._crops):
            parts.append(embeddings)
            faults |= bad
            advance(len(rows))
        embeddings = np.concatenate(parts)
        _check_embeddings(embeddings, [path for row, path in enumerate(paths) if row not in faults])
        return embeddings, faults


def _check_embeddings(embeddings, paths):
    if bad := [str(paths[row]) for row in np.flatnonzero(~np.isfinite(embeddings).all(1))]:
        raise UserError(f"the network gives NaN or infinite embeddings of {len(bad)} images: {first_few(bad)}")


# ---------------------------------------------------------------- from the splits to their codes

def load_splits(dataset, skip_bad):
    """`{split: RetrievalSet}` of database and queries. Raises UserError for whatever does not fit together."""
    splits = {split: load_retrieval(dataset, split, skip_bad) for split in SPLITS}
    columns = {split: content.labels.shape[1] for split, content in splits.items()}
    if columns["database"] != columns["test"]:
        raise UserError(f"{dataset.splits}: database_label.txt and test_label.txt must have the same columns, found "
                        f"{columns['database']} and {columns['test']}")
    return splits


def with_labels(retrieval, splits):
    """The same embeddings and codes with the labels that the splits have now."""
    return replace(retrieval, **{f"{prefix}_label": splits[split].labels for split, prefix in SPLITS.items()})


def compute_retrieval(dataset, checkpoint, splits, crops, seed, device, precision, log):
    """Embed and encode database and queries. Raises UserError if the checkpoint does not fit."""
    weights, codebooks = read_checkpoint(checkpoint)
    dataset.check_tags()
    check_trained_with(checkpoint, dataset.tag_embeddings)
    factor = quantizer.semantic_factor(read_tag_embeddings(dataset.tag_embeddings))
    encoder = Encoder(weights, crops, device, precision)
    arrays = {"codebooks": codebooks}
    for split, prefix in SPLITS.items():
        began = time.perf_counter()
        content = splits[split]
        features = encoder.embed(content.paths, f"embedding {split} images")
        log.info(f"embedded {len(features)} {split} images ({content.skipped} bad ones were left out), "
                 f"duration: {time.perf_counter() - began:.2f} sec.")
        began = time.perf_counter()
        codes = quantizer.encode(features, codebooks, factor, stream(seed, f"encode {split}"), CHUNK)
        log.info(f"encoded {len(codes)} {split} images, duration: {time.perf_counter() - began:.2f} sec.")
        arrays |= {f"{prefix}_features": features, f"{prefix}_codes": codes, f"{prefix}_label": content.labels}
    return Retrieval(**arrays)


# ---------------------------------------------------------------- MAP

def measure(retrieval, topk, seed, log):
    """`{ranking: (metrics.Quality at topk, seconds)}` of AQD, SQD and feats, and of a random ranking."""
    r = retrieval
    reconstructed = quantizer.reconstruct(r.qry_codes, r.codebooks)
    scores = {
        "AQD": lambda q: quantizer.quantized_scores(r.qry_features[q], r.db_codes, r.codebooks),
        "SQD": lambda q: quantizer.quantized_scores(reconstructed[q], r.db_codes, r.codebooks),
        "feats": lambda q: r.qry_features[q] @ r.db_features.T,
        "random": lambda q: metrics.random_scores(range(len(r.qry_label))[q], len(r.db_label), seed),
    }
    results = {}
    for name, score in scores.items():
        began = time.perf_counter()
        with counting(score, len(r.qry_label), f"ranking by {name}") as counted:
            quality = metrics.evaluate(counted, r.qry_label, r.db_label, topk)
        seconds = time.perf_counter() - began
        log.info(f"{name} mAP@{topk} = [{quality.map:.4f}], duration: {seconds:.2f} sec.")
        results[name] = quality, seconds
    return results


def as_numbers(results, topk):
    """What the metrics file holds of the results of `measure`: `{ranking: {what: number}}`, None where it is NaN."""
    def defined(value):
        return None if np.isnan(value) else float(value)
    return {name: {
        "map": defined(quality.map), "map_min_rk": defined(quality.map_min_rk), "queries_left_out": quality.left_out,
        "precision": {str(n): defined(quality.precision[n - 1]) for n in PRECISION_AT if n <= topk},
        "seconds": round(seconds, 3)} for name, (quality, seconds) in results.items()}
