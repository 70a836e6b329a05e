"""Encoding many photos into shards of codes, whose files are described in encoded.py.

Letters: n photos of a shard, M codebooks of K = 256 codewords, D = 300.
"""
import contextlib
import importlib.metadata
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from dataset import photo_name_fault, read_tag_embeddings
from models.checkpoint import embedder_of, read_checkpoint
from retrieval import encoded
from retrieval.build import default_crops, training_dataset
from retrieval.photos import listed_source
from storage.files import exclusive_lock, fingerprint, read_record
from storage.images import try_image
from util import DIMENSIONS, ROOT, UserError, cores, note, progress, stream

NO_TAGS = np.empty((0, DIMENSIONS), np.float32)  # the embeddings of no tags


def encode(checkpoint, images, out, shard, *, crops=None, trained_on=None, seed=0, gpu=None, root=ROOT,
           encode_shards=None):
    """Encode photos into `out`, or those that are missing there. Raises UserError.

    Args:
        encode_shards: a function with the arguments and results of `encode_here`, which is the default.
        others: those of the command line.
    """
    encoded.need_arrow()
    trained = read_checkpoint(checkpoint)
    crops = crops or default_crops(checkpoint)
    source = listed_source(images)
    tagged = training_dataset(checkpoint, source, root, trained_on)
    if tagged:  # otherwise the checkpoint learned no tags
        tagged.check_tags()
    settings = {
        "checkpoint_sha256": trained.sha256, "tags_sha256": tagged and fingerprint(tagged.tag_embeddings),
        "images": str(source.folder), "crops": crops, "seed": seed, "shard": shard,
        "codebooks": len(trained.codebooks), "versions": versions()}
    with exclusive_lock(out / ".lock", f"{out}: another run is at work there"):
        plan, lists = encoded.begin(out, settings, source.names)
        job, missing = extended_job(out, source, plan, lists)
        manifest = out / encoded.MANIFEST
        if not missing and manifest.is_file():
            print(f"{out} is finished: {encoded.summary(read_record(manifest, encoded.Manifest))}")
            return
        manifest.unlink(missing_ok=True)
        if missing:
            factor = trained.factor(read_tag_embeddings(tagged.tag_embeddings) if tagged else NO_TAGS)
            fill(job, missing, checkpoint, factor, gpu, encode_shards or encode_here)
        made = encoded.finish(job, {"experiment": checkpoint.stem, "checkpoint": str(checkpoint.resolve()),
                                    "trained_on": tagged and tagged.name})
        print(f"{out}: {encoded.summary(made)}")


def extended_job(out, source, plan, lists):
    """The Job of the photos of earlier lists and of those to be added, and the numbers of its missing shards."""
    job = encoded.Job(out, source.folder, plan, encoded.cut(lists, plan["shard"]))
    missing = job.missing()
    added = photos_to_add(job, missing, source.names)
    if added:
        encoded.write_list(out, len(lists), added)
        first = len(job.shards)
        job = replace(job, shards=encoded.cut([*lists, added], plan["shard"]))
        missing += job.missing(first)
    return job, missing


def photos_to_add(job, missing, names):
    """Those of the photos `names` that were never listed, or were left out and can be read by now."""
    listed = {name for shard in job.shards for name in shard}
    if gone := listed.difference(names):
        note(f"{len(gone):,} photos of {job.out} are not in {job.folder} any more, such as {min(gone)}; their codes "
             "stay")
    left_out = [name for name in job.left_out(missing) if name not in gone and not photo_name_fault(name, utf_8=True)]
    with ThreadPoolExecutor(cores()) as pool:
        faults = pool.map(lambda name: try_image(f"{job.folder}/{name}")[1], left_out)
        back = {name for name, fault in zip(left_out, faults, strict=True) if not fault}
    return [name for name in names if name not in listed or name in back]


def versions():
    """The versions of the packages on which embeddings and codes depend."""
    return {name: importlib.metadata.version(name) for name in ("onnxruntime", "numpy", "opencv-python")}


def fill(job, missing, checkpoint, factor, gpu, encode_shards):
    """Make the missing shards and write each as soon as it is made."""
    total = sum(len(job.shards[shard]) for shard in missing)
    with (progress(total=total, desc="encoding photos", unit="photo") as bar,
          contextlib.closing(encode_shards(job, missing, checkpoint, factor, gpu, bar)) as made):
        for shard, codes, faults in made:
            encoded.write_shard(job, shard, codes, faults)


def encode_here(job, missing, checkpoint, factor, gpu, bar):
    """Yield each missing shard's number, and its codes and faults as returned by `ShardEncoder.encode`.

    They are made in this process.

    Args:
        factor: S of `Checkpoint.factor`, float32 (D, D), or None.
        bar: a tqdm bar that counts photos.
    """
    encoder = ShardEncoder(checkpoint, factor, job.plan, job.folder, job.witness(), gpu)
    for shard in missing:
        yield shard, *encoder.encode(shard, job.shards[shard], bar.update)


class ShardEncoder:
    """Encodes shards of photos with a checkpoint.

    Args:
        checkpoint (Path), factor: see `encode_here`.
        plan, folder, witness: those of the Job.
        gpu: number of the GPU, or None for the CPU.
    """

    def __init__(self, checkpoint, factor, plan, folder, witness, gpu):
        self._checkpoint, self._factor = read_checkpoint(checkpoint), factor
        self._plan, self._folder, self._witness = plan, folder, witness
        self._embedder = embedder_of(checkpoint, self._checkpoint, plan["crops"], gpu)

    def encode(self, shard, names, advance=lambda photos: None):
        """Codes of the photos of a shard that can be used, uint8 (n, M), and {row: what is wrong} of the others.

        `advance(photos)` is called with the number of photos that are done. Raises UserError if an embedding is NaN,
        and if no photo can be read because their folder is not there.
        """
        faults = {row: fault for row, name in enumerate(names) if (fault := photo_name_fault(name, utf_8=True))}
        rows = [row for row in range(len(names)) if row not in faults]
        embeddings, bad = self._embedder.embed_sound([f"{self._folder}/{names[row]}" for row in rows], advance)
        advance(len(faults))
        faults |= {rows[i]: fault for i, fault in bad.items()}
        codes = np.empty((0, len(self._checkpoint.codebooks)), np.uint8)
        if len(embeddings):
            rng = stream(self._plan["seed"], "encode shard", shard)
            codes = self._checkpoint.encode(embeddings, self._factor, rng)
        elif self._witness and not os.path.isfile(self._witness):
            raise UserError(f"{platform.node()} does not see the photos: {self._witness}: no such file there")
        return codes, dict(sorted(faults.items()))
