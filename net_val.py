"""Validation: the encoding graph, the codes of a whole split, the retrieval file, and MAP (section 8 of the method).

Letters: N images, b images a run of the graph, D = 300, M codebooks of K = 256 codewords, L labels.
"""
import hashlib
import time
from dataclasses import dataclass, replace

import h5py
import numpy as np

import metrics
import quantizer
from backbones import layers, of_weights
from dataset import load_retrieval, read_tag_embeddings
from image_files import IMAGE_SIDE, ImageStore, decodable_images
from session import first_device, in_towers, open_session, tf
from storage.arrays import read_weights
from storage.safe_files import check_checksums, fingerprint, read_json, with_checksums
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
SPLITS = {"database": "db", "test": "qry"}  # split: its prefix in the h5


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
            self.images = tf.placeholder(tf.uint8, [None, IMAGE_SIDE, IMAGE_SIDE, 3])  # (b, 256, 256, 3)
            self.variables, self._first_values = layers.make_variables(backbone.LAYERS, trainable=())
            self.embeddings = in_towers(
                lambda images, _: self._embed(backbone, crops_of(crops, backbone.SIDE), images), self.images, device)
            self._initialize = tf.global_variables_initializer()
            self.graph.finalize()

    def _embed(self, backbone, crops, images):
        """r of images, float32 (b, D)."""
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
    """For each run of the graph its rows, the embeddings of its sound images, float32 (b, D), and {row: what is wrong}.

    `load(rows)` gives the sound images, uint8 (b, 256, 256, 3), and {place in rows: what is wrong} of the others.
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


# ---------------------------------------------------------------- the retrieval file

@dataclass(frozen=True)
class Retrieval:
    """What retrieval needs of a split pair: embeddings and labels of both, codes of both, and the codebooks.

    features: float32 (N, D); codes: uint8 (N, M); labels: uint8 (N, L); codebooks: float32 (M, K, D).
    """
    db_features: np.ndarray
    db_codes: np.ndarray
    db_label: np.ndarray
    qry_features: np.ndarray
    qry_codes: np.ndarray
    qry_label: np.ndarray
    codebooks: np.ndarray


def sources(dataset, checkpoint, crops, seed, splits=None, precision=PRECISIONS[0]):
    """What a retrieval file depends on, as its attributes: first all but the labels, then the labels.

    `splits`: as of `load_splits` where bad images may have been left out.
    """
    lists, labels = zip(*(dataset.split_files(split) for split in SPLITS), strict=True)
    names = {"checkpoint": checkpoint, **{path.name: path for path in (dataset.tag_embeddings, *lists)}}
    for path in (*names.values(), *labels):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    return ({**{f"sha256 of {name}": fingerprint(path) for name, path in names.items()},
             "crops": crops, "seed": seed, "precision": precision,
             **{f"choice of {split} images": _rows_kept(splits and splits[split]) for split in SPLITS}},
            {f"sha256 of {path.name}": fingerprint(path) for path in labels})


def _rows_kept(split):
    if split is None or not split.skipped:
        return "all"
    return hashlib.sha256(split.rows.tobytes()).hexdigest()


def read_retrieval(path, expected, labels):
    """The retrieval file's content if it is whole and its attributes are the `expected` ones, else None; whether its
    labels are those of `labels` too; and why not."""
    if not path.is_file():
        return None, False, f"{path} is not there yet"
    try:
        check_checksums(path.with_suffix(".json"))
    except UserError as error:
        return None, False, str(error)

    def changed(file, attributes):
        found = {"precision": PRECISIONS[0], **file.attrs}
        return next((f"{path} was made with another {name.removeprefix('sha256 of ')}"
                     for name, value in attributes.items() if found.get(name) != value), None)
    try:
        with h5py.File(path, "r") as file:
            if why := changed(file, expected):
                return None, False, why
            content = Retrieval(**{name: file[name][()] for name in Retrieval.__dataclass_fields__})
            why = changed(file, labels)
            return content, why is None, why or "the files match"
    except (OSError, KeyError) as error:
        return None, False, f"{path} cannot be read ({error})"


def write_retrieval(path, retrieval, attributes):
    """Write the release's six datasets, the codes and the codebooks."""
    with with_checksums(path.with_suffix(".json"), {}, path) as (temporary,), h5py.File(temporary, "w") as file:
        for name in Retrieval.__dataclass_fields__:
            file[name] = getattr(retrieval, name)
        for prefix in SPLITS.values():
            file[f"{prefix}_reconstr"] = quantizer.reconstruct(getattr(retrieval, f"{prefix}_codes"),
                                                               retrieval.codebooks)
        file.attrs.update(attributes)


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
