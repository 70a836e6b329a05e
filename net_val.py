"""Validation: the encoding graph, the codes of a whole split, and MAP (section 8 of the method).

What belongs here: what validation.py does, from a checkpoint to its numbers. How the retrieval file is laid out stands
in storage/retrieval_file.py.
Letters: N images, B images a run of the graph, D = 300, M codebooks of K = 256 codewords, L labels.
"""
import time
from dataclasses import replace

import numpy as np

from dataset import find_dataset, load_retrieval, read_image_list, read_label_names, read_tag_embeddings
from models.backbones import LAST, of_weights
from models.checkpoint import check_trained_with, default_crops, read_checkpoint, trained_on_features
from models.features import embed, photo_features, read_features
from models.session import device_name
from models.tf_encoder import Encoder
from quantization import quantizer
from quantization.neighbourhoods import averages
from retrieval import metrics
from retrieval.retrieval_file import SPLITS, Retrieval, read_retrieval, sources, write_retrieval
from storage.files import write_json
from storage.log import open_log, provenance
from util import UserError, counting, stream

PRECISION_AT = (1, 10, 100, 1000)


# ---------------------------------------------------------------- the program

def validate(options, draw=None):
    """What validation.py does. `draw`: `figures.write_all` where figures are wanted."""
    folder = find_dataset(options.dataset, options.root)
    if options.crops is None:
        options.crops = default_crops(options.checkpoint)
    splits = load_splits(folder, skip_bad=True) if options.skip_bad else None
    attributes = sources(folder, options.checkpoint, options.crops, options.seed, splits,
                         options.features)
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
    splits = splits or load_splits(folder, skip_bad=False, check_images=options.features is None)
    if retrieval is None:
        log.info(f"embedding and encoding: {why}.")
        device = device_name(options.gpu, log.warning, options.precision)
        retrieval = compute_retrieval(options, folder, splits, device, log)
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


# ---------------------------------------------------------------- from the splits to their codes

def load_splits(dataset, skip_bad, check_images=True):
    """`{split: RetrievalSet}` of database and queries. Raises UserError for whatever does not fit together."""
    splits = {split: load_retrieval(dataset, split, skip_bad, check_images) for split in SPLITS}
    columns = {split: content.labels.shape[1] for split, content in splits.items()}
    if columns["database"] != columns["test"]:
        raise UserError(f"{dataset.splits}: database_label.txt and test_label.txt must have the same columns, found "
                        f"{columns['database']} and {columns['test']}")
    return splits


def with_labels(retrieval, splits):
    """The same embeddings and codes with the labels that the splits have now."""
    return replace(retrieval, **{f"{prefix}_label": splits[split].labels for split, prefix in SPLITS.items()})


def compute_retrieval(options, dataset, splits, device, log):
    """Embed and encode database and queries. Raises UserError if the checkpoint does not fit.

    Args:
        options: those of validation.py.
        splits: of `load_splits`.
        device: as of `session.device_name`.
    """
    checkpoint = read_checkpoint(options.checkpoint)
    dataset.check_tags()
    check_trained_with(options.checkpoint, dataset.tag_embeddings)
    factor = checkpoint.factor(read_tag_embeddings(dataset.tag_embeddings))
    embed = embedder(options, dataset, checkpoint, device, log)
    arrays = {"codebooks": checkpoint.codebooks}
    for split, prefix in SPLITS.items():
        began = time.perf_counter()
        content = splits[split]
        features = embed(split, content)
        log.info(f"embedded {len(features)} {split} images ({content.skipped} bad ones were left out), "
                 f"duration: {time.perf_counter() - began:.2f} sec.")
        began = time.perf_counter()
        codes = checkpoint.encode(features, factor, stream(options.seed, f"encode {split}"))
        log.info(f"encoded {len(codes)} {split} images, duration: {time.perf_counter() - began:.2f} sec.")
        arrays |= {f"{prefix}_features": features, f"{prefix}_codes": codes, f"{prefix}_label": content.labels}
    if checkpoint.neighbours is not None:
        arrays["qry_averages"] = averages(arrays["qry_features"], checkpoint.neighbours)
    return Retrieval(**arrays)


def embedder(options, dataset, checkpoint, device, log):
    """A function of a split and its RetrievalSet that gives embeddings, float32 (N, D): by the whole network, or by the
    last layer on features, where these are given or the lower layers were not trained."""
    last_layer, backbone = checkpoint.weights[LAST], of_weights(checkpoint.weights)
    if options.features is not None:
        def features_of(split, content):
            image_list, width = dataset.split_files(split)[0], len(last_layer[0])
            return read_features(options.features, split, image_list, width)[content.rows]
    elif backbone is not None and trained_on_features(options.checkpoint):
        def features_of(split, content):
            return photo_features(dataset, split, content.rows, checkpoint.weights, backbone, options.crops, device,
                                  options.precision, options.root, log)
    else:
        encoder = Encoder(checkpoint.weights, options.crops, device, options.precision, unit=checkpoint.fitted)
        return lambda split, content: encoder.embed(content.paths, f"embedding {split} images")
    return lambda split, content: embed(features_of(split, content), last_layer, checkpoint.fitted)


# ---------------------------------------------------------------- MAP

def measure(retrieval, topk, seed, log):
    """`{ranking: (metrics.Quality at topk, seconds)}` of AQD, SQD and feats, and of a random ranking."""
    r = retrieval
    reconstructed = quantizer.reconstruct(r.qry_codes, r.codebooks)
    scores = {
        "AQD": lambda q: quantizer.quantized_scores(r.queries[q], r.db_codes, r.codebooks),
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
