"""What a GPQ checkpoint is worth: mAP of its rankings, the searchable index of the database, and figures."""
import os
import time

import numpy as np

from gpq import data, graphs, retrieval
from models.session import device_name
from retrieval import index, metrics
from storage.files import fingerprint, write_json
from util import UserError, counting, stream

SHOWN_RESULTS = 20


def run(options, config, figures):
    """Encode, measure, index, and draw.

    Args:
        options: those of gpq/demo.py.
        config: the `gpq.config.Config` in them.
        figures: the module figures.py, or None to draw nothing.
    """
    checkpoint = graphs.find_checkpoint(options.checkpoint)
    split = data.load_split(config.data, config.labelled_per_class, config.images, options.seed)
    shown = shown_query(options, len(split.query))
    encoder = graphs.Encoder(checkpoint, config, len(split.class_names),
                             device_name(options.gpu, lambda line: print(f"warning: {line}")))
    queries = encoder.features(split.query.images, "encoding queries")
    database = encoder.features(split.database.images, "encoding the database")
    results = measure(queries, database, split, encoder, config, options)
    engine = build_index(checkpoint, database, split, encoder, config, options.seed)
    used = codewords_used(engine.content.codes)
    print_table(results, used, split, config)
    write_json(checkpoint.with_name("metrics.json"), {
        "checkpoint": str(checkpoint), "bits": config.bits, "queries": len(split.query),
        "database_images": len(split.database), "map": results, "codewords_used": used})
    if figures:
        draw(figures, checkpoint.parent, engine, queries, database, shown, split, config, options.seed)
    print(f"saved the metrics, the index{' and the figures' if figures else ''} in {checkpoint.parent}.")


def shown_query(options, queries):
    """The row of the query to draw. Raises UserError if there is no such row."""
    if options.query is None:
        return int(stream(options.seed, "shown query").integers(queries))
    if options.query >= queries:
        raise UserError(f"--query: expected a row from 0 to {queries - 1}, found {options.query}")
    return options.query


# ---------------------------------------------------------------- mAP

def scorers(queries, database, encoder, config, options):
    """`{ranking: function of a slice of queries that gives their scores, float32 (queries, N)}`."""
    def by_codes(features, rows, table, codewords):
        codes = retrieval.hard_codes(rows, codewords, config.n_book)
        return lambda chosen: -retrieval.distances(features[chosen], codes, table)

    # Z' of training ranks better than intra(Z): 0.236 and 0.222 on a fifth of CIFAR-10 after 120 small steps
    q, x = (retrieval.intra_normalize(features, config.n_book) for features in (queries, database))
    soft, plain = encoder.soft_codebooks(config.alpha), retrieval.intra_normalize(encoder.codebooks, config.n_book)
    found = {"codes, Z'": by_codes(q, x, soft, soft), "codes, intra(Z)": by_codes(q, x, plain, plain)}
    if options.release_table:
        found["release's table"] = by_codes(queries, database, encoder.codebooks, plain)
    return {**found, "features": lambda chosen: q[chosen] @ x.T,
            "random": lambda chosen: metrics.random_scores(range(len(q))[chosen], len(x), options.seed)}


def measure(queries, database, split, encoder, config, options):
    """`{ranking: mAP}`, the default one first, the random one last.

    Args:
        queries, database: raw features, float32 (Q, M·D) and (N, M·D).
    """
    results = {}
    for name, score in scorers(queries, database, encoder, config, options).items():
        began = time.perf_counter()
        with counting(score, len(queries), f"ranking by {name}") as counted:
            results[name] = retrieval.mean_average_precision(
                counted, split.query.labels, split.database.labels, len(split.class_names))
        print(f"{name}: mAP {results[name]:.4f}, duration: {time.perf_counter() - began:.2f} sec.")
    return results


def codewords_used(codes):
    """How many codewords of each codebook some image uses, M ints. codes: uint8 (N, M)."""
    return [len(np.unique(column)) for column in codes.T]


def print_table(results, used, split, config):
    """The results as a table for people; the random row shows what the others are worth."""
    print(f"\n{len(split.query)} queries, {len(split.database)} database images, {config.bits} bits\n{'':16}{'mAP':>8}")
    for name, value in results.items():
        print(f"{name:16}{value:8.4f}")
    print(f"codewords of each codebook in use, of {config.codewords}: {' '.join(map(str, used))}\n")


# ---------------------------------------------------------------- search and figures

def build_index(checkpoint, database, split, encoder, config, seed):
    """The searchable index of the database, coded with Z', in index/ beside the checkpoint.

    Queries are intra-normalised features, float32 (Q, M·D); a score is Σ_m q_m·Z'_m[code_m], M less the distance.
    """
    codebooks = encoder.soft_codebooks(config.alpha)
    codes = retrieval.hard_codes(retrieval.intra_normalize(database, config.n_book), codebooks, config.n_book)
    content = index.Content(
        codes=codes, codebooks=retrieval.by_segment(codebooks, config.n_book), images=split.database.names,
        tag_names=[], tag_embeddings=np.empty((0, config.length), np.float32),
        labels=retrieval.one_hot(split.database.labels, len(split.class_names)), label_names=split.class_names,
        facts={"made_by": "gpq.demo", "checkpoint": str(checkpoint), "images": os.path.realpath(config.data),
               "seed": seed,
               "checkpoint_sha256": fingerprint(checkpoint.with_name(f"{checkpoint.name}.data-00000-of-00001"))})
    return index.save(checkpoint.with_name("index"), content)


def draw(figures, folder, engine, queries, database, shown, split, config, seed):
    """ranking.png, the query in row `shown` and its first results, and tsne.png, a map of the database by class."""
    query, images, names = split.query, split.database, split.class_names
    scores, rows = engine.search(retrieval.intra_normalize(queries[shown:shown + 1], config.n_book), SHOWN_RESULTS)
    label = query.labels[shown]
    results = [(images.images[row], f"{names[images.labels[row]]} {score:.2f}", bool(images.labels[row] == label))
               for row, score in zip(rows[0], scores[0], strict=True)]
    figures.ranking_figure(folder / "ranking.png", [(query.images[shown], names[label], results)])
    figures.tsne_figure(folder / "tsne.png", retrieval.intra_normalize(database, config.n_book),
                        engine.content.labels, names, seed)
