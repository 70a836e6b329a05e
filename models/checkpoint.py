"""A trained checkpoint: what its file holds, its record, and the encoder next to it.

`checkpoints/<experiment>.npy` holds `{layer: [kernel, bias], "C": codebooks}` in the release's format, either AlexNet's
layers or the last layer alone, which was trained on features. Its record is `<experiment>.json`, and what embeds photos
for it is `<experiment>_encoder.onnx`.

Letters: T merged tags, D = 300, M codebooks of K = 256 codewords.
"""
from dataclasses import dataclass

import msgspec
import numpy as np

from models.encoder import ImageEncoder, PhotoEmbedder, encoder_next_to, was_made_from
from quantization import quantizer
from quantization.neighbourhoods import averages
from storage.arrays import CODEBOOKS, FIT, NEIGHBOURS, read_weights
from storage.files import check_checksums, fingerprint, read_record
from util import DIMENSIONS, MOST_CODEBOOKS, UserError, note

LAST = "fc8"  # the embedding's layer; its kernel has D = 300 outputs
# AlexNet's layers: shape of the kernel (height, width, channels of one group, filters), or (inputs, outputs)
ALEXNET = {
    "conv1": (11, 11, 3, 96), "conv2": (5, 5, 48, 256), "conv3": (3, 3, 256, 384),
    "conv4": (3, 3, 192, 384), "conv5": (3, 3, 192, 256),
    "fc6": (9216, 4096), "fc7": (4096, 4096), LAST: (4096, DIMENSIONS),
}
CROP_SIDE = 227  # pixels of the square that AlexNet sees
# ImageNet's means of blue, green and red. The release subtracts them from red, green and blue, and so its checkpoints
# were trained.
MEAN = (103.939, 116.779, 123.68)
LRN = {"radius": 2, "alpha": 2e-5, "beta": 0.75, "bias": 1.0}  # local response normalisation of AlexNet
CROPS = 10  # V: AlexNet's embedding of an image is the mean over so many crops
CHUNK = 700  # images that share the visiting orders of ICM


@dataclass(frozen=True)
class Checkpoint:
    """weights: `{layer: [kernel, bias]}`, AlexNet's or the last layer alone; codebooks: float32 (M, K, D); fit_factor:
    of codebooks that were fitted at the end, S of `quantizer.query_factor`, float32 (D, D), else None; neighbours: of
    fitted ones, [anchors (A, D), β (1,)] of `neighbourhoods`, whose averages codes and queries represent, else None;
    sha256: of its file."""
    weights: dict
    codebooks: np.ndarray
    fit_factor: np.ndarray | None = None
    neighbours: list | None = None
    sha256: str | None = None

    @property
    def fitted(self):
        """Whether the codebooks were fitted at the end, so that embeddings have length 1."""
        return self.fit_factor is not None

    @property
    def is_alexnet(self):
        """Whether it holds the whole network."""
        return self.weights.keys() != {LAST}

    def factor(self, tag_embeddings):
        """S of the distances in which codes are found: that of the fit, or else of the tags' W, float32 (T, D)."""
        return self.fit_factor if self.fitted else quantizer.semantic_factor(tag_embeddings)

    def encode(self, embeddings, factor, rng):
        """Codes of embeddings, float32 (N, D): uint8 (N, M). `factor`: from the method above."""
        embeddings = averages(embeddings, self.neighbours)
        if self.fitted:
            return quantizer.local_search(embeddings, self.codebooks, rng, factor=factor)
        return quantizer.encode(embeddings, self.codebooks, factor, rng, CHUNK)


# ---------------------------------------------------------------- the file

def read_checkpoint(path, sha256=None):
    """The Checkpoint in a file, whose SHA-256 may be known already. Raises UserError, also if the file was altered
    since it was written. A note says so if it has no checksum, as those of the release.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    sha256 = sha256 or fingerprint(path)
    if path.name not in check_checksums(path.with_suffix(".json"), {path.name: sha256}):
        note(f"{path} has no checksum in a JSON file next to it, so damage to it would go unnoticed")
    weights = read_weights(path)
    stacked = weights.get(CODEBOOKS)
    if stacked is None:
        raise UserError(f"{path}: expected a checkpoint with codebooks under {CODEBOOKS!r}, found only "
                        f"{', '.join(map(str, weights))}")
    codebooks = len(stacked) // quantizer.CODEWORDS if stacked.ndim else 0
    if stacked.shape != (codebooks * quantizer.CODEWORDS, DIMENSIONS) or not 1 <= codebooks <= MOST_CODEBOOKS:
        raise UserError(f"{path}: expected C with shape (M·{quantizer.CODEWORDS}, {DIMENSIONS}) for M from 1 to "
                        f"{MOST_CODEBOOKS}, found {stacked.shape}")
    factor, neighbours = _checked_fit(path, weights)
    return Checkpoint(_own_layers(path, weights), stacked.reshape(codebooks, quantizer.CODEWORDS, DIMENSIONS),
                      factor, neighbours, sha256)


def is_last_layer_alone(weights):
    """Whether these entries of a file hold the last layer and no other."""
    return LAST in weights and not (weights.keys() & ALEXNET.keys()) - {LAST}


def checked_layers(weights, shapes, path):
    """The entries of `weights` that have these shapes, `{layer: shape of its kernel}`; a last layer of another shape is
    left out. Raises UserError if another layer is missing or of another shape."""
    kept = {}
    for layer, shape in shapes.items():
        found = [array.shape for array in weights.get(layer, [])]
        if found == [shape, shape[-1:]]:
            kept[layer] = weights[layer]
        elif layer != LAST:
            raise UserError(f"{path}: expected {layer} with shapes {[shape, shape[-1:]]}, found {found or 'none'}")
    return kept


def _own_layers(path, weights):
    """AlexNet's layers, or a last layer alone. Raises UserError for others."""
    if not is_last_layer_alone(weights):
        kept = checked_layers(weights, ALEXNET, path)
        if LAST not in kept:
            raise UserError(f"{path}: expected {LAST} with shape {ALEXNET[LAST]}, found another")
        return kept
    kernel, bias = weights[LAST]
    if kernel.ndim != 2 or kernel.shape[1] != DIMENSIONS or bias.shape != (DIMENSIONS,):
        raise UserError(f"{path}: expected {LAST} with shapes (F, {DIMENSIONS}) and ({DIMENSIONS},), found "
                        f"{kernel.shape} and {bias.shape}")
    return {LAST: [kernel, bias]}


def _checked_fit(path, weights):
    """S and [anchors, β] of fitted codebooks, or None and None. Raises UserError if they are of other shapes."""
    if FIT not in weights and NEIGHBOURS not in weights:
        return None, None
    factor, (anchors, sharpness) = weights.get(FIT), weights.get(NEIGHBOURS, (np.empty(0), np.empty(0)))
    if np.shape(factor) != (DIMENSIONS, DIMENSIONS) or anchors.ndim != 2 or anchors.shape[1] != DIMENSIONS or (
            sharpness.shape != (1,)):
        raise UserError(f"{path}: expected {FIT} with shape ({DIMENSIONS}, {DIMENSIONS}) and {NEIGHBOURS} with shapes "
                        f"(A, {DIMENSIONS}) and (1,), found {np.shape(factor)}, {anchors.shape} and {sharpness.shape}")
    return factor, [anchors, sharpness]


def fit_entries(codebooks, factor, neighbours):
    """The entries of a file that codebooks fitted at the end are: what `codebooks.final_fit` returns."""
    return {CODEBOOKS: codebooks.reshape(-1, DIMENSIONS), FIT: factor, NEIGHBOURS: neighbours}


# ---------------------------------------------------------------- the record

class TrainingOptions(msgspec.Struct, frozen=True):
    """What is used of the options of train.py. dataset: the name of the data set."""
    dataset: str | None = None


class Record(msgspec.Struct, frozen=True):
    """What is used of the JSON file next to a checkpoint. options: those of train.py; fingerprints: {name: SHA-256} of
    the files that it was trained on; sha256: {name: SHA-256} of the checkpoint's own file; encoder: SHA-256 of the
    image encoder, of a last layer on its features; no_words: why no words were learned, if none were."""
    options: TrainingOptions = TrainingOptions()
    fingerprints: dict[str, str] = {}
    sha256: dict[str, str] = {}
    encoder: str | None = None
    no_words: str | None = None


def read_checkpoint_record(path):
    """The Record of a checkpoint; an empty one where there is no JSON file."""
    record = path.with_suffix(".json")
    return read_record(record, Record) if record.is_file() else Record()


def check_trained_with(path, tag_embeddings):
    """Raise UserError if the record of a checkpoint names other tag embeddings than this file's."""
    trained = read_checkpoint_record(path).fingerprints.get(tag_embeddings.name)
    found = fingerprint(tag_embeddings)
    if trained not in (None, found):
        raise UserError(f"{path} was trained with a {tag_embeddings.name} of SHA-256 {trained[:12]}…, and "
                        f"{tag_embeddings} has {found[:12]}…: they are of other data sets, or tags were processed anew")


# ---------------------------------------------------------------- what embeds photos for it

def embedder_of(path, checkpoint, crops=None, gpu=None):
    """The PhotoEmbedder of a checkpoint, by the encoder next to it. Raises UserError.

    Args:
        path: of the checkpoint's file.
        checkpoint: its Checkpoint.
        crops: V, or None for the encoder's default.
        gpu: number of the GPU, or None for the CPU.
    """
    encoder = checkpoint_encoder(path, checkpoint, gpu)
    return PhotoEmbedder(encoder, checkpoint.weights[LAST], checkpoint.fitted, crops or encoder.record.crops)


def unexported_alexnet(path):
    """The Checkpoint in a file, if it has AlexNet but no encoder exported from it next to it; otherwise None.

    Neither the encoder nor a checkpoint whose SHA-256 is in its record is read in vain. Raises UserError.
    """
    record = read_checkpoint_record(path)
    if record.encoder is not None or not path.is_file():
        return None
    sha256 = record.sha256.get(path.name) or fingerprint(path)
    checkpoint = None if was_made_from(sha256, encoder_next_to(path)) else read_checkpoint(path)
    return checkpoint if checkpoint and checkpoint.is_alexnet else None


def checkpoint_encoder(path, checkpoint, gpu):
    """The ImageEncoder next to a checkpoint. Raises UserError where it is missing, or belongs to another one."""
    encoder_file, record = encoder_next_to(path), read_checkpoint_record(path)
    if checkpoint.is_alexnet:
        missing = f"`python search.py build {path} …` exports its AlexNet to ONNX"
    elif record.encoder is None:
        raise UserError(f"{path} cannot embed photos: it was trained on features from elsewhere (--features)")
    else:
        missing = "training wrote it there"
    if not encoder_file.is_file():
        raise UserError(f"{path} cannot embed photos without {encoder_file.name} next to it; {missing}")
    encoder = ImageEncoder(encoder_file, gpu)
    expected, found = (checkpoint.sha256, encoder.record.source) if checkpoint.is_alexnet else (
        record.encoder, encoder.sha256)
    if found != expected:
        raise UserError(f"{encoder_file} is not the encoder of {path.name}, but of another checkpoint; {missing}")
    return encoder
