"""Encoding many photos into shards of codes, in this process. It loads TensorFlow; files: see encoded.py.

Letters: n photos of a shard, M codebooks of K = 256 codewords, D = 300.
"""
import contextlib
import hashlib
import importlib.metadata
import os
import platform

import numpy as np

import net_val
import quantizer
from dataset import read_tag_embeddings
from retrieval import encoded
from retrieval.checkpoints import training_dataset
from retrieval.sources import listed_source
from session import device_name
from storage.safe_files import exclusive_lock, fingerprint, read_json
from util import PRECISIONS, ROOT, UserError, note, progress, stream


def encode(checkpoint, images, out, shard, crops=10, trained_on=None, seed=0, gpu=None, precision=PRECISIONS[0],
           root=ROOT, encode_shards=None):
    """Encode photos into `out`, or those that are missing there. Raises UserError.

    Args:
        encode_shards: as `encode_here`, which it is unless told otherwise.
        others: those of the command line.
    """
    encoded.need_arrow()
    weights, codebooks = net_val.read_checkpoint(checkpoint)
    source = listed_source(images)
    tagged = training_dataset(checkpoint, source, root, trained_on)
    tagged.check_tags()
    factor = quantizer.semantic_factor(read_tag_embeddings(tagged.tag_embeddings))
    job = encoded.Job(out, source.folder, source.names,
                      make_plan(checkpoint, tagged, source.names, crops, precision, seed, shard, len(codebooks)))
    with exclusive_lock(out / ".lock", f"{out}: another run is at work there"):
        encoded.begin(job)
        missing = job.missing()
        manifest = out / encoded.MANIFEST
        if not missing and manifest.is_file():
            print(f"{out} is finished: {encoded.summary(read_json(manifest))}")
            return
        manifest.unlink(missing_ok=True)
        if missing:
            fill(job, missing, (weights, codebooks, factor), gpu, encode_shards or encode_here)
        made = encoded.finish(job, {"experiment": checkpoint.stem, "checkpoint": str(checkpoint.resolve()),
                                    "trained_on": tagged.name})
        print(f"{out}: {encoded.summary(made)}")


def make_plan(checkpoint, tagged, names, crops, precision, seed, shard, codebooks):
    """All that the codes depend on, the photos by their names."""
    listed = hashlib.sha256(b"\0".join(map(os.fsencode, names)))
    return {"made_by": "encode.py", "checkpoint_sha256": fingerprint(checkpoint),
            "tags_sha256": fingerprint(tagged.tag_embeddings), "photos": len(names),
            "photos_sha256": listed.hexdigest(), "crops": crops, "precision": precision, "seed": seed, "shard": shard,
            "codebooks": codebooks, "versions": versions()}


def versions():
    """The versions of the packages on which embeddings and codes depend."""
    return {name: importlib.metadata.version(name) for name in ("tensorflow", "numpy", "opencv-python")}


def fill(job, missing, model, gpu, encode_shards):
    """Make the missing shards and write each as soon as it is there."""
    total = sum(len(job.shard_names(shard)) for shard in missing)
    with (progress(total=total, desc="encoding photos", unit="photo") as bar,
          contextlib.closing(encode_shards(job, missing, model, gpu, bar)) as made):
        for shard, codes, faults in made:
            encoded.write_shard(job, shard, codes, faults)


def encode_here(job, missing, model, gpu, bar):
    """Each missing shard's number, codes and faults as of `ShardEncoder.encode`, made in this process."""
    encoder = ShardEncoder(model, job.plan, job.folder, job.witness(), gpu)
    for shard in missing:
        yield shard, *encoder.encode(shard, job.shard_names(shard), bar.update)


class ShardEncoder:
    """A network that stands ready to encode shards.

    Args:
        model: weights as of `net_val.read_checkpoint`, codebooks, float32 (M, K, D), and L of
            `quantizer.semantic_factor`.
        plan, folder, witness: those of the Job.
        gpu: number of the GPU, or None for the CPU.
    """

    def __init__(self, model, plan, folder, witness, gpu):
        weights, self._codebooks, self._factor = model
        self._plan, self._folder, self._witness = plan, folder, witness
        precision = plan["precision"]
        self._encoder = net_val.Encoder(weights, plan["crops"], device_name(gpu, note, precision), precision)

    def encode(self, shard, names, advance=lambda photos: None):
        """Codes of a shard's photos that can be used, uint8 (n, M), and {row: what is wrong} of the others.

        Raises UserError if the network gives NaN, and if no photo can be read since their folder is not there.
        """
        faults = {row: fault for row, name in enumerate(names) if (fault := name_fault(name))}
        rows = [row for row in range(len(names)) if row not in faults]
        embeddings, bad = self._encoder.embed_sound([f"{self._folder}/{names[row]}" for row in rows], advance)
        advance(len(faults))
        faults |= {rows[i]: fault for i, fault in bad.items()}
        codes = np.empty((0, len(self._codebooks)), np.uint8)
        if len(embeddings):
            rng = stream(self._plan["seed"], "encode shard", shard)
            codes = quantizer.encode(embeddings, self._codebooks, self._factor, rng, net_val.CHUNK)
        elif self._witness and not os.path.isfile(self._witness):
            raise UserError(f"{platform.node()} does not see the photos: {self._witness}: no such file there")
        return codes, dict(sorted(faults.items()))


def name_fault(name):
    """What is wrong with a photo's name, or None."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name that is not UTF-8"
    return "has a line break in its name" if "\n" in name else None
