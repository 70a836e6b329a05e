"""Building an index of photos from a trained checkpoint, and bringing one up to date. It loads TensorFlow."""
import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

import dataset
from backbones import LAST, of_weights
from features import embed as embed_features
from features import kept_features, photo_key
from image_files import image_faults, list_faults
from retrieval import index, photo_files, vocabulary
from retrieval.checkpoints import check_checkpoint, training_dataset
from retrieval.photo_encoder import encoder_of
from retrieval.sources import photo_source
from storage.checkpoint import default_crops, read_checkpoint, read_record, trained_on_features
from storage.retrieval_file import read_retrieval, sources
from storage.run_log import provenance
from storage.safe_files import fingerprint
from util import DIMENSIONS, PRECISIONS, ROOT, UserError, note, stream

BLOCK = 4096  # images that are embedded before they are encoded, so that no more embeddings are held


def build(checkpoint, images, out=None, root=ROOT, trained_on=None, crops=None, inverted_lists=None, skip_bad=False,
          seed=0, gpu=None, precision=PRECISIONS[0], prune=False, keep_embeddings=False, vectors=None):
    """Make the index of a data set's database or of a folder of photos, or bring the one that is there up to date.

    Photos that are new or whose content is changed are embedded; the others keep their codes.

    Args:
        images: name of a data set, a folder of photos, or what encode.py wrote.
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
    source = photo_source(str(images), root)
    trained = read_checkpoint(checkpoint)
    crops = crops or default_crops(checkpoint)
    tagged = training_dataset(checkpoint, source, root, trained_on)
    with index.writing(out) as save:  # no other process may write the index after this one has read it
        old = index.load(out) if index.has_index(out) else None
        if old:
            before = old.content
            check_settings(out, before, checkpoint, source, crops, seed, precision)
        else:
            before = new_content(checkpoint, trained.codebooks, source, tagged, root, crops, seed, precision)
            if keep_embeddings:
                before.embeddings = np.empty((0, trained.codebooks.shape[2]), np.float16)
        check_embeddings(out, before, source, keep_embeddings)
        found = find_vocabulary(before, vectors, None if old else tagged, root)
        changes = photo_files.compare(source, before, out, prune)
        rows = usable_rows(source, changes, skip_bad)
        count = len(changes.kept) + len(rows)
        lists = index.default_inverted_lists(count) if inverted_lists is None else inverted_lists
        if old and not found and is_up_to_date(before, changes, rows, lists):
            made = old
        else:
            if found:
                before = replace(before, vocabulary=found[0], facts={**before.facts, "vectors": found[1]})
            made = save(changed_content(before, source, changes, rows, checkpoint, trained, gpu), lists)
    print(f"{out}: {len(made):,} photos{told_changes(source, before, changes, rows)}, "
          f"{8 * len(trained.codebooks)} bits each" + (f", in {lists} lists" if lists else ""))
    return made


def is_up_to_date(before, changes, rows, lists):
    """Whether an index need not be written again."""
    return (len(changes.kept) == len(before.images) and not len(rows) and lists == before.facts["lists"]
            and (not changes.fingerprints.any() if before.fingerprints is None
                 else np.array_equal(changes.fingerprints, before.fingerprints)))


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


def told_changes(source, before, changes, rows):
    """How many photos of an index are new, changed and dropped, in words."""
    known = set(before.images)
    new = sum(source.names[row] not in known for row in rows)
    changed = len(rows) - new
    dropped = len(before.images) - len(changes.kept) - changed
    return (f", {new:,} of them new" + (f", {changed:,} changed" if changed else "")
            + (f", {dropped:,} dropped" if dropped else ""))


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


def check_settings(out, content, checkpoint, source, crops, seed, precision):
    """Raise UserError if the source's photos, encoded in this way, do not belong into the index in `out`."""
    check_checkpoint(out, content.facts, checkpoint)
    for what, there, here in (("crops", content.facts["crops"], crops),
                              ("seed", content.facts["seed"], seed),
                              ("precision", precision_of(content.facts), precision),
                              ("the photos of", content.facts["images"], os.path.realpath(source.folder)),
                              ("labels", _columns(content.labels), _columns(source.labels))):
        if there != here:
            raise UserError(f"{out} is an index with {what} {there}, not {here}: choose another --out or --name")


def check_embeddings(out, content, source, keep_embeddings):
    """Raise UserError if the embeddings that an index is to keep cannot be had."""
    if keep_embeddings and content.embeddings is None:
        raise UserError(f"{out} is an index without embeddings: for --keep-embeddings choose another --out or --name")
    if content.embeddings is not None and source.encoded:
        raise UserError(f"{source.encoded.folder} holds codes alone, and {out} is to keep embeddings: give the folder "
                        f"of the photos, {source.folder}")


def find_vocabulary(content, vectors, tagged, root):
    """More words for an index and the facts of their file, as of `vocabulary.make_table`; None: it keeps what it has.

    Args:
        vectors: the file, or None for the one of the record of the data set `tagged`, if that is not None.
    Raises UserError if `vectors` are not those of the tags.
    """
    if vectors is not None:
        there = content.facts.get("vectors")
        if vectors.is_file() and there == {"path": str(vectors.resolve()), "bytes": vectors.stat().st_size}:
            return None
        return vocabulary.vocabulary_of(vectors, content.tag_names, content.tag_embeddings)
    return tagged and vocabulary.recorded_vocabulary(tagged, root, content.tag_names, content.tag_embeddings)


def precision_of(facts):
    """The precision of an index's embeddings by its facts."""
    return facts.get("precision", PRECISIONS[0])


def _columns(labels):
    return 0 if labels is None else labels.shape[1]


# ---------------------------------------------------------------- photos that are new or changed

def usable_rows(source, changes, skip_bad):
    """Rows of the source's photos that are to be encoded, int64; bad ones are refused, or left out and told."""
    rows = changes.to_encode
    if source.encoded:  # without the bad ones
        return rows
    names = [source.names[row] for row in rows]
    if source.dataset:
        faults = dataset.faults_in(source.folder, names)
    else:  # links in a person's own folder are that person's own
        faults = image_faults([source.folder / name for name in names])
    if not faults:
        return rows
    listed = list_faults(
        faults, lambda i: f"{source.folder / names[i]}" + (f" (row {rows[i] + 1})" if source.dataset else ""))
    told = f"{len(faults)} of {len(rows)} photos cannot be used"
    if not skip_bad:
        raise UserError(f"{told} (--skip-bad leaves them out): {listed}")
    print(f"left out: {told}: {listed}", file=sys.stderr)
    if len(faults) == len(rows) and not len(changes.kept):
        raise UserError(f"{source.folder}: none of the {len(rows)} photos can be used")
    return np.delete(rows, list(faults))


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
