"""Building an index of photos from a trained checkpoint, and bringing one up to date. It loads TensorFlow."""
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from models.backbones import LAST, of_weights

import dataset
from models.checkpoint import default_crops, read_checkpoint, read_record, trained_on_features
from models.features import embed as embed_features
from models.features import kept_features, kept_model_features, photo_key
from retrieval import index, photo_files
from retrieval.checkpoints import training_dataset
from retrieval.photo_encoder import encoder_of
from retrieval.photos import Source, photo_source
from retrieval.retrieval_file import read_retrieval, sources
from retrieval.up_to_date import (
    check_embeddings,
    check_settings,
    is_up_to_date,
    knows_vectors,
    precision_of,
    summary,
    usable_rows,
)
from storage.files import fingerprint
from storage.log import provenance
from tags import word_vectors
from util import DIMENSIONS, PRECISIONS, ROOT, UserError, note, stream

BLOCK = 4096  # images that are embedded before they are encoded, so that no more embeddings are held


def build(checkpoint, images, out=None, root=ROOT, trained_on=None, crops=None, inverted_lists=None, skip_bad=False,
          seed=0, gpu=None, precision=PRECISIONS[0], prune=False, keep_embeddings=False, vectors=None):
    """Make the index of a data set's database or of a folder of photos, or bring the one that is there up to date.

    Photos that are new or whose content is changed are embedded; the others keep their codes.

    Args:
        images: name of a data set, a folder of photos, or what encode.py wrote; or a Source.
        gpu: number of a GPU, a list of them, or None for the CPU.
        inverted_lists (int): how many, 0 for none, or None to choose by the number of photos.
        prune: photos that are gone leave the index.
        keep_embeddings: a new index keeps the photos' embeddings; one that is there goes on as it began.
        vectors: file of the word vectors that the tags were made of, or None, and a new index takes the one that the
            data set's record names, if it is there.
        others: as on the command line.
    Returns the `index.Index`.
    """
    checkpoint, root = Path(checkpoint), Path(root)
    out = Path(out) if out else root / "indexes" / checkpoint.stem
    source = images if isinstance(images, Source) else photo_source(str(images), root)
    trained = read_checkpoint(checkpoint)
    tagged = training_dataset(checkpoint, source, root, trained_on)
    with index.writing(out) as save:  # no other process may write the index after this one has read it
        old = index.load(out) if index.has_index(out) else None
        if old:
            before = old.content
            check_settings(out, before, checkpoint, source, crops, seed, precision)
        else:
            before = new_content(checkpoint, trained.codebooks, source, tagged, root,
                                 crops or default_crops(checkpoint), seed, precision)
            if keep_embeddings:
                before.embeddings = np.empty((0, trained.codebooks.shape[2]), np.float16)
        check_embeddings(out, before, source, keep_embeddings)
        found = find_vocabulary(before, vectors, None if old else tagged, root)
        changes = photo_files.compare(source, before, out, prune)
        photo_files.tell_gone(changes, source.folder, out, prune)
        rows = usable_rows(source, changes, skip_bad)
        count = len(changes.kept) + len(rows)
        lists = index.default_inverted_lists(count) if inverted_lists is None else inverted_lists
        if old and not found and is_up_to_date(before, changes, rows, lists):
            made = old
        else:
            if found:
                before = replace(before, vocabulary=found[0], facts={**before.facts, "vectors": found[1]})
            made = save(changed_content(before, source, changes, rows, checkpoint, trained, gpu), lists)
    print(summary(out, source, before, changes, rows, lists))
    return made


def changed_content(before, source, changes, rows, checkpoint, trained, gpu):
    """The content of an index without the photos that are changed or gone, and with the source's photos `rows`."""
    kept, paths = changes.kept, [source.folder / source.names[row] for row in rows]
    if source.encoded:  # opens no photo
        fingerprints = np.zeros((len(rows), photo_files.NUMBERS), np.int64)
    else:  # before they are embedded: what changes meanwhile is found the next time
        fingerprints = photo_files.take_fingerprints(paths)
    codes, embeddings = (stored_codes(checkpoint, source, rows, before)
                         or encode_photos([source.names[row] for row in rows], trained, before,
                                          embedder(source, checkpoint, trained, before.facts, gpu)))
    fingerprints = np.concatenate([changes.fingerprints, fingerprints])
    return replace(before, codes=np.concatenate([before.codes[kept], codes]),
                   images=[*(before.images[row] for row in kept), *(source.names[row] for row in rows)],
                   labels=None if before.labels is None else np.concatenate([before.labels[kept],
                                                                             source.labels[rows]]),
                   fingerprints=fingerprints if fingerprints.any() else None,
                   embeddings=None if before.embeddings is None else np.concatenate([before.embeddings[kept],
                                                                                     embeddings]))


# ---------------------------------------------------------------- the content before

def new_content(checkpoint, codebooks, source, tagged, root, crops, seed, precision):
    """The content of an index without photos. `tagged`: the data set whose tags the checkpoint learned, or None."""
    if tagged:
        names = dataset.read_tag_names(tagged.tag_list)
        groups, tag_embeddings = dataset.read_tags(tagged, len(names))
    else:
        names, groups, tag_embeddings = [], [], np.empty((0, DIMENSIONS), np.float32)
    facts = {"experiment": checkpoint.stem, "checkpoint": str(checkpoint.resolve()),
             "checkpoint_sha256": fingerprint(checkpoint), "crops": crops, "seed": seed, "precision": precision,
             "images": os.path.realpath(source.folder), "dataset": source.dataset and source.dataset.name,
             "root": str(root.resolve()), "trained_on": tagged and tagged.name,
             "no_words": read_record(checkpoint).get("no_words"), "versions": provenance({})["versions"]}
    return index.Content(
        codes=np.empty((0, len(codebooks)), np.uint8), codebooks=codebooks, images=[],
        tag_names=[[names[column] for column in group] for group in groups], tag_embeddings=tag_embeddings,
        labels=None if source.labels is None else source.labels[:0], label_names=list(source.label_names), facts=facts)


def find_vocabulary(content, vectors, tagged, root):
    """The table of more words and the facts of their file, see tags/word_vectors.py; None: the index keeps its own.

    Args:
        vectors: the file, or None for the one of the record of the data set `tagged`, if that is not None.
    Raises UserError if `vectors` are not those of the tags.
    """
    if vectors is not None:
        if knows_vectors(content.facts, vectors):
            return None
        return word_vectors.vocabulary_of(vectors, content.tag_names, content.tag_embeddings)
    return tagged and word_vectors.recorded_vocabulary(tagged, root, content.tag_names, content.tag_embeddings)


# ---------------------------------------------------------------- codes

def stored_codes(checkpoint, source, rows, before):
    """The codes of the source's photos `rows`, uint8 (n, M), and their embeddings to keep, float16 (n, D), or None.

    They are those of encode.py, which keeps no embeddings; or, if the photos are the whole of a new index, those that
    validation.py left beside the checkpoint. None where there are neither.
    """
    facts = before.facts
    if source.encoded:
        source.encoded.check(checkpoint, facts["crops"], precision_of(facts))
        return source.encoded.codes[rows], None
    path = checkpoint.with_name(f"{checkpoint.stem}_retrieval.h5")
    if source.dataset is None or len(before.images) or len(rows) < len(source.names) or not path.is_file():
        return None
    try:
        expected, _ = sources(source.dataset, checkpoint, facts["crops"], facts["seed"],
                                      precision=precision_of(facts))
    except UserError:  # it was made from files that are gone
        return None
    retrieval, _, _ = read_retrieval(path, expected, {})
    if retrieval is None:
        return None
    print(f"the codes are those of {path}")
    return retrieval.db_codes, index.normalise(retrieval.db_features).astype(np.float16)


def encode_photos(names, trained, content, embed):
    """Codes of N photos, uint8 (N, M), embedded and encoded in blocks, and the embeddings to keep, float16 (N, D).

    Args:
        trained: a storage.checkpoint.Checkpoint.
        embed: of `embedder`.
    """
    factor = trained.factor(content.tag_embeddings)
    codes, kept = [content.codes[:0]], [np.empty((0, content.codebooks.shape[2]), np.float16)]
    for start in range(0, len(names), BLOCK):
        block = names[start:start + BLOCK]
        embeddings = embed(block, f"embedding photos {start + 1} to {start + len(block)} of {len(names)}")
        rng = stream(content.facts["seed"], "index", len(content.codes) + start)
        codes.append(trained.encode(embeddings, factor, rng))
        if content.embeddings is not None:
            kept.append(index.normalise(embeddings).astype(np.float16))
    return np.concatenate(codes), np.concatenate(kept)


def embedder(source, checkpoint, trained, facts, gpu):
    """A function of n names of the source's photos, and of what to call this work, that gives float32 (n, D).

    A photo whose features were computed for the training is embedded from these; the network sees the others.

    Args:
        trained: a storage.checkpoint.Checkpoint.
        facts: of the index.
    """
    precision, options = precision_of(facts), read_record(checkpoint).get("options", {})
    known = {}
    if trained_on_features(checkpoint) and facts["crops"] == options["views"]:
        known = kept_features(options["dataset"], trained.weights, of_weights(trained.weights), options["views"],
                              precision, Path(facts["root"]), note)
    elif trained.model is not None and (facts["crops"], precision) == (1, PRECISIONS[0]):
        known = kept_model_features(Path(options["features"]), trained.model, len(trained.weights[LAST][0]))

    @cache
    def network():
        return encoder_of(trained, facts["crops"], gpu, precision)

    def embed(names, what):
        kept = [known.get(photo_key(source.folder, name).tobytes()) if known else None for name in names]
        seen = np.array([features is not None for features in kept])  # (n,)
        embeddings = np.empty((len(names), DIMENSIONS), np.float32)
        if seen.any():
            print(f"{seen.sum():,} of {len(names):,} photos are embedded from the features that training computed")
            features = np.stack([features for features in kept if features is not None])  # (n', V, F)
            embeddings[seen] = embed_features(features, trained.weights[LAST], trained.fitted)
        if not seen.all():
            embeddings[~seen] = network().embed(
                [source.folder / name for name, is_seen in zip(names, seen, strict=True) if not is_seen], what)
        return embeddings

    return embed
