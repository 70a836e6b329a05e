"""Building an index of photos from a trained checkpoint, and bringing an existing one up to date.

Letters: N photos, M codebooks of K = 256 codewords, D = 300, F features below the last layer.
"""
import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

import dataset
from models.checkpoint import LAST, check_trained_with, embedder_of, read_checkpoint, read_checkpoint_record
from models.encoder import embed, encoder_next_to, read_encoder_record
from models.features import features_file, kept_features
from retrieval import index, photos
from retrieval.retrieval_file import read_retrieval, sources
from retrieval.searcher import check_checkpoint, named_folder
from storage.fingerprints import NUMBERS, content_digests, take_fingerprints
from storage.images import image_faults, list_faults
from storage.log import provenance
from tags import word_vectors
from util import DIMENSIONS, ROOT, UserError, note, stream, unit_length

BLOCK = 4096  # photos that are embedded before they are encoded, so that no more embeddings are in memory


def build(checkpoint, images, out=None, *, root=ROOT, trained_on=None, crops=None, inverted_lists=None, skip_bad=False,
          seed=0, gpu=None, prune=False, keep_embeddings=False, vectors=None):
    """Make the index of a data set's database or of a folder of photos, or bring the existing one up to date.

    Photos that are new or whose content changed are embedded; the others keep their codes. A checkpoint with AlexNet
    needs its encoder next to it, see `models.make_encoder`.

    Args:
        images: name of a data set, a folder of photos, or what `search.py encode` wrote.
        out: folder of the index; by default it has the name of the checkpoint.
        inverted_lists (int): how many, 0 for none, or None to choose by the number of photos.
        prune: whether photos that are gone leave the index.
        keep_embeddings: whether a new index keeps the photos' embeddings; an existing one stays as it is.
        vectors: file of the word vectors that the tags were made from; by default a new index takes the one in the data
            set's record, if it still exists.
        others: those of the command line.
    Returns the `index.Index`. Raises UserError.
    """
    checkpoint, root = Path(checkpoint), Path(root)
    out = Path(out) if out else named_folder(checkpoint.stem, root)
    source = photos.photo_source(str(images), root)
    with index.writing(out) as save:  # from here on no other process may write the index
        old = index.load(out) if index.has_index(out) else None
        if old:
            before, trained, tagged = old.content, None, None
            check_settings(out, before, checkpoint, source, crops, seed)
        else:
            trained, tagged = read_checkpoint(checkpoint), training_dataset(checkpoint, source, root, trained_on)
            before = new_content(checkpoint, trained, source, tagged, root, crops or default_crops(checkpoint), seed)
            if keep_embeddings:
                before.embeddings = np.empty((0, DIMENSIONS), np.float16)
        check_embeddings(out, before, source, keep_embeddings)
        found = find_vocabulary(before, vectors, tagged, root)
        changes = photos.compare(source, before, out, prune)
        photos.note_gone(changes, source.folder, out, prune)
        rows = usable_rows(source, changes, skip_bad)
        count = len(changes.kept) + len(rows)
        lists = index.default_inverted_lists(count) if inverted_lists is None else inverted_lists
        if old and not found and is_up_to_date(before, changes, rows, lists):
            made = old
        else:
            if found:
                before = replace(before, vocabulary=found[0], facts={**before.facts, "vectors": found[1]})
            trained = trained or read_checkpoint(checkpoint, before.facts["checkpoint_sha256"])
            made = save(changed_content(before, source, changes, rows, checkpoint, trained, gpu), lists)
    print(summary(out, source, before, changes, rows, lists))
    return made


def is_up_to_date(before, changes, rows, lists):
    """Whether an index need not be written again."""
    same_files = (not changes.fingerprints.any() if before.fingerprints is None
                  else np.array_equal(changes.fingerprints, before.fingerprints))
    return len(changes.kept) == len(before.images) and not len(rows) and lists == before.facts["lists"] and same_files


def summary(out, source, before, changes, rows, lists):
    """What an index holds after the source's photos `rows` were encoded, and what changed, in words."""
    known = set(before.images)
    new = sum(source.names[row] not in known for row in rows)
    changed = len(rows) - new
    dropped = len(before.images) - len(changes.kept) - changed
    return (f"{out}: {len(changes.kept) + len(rows):,} photos, {new:,} of them new"
            + (f", {changed:,} changed" if changed else "") + (f", {dropped:,} dropped" if dropped else "")
            + f", {8 * len(before.codebooks)} bits each" + (f", in {lists} lists" if lists else ""))


# ---------------------------------------------------------------- the checkpoint

def default_crops(path):
    """How many crops of a photo a checkpoint's encoder sees by default; 1 if it has none."""
    encoder = encoder_next_to(path)
    return read_encoder_record(encoder).crops if encoder.is_file() else 1


# ---------------------------------------------------------------- what belongs together

def training_dataset(checkpoint, source, root, name):
    """The data set whose tags the checkpoint learned: `name`, or the one in its record, or else the source's.

    None if the checkpoint learned no tags. Raises UserError if there is no such data set, or if its tags were processed
    again since.
    """
    record = read_checkpoint_record(checkpoint)
    if record.no_words:
        return None
    name = name or record.options.dataset or (source.dataset and source.dataset.name)
    if name is None:
        raise UserError(f"{checkpoint}: no JSON file next to it says which data set it learned, so name that by "
                        "--trained-on")
    found = dataset.find_dataset(name, root)
    check_trained_with(checkpoint, found.tag_embeddings)
    return found


def check_settings(out, content, checkpoint, source, crops, seed):
    """Raise UserError if the source's photos, encoded with these settings, do not belong into the index in `out`.

    `crops`: None for those of the index.
    """
    check_checkpoint(out, content.facts, checkpoint)
    for what, there, here in (("crops", content.facts["crops"], crops or content.facts["crops"]),
                              ("seed", content.facts["seed"], seed),
                              ("the photos of", content.facts["images"], os.path.realpath(source.folder)),
                              ("labels", _columns(content.labels), _columns(source.labels))):
        if there != here:
            raise UserError(f"{out} is an index with {what} {there}, not {here}: choose another --out or --name")


def _columns(labels):
    return 0 if labels is None else labels.shape[1]


def check_embeddings(out, content, source, keep_embeddings):
    """Raise UserError if an index is to keep embeddings that are not available."""
    if keep_embeddings and content.embeddings is None:
        raise UserError(f"{out} is an index without embeddings: for --keep-embeddings choose another --out or --name")
    if content.embeddings is not None and source.encoded:
        raise UserError(f"{source.encoded.folder} holds only codes, and {out} is to keep embeddings: give the folder "
                        f"of the photos, {source.folder}")


def usable_rows(source, changes, skip_bad):
    """Rows of the source's photos to encode, int64. Bad photos are left out with `skip_bad`, otherwise refused."""
    rows = changes.to_encode
    if source.encoded:  # bad photos are left out already
        return rows
    names = [source.names[row] for row in rows]
    faults = _faults(source, names)
    if not faults:
        return rows

    def described(i):
        path = str(source.folder / names[i]).replace("\n", " ")
        return f"{path} (row {rows[i] + 1})" if source.dataset else path
    listed = list_faults(faults, described)
    counted = f"{len(faults)} of {len(rows)} photos cannot be used"
    if not skip_bad:
        raise UserError(f"{counted} (--skip-bad leaves them out): {listed}")
    print(f"left out: {counted}: {listed}", file=sys.stderr)
    if len(faults) == len(rows) and not len(changes.kept):
        raise UserError(f"{source.folder}: none of the {len(rows)} photos can be used")
    return np.delete(rows, list(faults))


def _faults(source, names):
    """{place in names: what is wrong} of the photos that cannot be used."""
    if source.dataset:
        return dataset.faults_in(source.folder, names)
    faults = {row: fault for row, name in enumerate(names) if (fault := dataset.photo_name_fault(name))}
    return image_faults([source.folder / name for name in names]) | faults  # a person's own folder may hold any links


# ---------------------------------------------------------------- the content

def new_content(checkpoint, trained, source, tagged, root, crops, seed):
    """The content of an index without photos.

    `trained`: the Checkpoint in the file `checkpoint`; `tagged`: the data set whose tags it learned, or None.
    """
    if tagged:
        names = dataset.read_tag_names(tagged.tag_list)
        groups, tag_embeddings = dataset.read_tags(tagged, len(names))
    else:
        names, groups, tag_embeddings = [], [], np.empty((0, DIMENSIONS), np.float32)
    facts = {"experiment": checkpoint.stem, "checkpoint": str(checkpoint.resolve()),
             "checkpoint_sha256": trained.sha256, "crops": crops, "seed": seed,
             "images": os.path.realpath(source.folder), "dataset": source.dataset and source.dataset.name,
             "root": str(root.resolve()), "trained_on": tagged and tagged.name,
             "no_words": read_checkpoint_record(checkpoint).no_words, "versions": provenance({})["versions"]}
    return index.Content(
        codes=np.empty((0, len(trained.codebooks)), np.uint8), codebooks=trained.codebooks, images=[],
        tag_names=[[names[column] for column in group] for group in groups], tag_embeddings=tag_embeddings,
        labels=None if source.labels is None else source.labels[:0], label_names=list(source.label_names), facts=facts)


def find_vocabulary(content, vectors, tagged, root):
    """More words for an index and the facts of their file, see tags/word_vectors.py; None: it keeps its own.

    Args:
        vectors: the file, or None for the one in the record of the data set `tagged`, if that is not None.
    Raises UserError if the tags were not made from `vectors`.
    """
    if vectors is None:
        return tagged and word_vectors.recorded_vocabulary(tagged, root, content.tag_names, content.tag_embeddings)
    known = content.facts.get("vectors")
    if vectors.is_file() and known == {"path": str(vectors.resolve()), "bytes": vectors.stat().st_size}:
        return None
    return word_vectors.vocabulary_of(vectors, content.tag_names, content.tag_embeddings)


def changed_content(before, source, changes, rows, checkpoint, trained, gpu):
    """The content of an index without the photos that changed or are gone, and with the source's photos `rows`.

    `trained`: the models.checkpoint.Checkpoint in the file `checkpoint`.
    """
    kept, names = changes.kept, [source.names[row] for row in rows]
    if source.encoded:  # no photo is opened
        fingerprints = np.zeros((len(rows), NUMBERS), np.int64)
    else:  # before photos are embedded: what changes meanwhile is found the next time
        fingerprints = take_fingerprints([source.folder / name for name in names])
    codes, embeddings = stored_codes(checkpoint, source, rows, before) or encode_photos(
        len(names), trained, before, embedding_function([source.folder / name for name in names], fingerprints,
                                                        checkpoint, trained, before.facts, gpu))
    fingerprints = np.concatenate([changes.fingerprints, fingerprints])
    return replace(before, codes=np.concatenate([before.codes[kept], codes]),
                   images=[*(before.images[row] for row in kept), *names],
                   labels=None if before.labels is None else np.concatenate([before.labels[kept],
                                                                             source.labels[rows]]),
                   fingerprints=fingerprints if fingerprints.any() else None,
                   embeddings=None if before.embeddings is None else np.concatenate([before.embeddings[kept],
                                                                                     embeddings]))


# ---------------------------------------------------------------- codes

def stored_codes(checkpoint, source, rows, before):
    """The codes of the source's photos `rows`, uint8 (n, M), and their embeddings to keep, float16 (n, D), or None.

    They are those of `search.py encode`, which keeps no embeddings; or, if the photos are the whole of a new index,
    those that validation.py left next to the checkpoint. None where there are neither.
    """
    facts = before.facts
    if source.encoded:
        source.encoded.check(checkpoint, facts["crops"])
        return source.encoded.codes[rows], None
    path = checkpoint.with_name(f"{checkpoint.stem}_retrieval.h5")
    if source.dataset is None or len(before.images) or len(rows) < len(source.names) or not path.is_file():
        return None
    try:
        expected, _ = sources(source.dataset, checkpoint, facts["crops"], facts["seed"])
    except UserError:  # it was made from files that are gone
        return None
    retrieval, _, _ = read_retrieval(path, expected, {})
    if retrieval is None:
        return None
    print(f"the codes are those of {path}")
    return retrieval.db_codes, unit_length(retrieval.db_features).astype(np.float16)


def encode_photos(count, trained, content, embed):
    """Codes of `count` photos, uint8 (n, M), made in blocks, and the embeddings to keep, float16 (n, D).

    Args:
        content: of the index, on whose settings and tags they depend.
        embed: see `embedding_function`.
    """
    factor = trained.factor(content.tag_embeddings)
    codes, kept = [content.codes[:0]], [np.empty((0, DIMENSIONS), np.float16)]
    for start in range(0, count, BLOCK):
        end = min(start + BLOCK, count)
        embeddings = embed(slice(start, end), f"embedding photos {start + 1} to {end} of {count}")
        rng = stream(content.facts["seed"], "index", len(content.codes) + start)
        codes.append(trained.encode(embeddings, factor, rng))
        if content.embeddings is not None:
            kept.append(unit_length(embeddings).astype(np.float16))
    return np.concatenate(codes), np.concatenate(kept)


def embedding_function(paths, fingerprints, checkpoint, trained, facts, gpu):
    """A function from a slice of N photos, and a text for the progress bar, to embeddings, float32 (n, D).

    A photo whose features were computed for training is embedded from these; the network sees the others.

    Args:
        fingerprints: of the photos, int64 (N, 7), by which these features are found.
        facts: of the index.
    """
    known = features_of_training(checkpoint, trained, facts)

    @cache
    def embedder():
        return embedder_of(checkpoint, trained, facts["crops"], gpu)

    def embed_photos(part, what):
        photos = paths[part]
        found = [known.get(digest.tobytes()) for digest in content_digests(fingerprints[part])]
        seen = np.array([features is not None for features in found])  # (n,)
        embeddings = np.empty((len(photos), DIMENSIONS), np.float32)
        if seen.any():
            print(f"{seen.sum():,} of {len(photos):,} photos are embedded from the features that training computed")
            features = np.stack([features for features in found if features is not None])[:, None]  # (n', 1, F)
            embeddings[seen] = embed(features, trained.weights[LAST], trained.fitted)
        if not seen.all():
            embeddings[~seen] = embedder().embed(
                [photo for photo, is_seen in zip(photos, seen, strict=True) if not is_seen], what)
        return embeddings

    return embed_photos


def features_of_training(checkpoint, trained, facts):
    """The features that training computed, {SHA-256 of a photo, bytes: (F,)}; none if the index has more crops."""
    record = read_checkpoint_record(checkpoint)
    name, encoder = record.options.dataset, record.encoder
    if trained.is_alexnet or encoder is None or facts["crops"] != 1 or name is None:
        return {}
    path = features_file(Path(facts["root"]), name, encoder)
    return kept_features(path, encoder, len(trained.weights[LAST][0]), note)
