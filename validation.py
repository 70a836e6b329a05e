"""Validate a checkpoint: `python validation.py DATASET CHECKPOINT GPU [options]`."""
import argparse
from pathlib import Path

from storage.run_log import open_log, provenance
from storage.safe_files import write_json
from util import add_precision, add_shared_options, gpu_numbers, number, run_program


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Encode database and queries with a checkpoint and report MAP; writes "
                    "<experiment>_retrieval.h5 and <experiment>_metrics.json beside the checkpoint.")
    parser.add_argument("dataset", metavar="DATASET", help="flickr, nuswide, or the name of a folder in data/")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path,
                        help="an .npy file of train.py or of the release; its codebooks tell the bits")
    parser.add_argument("gpu", metavar="GPU", type=gpu_numbers,
                        help="number of the GPU, several as 0,1; -1 or cpu for the CPU")
    parser.add_argument("--crops", type=int, choices=(10, 5, 1), default=10,
                        help="crops an image: ten, the five plain ones, or the plain centre (default 10)")
    parser.add_argument("--topk", type=number(int, 1), default=5000, metavar="K",
                        help="results a query that count in MAP@K; cut to the size of the database (default 5000)")
    add_precision(parser)
    parser.add_argument("--skip-bad", action="store_true",
                        help="leave out images that cannot be read, with their rows, and count them")
    parser.add_argument("--figures", action="store_true",
                        help="draw curves, rankings, a t-SNE map, codeword usage and the training into "
                             "<experiment>_figures/ beside the checkpoint (needs matplotlib)")
    add_shared_options(parser)
    return parser.parse_args()


def main():
    options = parse_arguments()
    if options.figures:
        import figures  # so that a missing matplotlib is told at once
    import dataset
    import net_val

    folder = dataset.find_dataset(options.dataset, options.root)
    splits = net_val.load_splits(folder, skip_bad=True) if options.skip_bad else None
    attributes = net_val.sources(folder, options.checkpoint, options.crops, options.seed, splits, options.precision)
    experiment = options.checkpoint.stem
    log = open_log(options.root / "logs" / f"{experiment}.log")
    retrieval = embed_and_encode(options, folder, splits, attributes, log)
    results = report(options, retrieval, {**attributes[0], **attributes[1]}, experiment, log)
    if options.figures:
        figures.write_all(options.checkpoint.with_name(f"{experiment}_figures"), retrieval, results,
                          dataset.read_label_names(folder, retrieval.db_label.shape[1]), image_paths(folder, splits),
                          options.root / "logs" / f"{experiment}.log", options.seed, log)


def embed_and_encode(options, folder, splits, attributes, log):
    """The content of the retrieval file, computed as far as the one that is there was made from other files.

    `splits`: as of `net_val.load_splits`, or None to load them when they are needed.
    """
    import net_val
    from session import device_name
    path = options.checkpoint.with_name(f"{options.checkpoint.stem}_retrieval.h5")
    embeddings, labels = attributes
    retrieval, same_labels, why = net_val.read_retrieval(path, embeddings, labels)
    if same_labels:
        log.info(f"embeddings and codes are those of {path}: {why}.")
        return retrieval
    splits = splits or net_val.load_splits(folder, skip_bad=False)
    if retrieval is None:
        log.info(f"embedding and encoding: {why}.")
        device = device_name(options.gpu, log.warning, options.precision)
        retrieval = net_val.compute_retrieval(folder, options.checkpoint, splits, options.crops, options.seed,
                                              device, options.precision, log)
    else:
        log.info(f"embeddings and codes are those of {path}, with new labels: {why}.")
        retrieval = net_val.with_labels(retrieval, splits)
    net_val.write_retrieval(path, retrieval, {**embeddings, **labels})
    return retrieval


def image_paths(folder, splits):
    """`{split: image files}` in the order of the retrieval file, whose rows are all unless bad ones were left out.

    `splits`: as of `net_val.load_splits` where bad images may have been left out, else None.
    """
    import dataset
    import net_val
    if splits:
        return {split: content.paths for split, content in splits.items()}
    return {split: [folder.images / name for name in dataset.read_image_list(folder.split_files(split)[0])]
            for split in net_val.SPLITS}


def report(options, retrieval, attributes, experiment, log):
    """Measure, print the table, and write the metrics file. The results as of `net_val.measure`."""
    import net_val
    queries, images = len(retrieval.qry_label), len(retrieval.db_label)
    topk = min(options.topk, images)
    if topk < options.topk:
        log.info(f"the database holds {images} images, so MAP counts the first {topk} results, not {options.topk}.")
    log.info(f"{queries} queries, {images} database images, {8 * len(retrieval.codebooks)} bits an image.")
    results = net_val.measure(retrieval, topk, options.seed, log)
    numbers = net_val.as_numbers(results, topk)
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


if __name__ == "__main__":
    run_program(main)
