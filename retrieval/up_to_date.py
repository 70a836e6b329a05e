"""Whether an index that is there is up to date, and belongs to the photos that it is to hold.

No TensorFlow in this file: where nothing is to be done, nothing slow is loaded.
"""
import os
import sys

import numpy as np

import dataset
from retrieval import index, photo_files
from retrieval.photos import name_fault
from storage.files import fingerprint
from storage.images import image_faults, list_faults
from util import PRECISIONS, UserError


def tell_if_up_to_date(source, out, options):
    """Print that the index in `out` holds the photos of a Source as they are, if so, and return whether it does.

    `options`: of `search.py build`. Raises UserError if the photos do not belong into the index.
    """
    if not index.has_index(out):
        return False
    content = index.load(out).content
    check_settings(out, content, options.checkpoint, source, options.crops, options.seed, options.precision)
    check_embeddings(out, content, source, options.keep_embeddings)
    if options.vectors is not None and not knows_vectors(content.facts, options.vectors):
        return False
    changes = photo_files.compare(source, content, out, options.prune)
    if len(changes.to_encode) and not (options.skip_bad and _all_bad(source, changes.to_encode)):
        return False
    lists = index.default_inverted_lists(len(changes.kept)) if options.lists is None else options.lists
    if not is_up_to_date(content, changes, changes.to_encode[:0], lists):
        return False
    rows = usable_rows(source, changes, options.skip_bad)
    photo_files.tell_gone(changes, source.folder, out, options.prune)
    print(summary(out, source, content, changes, rows, lists))
    return True


def is_up_to_date(before, changes, rows, lists):
    """Whether an index need not be written again."""
    return (len(changes.kept) == len(before.images) and not len(rows) and lists == before.facts["lists"]
            and (not changes.fingerprints.any() if before.fingerprints is None
                 else np.array_equal(changes.fingerprints, before.fingerprints)))


def summary(out, source, before, changes, rows, lists):
    """What an index holds after its photos `rows` of the source are encoded, and what is changed, in words."""
    known = set(before.images)
    new = sum(source.names[row] not in known for row in rows)
    changed = len(rows) - new
    dropped = len(before.images) - len(changes.kept) - changed
    return (f"{out}: {len(changes.kept) + len(rows):,} photos, {new:,} of them new"
            + (f", {changed:,} changed" if changed else "") + (f", {dropped:,} dropped" if dropped else "")
            + f", {8 * len(before.codebooks)} bits each" + (f", in {lists} lists" if lists else ""))


# ---------------------------------------------------------------- what belongs together

def check_settings(out, content, checkpoint, source, crops, seed, precision):
    """Raise UserError if the source's photos, encoded in this way, do not belong into the index in `out`.

    `crops`: None for those that the index has.
    """
    check_checkpoint(out, content.facts, checkpoint)
    for what, there, here in (("crops", content.facts["crops"], crops or content.facts["crops"]),
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


def check_checkpoint(folder, facts, checkpoint):
    """Raise UserError if the index in `folder` was made with another checkpoint, or this one is not there."""
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such file, but {folder} was made with it; --checkpoint names it if it moved")
    if fingerprint(checkpoint) != facts["checkpoint_sha256"]:
        raise UserError(f"{folder} is an index of another checkpoint ({facts['experiment']}), not of {checkpoint}")


def knows_vectors(facts, path):
    """Whether an index by its facts knows the words of a file as it is."""
    return path.is_file() and facts.get("vectors") == {"path": str(path.resolve()), "bytes": path.stat().st_size}


def precision_of(facts):
    """The precision of an index's embeddings by its facts."""
    return facts.get("precision", PRECISIONS[0])


def _columns(labels):
    return 0 if labels is None else labels.shape[1]


# ---------------------------------------------------------------- photos that cannot be used

def usable_rows(source, changes, skip_bad):
    """Rows of the source's photos that are to be encoded, int64; bad ones are refused, or left out and told."""
    rows = changes.to_encode
    if source.encoded:  # without the bad ones
        return rows
    names = [source.names[row] for row in rows]
    faults = _faults(source, names)
    if not faults:
        return rows
    def described(i):
        path = str(source.folder / names[i]).replace("\n", " ")
        return f"{path} (row {rows[i] + 1})" if source.dataset else path
    listed = list_faults(faults, described)
    told = f"{len(faults)} of {len(rows)} photos cannot be used"
    if not skip_bad:
        raise UserError(f"{told} (--skip-bad leaves them out): {listed}")
    print(f"left out: {told}: {listed}", file=sys.stderr)
    if len(faults) == len(rows) and not len(changes.kept):
        raise UserError(f"{source.folder}: none of the {len(rows)} photos can be used")
    return np.delete(rows, list(faults))


def _all_bad(source, rows):
    return not source.encoded and len(_faults(source, [source.names[row] for row in rows])) == len(rows)


def _faults(source, names):
    """{place in names: what is wrong} of the photos that cannot be used."""
    if source.dataset:
        return dataset.faults_in(source.folder, names)
    faults = {row: fault for row, name in enumerate(names) if (fault := name_fault(name))}
    return image_faults([source.folder / name for name in names]) | faults  # links in a person's own folder are theirs
