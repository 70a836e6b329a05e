"""Validate a checkpoint: `python validation.py DATASET CHECKPOINT GPU [options]`.

Options first; then both splits are embedded, encoded and ranked, and MAP is measured (section 8 of the method).
Letters: N images, D = 300, M codebooks of K = 256 codewords.
"""
import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from dataset import find_dataset, load_retrieval, read_image_list, read_label_names, read_tag_embeddings
from models.checkpoint import CROPS as ALEXNET_CROPS
from models.checkpoint import LAST, check_trained_with, checkpoint_encoder, read_checkpoint
from models.encoder import embed
from models.features import features_file, photo_features, read_features
from quantization import quantizer
from quantization.neighbourhoods import averages
from retrieval import metrics
from retrieval.retrieval_file import SPLITS, Retrieval, read_retrieval, sources, write_retrieval
from storage.files import write_json
from storage.log import open_log, provenance
from util import CROPS, UserError, add_shared_options, counting, gpu_number, number, run_program, stream

PRECISION_AT = (1, 10, 100, 1000)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Encode database and queries with a checkpoint and report MAP; writes "
                    "<experiment>_retrieval.h5 and <experiment>_metrics.json next to the checkpoint.")
    parser.add_argument("dataset", metavar="DATASET", help="flickr, nuswide, or the name of a folder in data/")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path,
                        help="an .npy file of train.py or of the release; its codebooks determine the bits")
    parser.add_argument("gpu", metavar="GPU", type=gpu_number, help="number of the GPU; -1 or cpu for the CPU")
    parser.add_argument("--crops", type=int, choices=CROPS,
                        help="of AlexNet, crops an image: ten, the five plain ones, the centre and its mirror image, "
                             "or the centre (default 10)")
    parser.add_argument("--features", type=Path, metavar="FILE.h5",
                        help="features of database and query that a checkpoint of train.py --features was trained on")
    parser.add_argument("--topk", type=number(int, 1), default=5000, metavar="K",
                        help="results of a query that count in MAP@K; at most the size of the database (default 5000)")
    parser.add_argument("--skip-bad", action="store_true",
                        help="leave out images that cannot be read, with their rows, and count them")
    parser.add_argument("--figures", action="store_true",
                        help="draw curves, rankings, a t-SNE map, codeword usage and the training into "
                             "<experiment>_figures/ next to the checkpoint (needs matplotlib)")
    add_shared_options(parser)
    return parser.parse_args()


def main():
    options = parse_arguments()
    if options.figures:
        from retrieval import figures  # first, so that a missing matplotlib is reported at once
    folder = find_dataset(options.dataset, options.root)
    checkpoint, experiment = read_checkpoint(options.checkpoint), options.checkpoint.stem
    crops = (options.crops or ALEXNET_CROPS) if checkpoint.is_alexnet else 1
    splits = load_splits(folder, skip_bad=True) if options.skip_bad else None
    made_from, labels = sources(folder, options.checkpoint, crops, options.seed, splits,
                                features=options.features)
    log = open_log(options.root / "logs" / f"{experiment}.log")

    path = options.checkpoint.with_name(f"{experiment}_retrieval.h5")
    retrieval, same_labels, why = read_retrieval(path, made_from, labels)
    if same_labels:
        log.info(f"embeddings and codes are those of {path}: {why}.")
    else:
        splits = splits or load_splits(folder, skip_bad=False, check_images=options.features is None)
        if retrieval is not None:
            log.info(f"embeddings and codes are those of {path}, with new labels: {why}.")
            retrieval = with_labels(retrieval, splits)
        else:
            log.info(f"embedding and encoding: {why}.")
            if options.features is not None:
                embed_split = by_features(options.features, folder, checkpoint)
            elif checkpoint.is_alexnet:
                import net_val  # loads TensorFlow, which takes seconds
                embed_split = net_val.embed_split(checkpoint.weights, crops, options.gpu, checkpoint.fitted, log)
            else:
                embed_split = by_encoder(options.checkpoint, options.gpu, folder, checkpoint, options.root, log)
            factor = checkpoint.factor(trained_tags(folder, options.checkpoint))
            retrieval = embed_and_encode(splits, embed_split, checkpoint, factor, options.seed, log)
        write_retrieval(path, retrieval, {**made_from, **labels})

    topk = min(options.topk, len(retrieval.db_label))
    if topk < options.topk:
        log.info(f"the database holds {topk} images, so MAP counts the first {topk} results, not {options.topk}.")
    results = measure(retrieval, topk, options.seed, log)
    report(options.checkpoint.with_name(f"{experiment}_metrics.json"), retrieval, results, topk,
           {"dataset": options.dataset, "sources": {**made_from, **labels}}, log)
    if options.figures:
        drawn = options.checkpoint.with_name(f"{experiment}_figures")
        missing = figures.write_all(drawn, retrieval, results, read_label_names(folder, retrieval.db_label.shape[1]),
                                    image_paths(folder, splits), options.root / "logs" / f"{experiment}.log",
                                    options.seed)
        for line in (*missing, f"saved the figures in {drawn}."):
            log.info(line)


# ---------------------------------------------------------------- embeddings and codes

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


def image_paths(dataset, splits):
    """`{split: image files}` in the order of the retrieval file, whose rows are all unless bad ones were left out.

    `splits`: from `load_splits` where bad images may have been left out, else None.
    """
    if splits:
        return {split: content.paths for split, content in splits.items()}
    return {split: [dataset.images / name for name in read_image_list(dataset.split_files(split)[0])]
            for split in SPLITS}


def by_features(path, dataset, checkpoint):
    """A function of a split and its RetrievalSet that returns embeddings, float32 (N, D), from a file of features."""
    def embed_split(split, content):
        image_list, last_layer = dataset.split_files(split)[0], checkpoint.weights[LAST]
        features = read_features(path, split, image_list, width=len(last_layer[0]))[content.rows]
        return embed(features[:, None], last_layer, checkpoint.fitted)
    return embed_split


def by_encoder(path, gpu, dataset, checkpoint, root, log):
    """Such a function by the encoder next to the checkpoint in `path`, whose features are kept. Raises UserError."""
    encoder = checkpoint_encoder(path, checkpoint, gpu)

    def embed_split(split, content):
        features = photo_features(dataset, split, content.rows, encoder,
                                  features_file(root, dataset.name, encoder.sha256), log.info)
        return embed(features[:, None], checkpoint.weights[LAST], checkpoint.fitted)
    return embed_split


def trained_tags(dataset, checkpoint):
    """W, float32 (T, D), with which a checkpoint was trained. Raises UserError for those of another data set."""
    dataset.check_tags()
    check_trained_with(checkpoint, dataset.tag_embeddings)
    return read_tag_embeddings(dataset.tag_embeddings)


def embed_and_encode(splits, embed_split, checkpoint, factor, seed, log):
    """The Retrieval of both splits.

    Args:
        splits: from `load_splits`.
        embed_split: function of a split and its RetrievalSet that returns embeddings, float32 (N, D).
        factor: S of the distances in which codes are found.
    """
    arrays = {"codebooks": checkpoint.codebooks}
    for split, prefix in SPLITS.items():
        began = time.perf_counter()
        content = splits[split]
        features = embed_split(split, content)
        log.info(f"embedded {len(features)} {split} images ({content.skipped} bad ones were left out), "
                 f"duration: {time.perf_counter() - began:.2f} sec.")
        began = time.perf_counter()
        codes = checkpoint.encode(features, factor, stream(seed, f"encode {split}"))
        log.info(f"encoded {len(codes)} {split} images, duration: {time.perf_counter() - began:.2f} sec.")
        arrays |= {f"{prefix}_features": features, f"{prefix}_codes": codes, f"{prefix}_label": content.labels}
    if checkpoint.neighbours is not None:
        arrays["qry_averages"] = averages(arrays["qry_features"], checkpoint.neighbours)
    return Retrieval(**arrays)


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


def report(path, retrieval, results, topk, record, log):
    """Print the table of `measure`'s results, and write them with `record` into the JSON file `path`."""
    queries, images, bits = len(retrieval.qry_label), len(retrieval.db_label), 8 * len(retrieval.codebooks)
    log.info(f"{queries} queries, {images} database images, {bits} bits an image.")
    numbers = as_numbers(results, topk)
    if numbers["AQD"]["map"] is None:
        log.warning(f"no query shares a label with any of its first {topk} results, so there is no MAP.")
    write_json(path, {"bits": bits, "topk": topk, "queries": queries, "database_images": images, **numbers, **record,
                      **provenance({})})
    print_table(numbers, topk)
    log.info(f"saved {path}.")


def as_numbers(results, topk):
    """The results of `measure` for the metrics file: `{ranking: {what: number}}`, None where it is NaN."""
    def defined(value):
        return None if np.isnan(value) else float(value)
    return {name: {
        "map": defined(quality.map), "map_min_rk": defined(quality.map_min_rk), "queries_left_out": quality.left_out,
        "precision": {str(n): defined(quality.precision[n - 1]) for n in PRECISION_AT if n <= topk},
        "seconds": round(seconds, 3)} for name, (quality, seconds) in results.items()}


def print_table(results, topk):
    """The results as a table for people; the random row is what the others are to be compared with."""
    columns = list(results["AQD"]["precision"])
    print(f"\n{'':8}{'MAP@' + str(topk):>10}{'min(R,K)':>10}" + "".join(f"{'P@' + n:>9}" for n in columns))

    def cell(value, width):
        return f"{'none' if value is None else f'{value:.4f}':>{width}}"
    for name, row in results.items():
        print(f"{name:8}{cell(row['map'], 10)}{cell(row['map_min_rk'], 10)}"
              + "".join(cell(row["precision"][n], 9) for n in columns))
    print()


if __name__ == "__main__":
    run_program(main)
