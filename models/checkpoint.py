"""A trained checkpoint: reading it, and what it was trained with."""
from dataclasses import dataclass, replace

import numpy as np

from models import layers
from models.backbones import find, of_weights
from models.encoder import OnnxEncoder
from models.image_model import KEY, ImageModel, checked_model
from models.session import device_name
from models.tf_encoder import Encoder
from quantization import quantizer
from quantization.neighbourhoods import averages
from storage.arrays import CODEBOOKS, FIT, NEIGHBOURS, read_weights
from storage.files import check_checksums, fingerprint, read_json
from util import DIMENSIONS, MOST_CODEBOOKS, UserError, note

CHUNK = 700  # images that share the visiting orders of ICM


@dataclass(frozen=True)
class Checkpoint:
    """weights: `{layer: [kernel, bias]}`; codebooks: float32 (M, K, D); fitted: whether the codebooks were fitted at
    the end, so that embeddings have length 1; fit_factor: of fitted ones, S of `quantizer.query_factor`, or None for
    plain distances, as of older files; neighbours: [anchors (A, D), β (1,)] of `neighbourhoods`, whose averages codes
    and queries stand for, or None, as of older files; metric: [kernel (D, D), bias (D,)] that codes of an embedding
    stand for, or None, and they stand for the embedding; model: of a last layer alone, what gives the features that it
    sees, or None if its record does not tell."""
    weights: dict
    codebooks: np.ndarray
    fitted: bool
    fit_factor: np.ndarray | None = None
    neighbours: list | None = None
    model: ImageModel | None = None

    def with_fit(self, entries):
        """The same with fitted codebooks: those of the `entries` of `fitting.fitted_entries`."""
        codebooks = entries[CODEBOOKS].reshape(-1, quantizer.CODEWORDS, DIMENSIONS)
        return replace(self, codebooks=codebooks, fitted=True, fit_factor=entries[FIT], neighbours=entries[NEIGHBOURS])

    def factor(self, tag_embeddings):
        """S of the distances in which codes are found, which the tags' embeddings W, float32 (T, D), give unless the
        codebooks were fitted; None for plain distances."""
        return self.fit_factor if self.fitted else quantizer.semantic_factor(tag_embeddings)

    def encode(self, embeddings, factor, rng):
        """Codes of embeddings, float32 (N, D): uint8 (N, M). `factor`: of the method above."""
        embeddings = averages(embeddings, self.neighbours)
        if self.fitted:
            return quantizer.local_search(embeddings, self.codebooks, rng, factor=factor)
        return quantizer.encode(embeddings, self.codebooks, factor, rng, CHUNK)


def read_checkpoint(path):
    """The Checkpoint in a file. Raises UserError.

    A checkpoint that was altered since it was written is refused; one without a checksum, as the release's, is noted.
    """
    if not check_checksums(path.with_suffix(".json")):
        note(f"{path} has no checksum in a JSON file beside it, so damage to it would go unnoticed")
    weights = read_weights(path)
    stacked = weights.get(CODEBOOKS)
    if stacked is None:
        raise UserError(f"{path}: expected a checkpoint with codebooks under {CODEBOOKS!r}, found only "
                        f"{', '.join(map(str, weights))}")
    codebooks = len(stacked) // quantizer.CODEWORDS
    if stacked.shape != (codebooks * quantizer.CODEWORDS, DIMENSIONS) or not (
            1 <= codebooks <= MOST_CODEBOOKS):
        raise UserError(f"{path}: expected C with shape (M·{quantizer.CODEWORDS}, {DIMENSIONS}) for M from 1 to "
                        f"{MOST_CODEBOOKS}, found {stacked.shape}")
    return Checkpoint(checked_layers(path, weights), stacked.reshape(codebooks, quantizer.CODEWORDS, DIMENSIONS),
                      FIT in weights, checked_factor(path, weights), checked_neighbours(path, weights),
                      read_model(path) if of_weights(weights) is None else None)


def checked_factor(path, weights):
    """S of fitted codebooks, or None for plain distances. Raises UserError if it is of another shape."""
    factor = weights.get(FIT)
    if factor is None or np.shape(factor) == (1,):  # the mark of fitted codebooks before there was a factor
        return None
    if np.shape(factor) != (DIMENSIONS, DIMENSIONS):
        raise UserError(f"{path}: expected {FIT} with shape ({DIMENSIONS}, {DIMENSIONS}), found {np.shape(factor)}")
    return factor


def checked_neighbours(path, weights):
    """[anchors, β] of the neighbourhoods, or None. Raises UserError if they are of another shape."""
    if NEIGHBOURS not in weights:
        return None
    anchors, sharpness = weights[NEIGHBOURS]
    if anchors.ndim != 2 or anchors.shape[1] != DIMENSIONS or sharpness.shape != (1,) or FIT not in weights:
        raise UserError(f"{path}: expected {NEIGHBOURS} with shapes (A, {DIMENSIONS}) and (1,), and {FIT} beside it, "
                        f"found {anchors.shape} and {sharpness.shape}")
    return [anchors, sharpness]


def checked_layers(path, weights):
    """The layers among `weights` that are a whole network's, or a last layer alone. Raises UserError for others."""
    backbone = of_weights(weights)
    if backbone is None:
        kernel, bias = weights[layers.LAST]
        if kernel.ndim != 2 or kernel.shape[1] != DIMENSIONS or bias.shape != (DIMENSIONS,):
            raise UserError(f"{path}: expected {layers.LAST} with shapes (F, {DIMENSIONS}) and ({DIMENSIONS},), found "
                            f"{kernel.shape} and {bias.shape}")
        return {layers.LAST: [kernel, bias]}
    kept = layers.check_weights(weights, backbone.LAYERS, path)
    if layers.LAST not in kept:
        raise UserError(f"{path}: expected {layers.LAST} with shape {backbone.LAYERS[layers.LAST]}, found another")
    return kept


def read_record(path):
    """What the JSON file beside a checkpoint tells of its training; an empty dict where there is none."""
    record = path.with_suffix(".json")
    return read_json(record) if record.is_file() else {}


def read_model(path):
    """The ImageModel in the record beside a checkpoint, or None. Its file may have been moved beside the checkpoint."""
    content = read_record(path).get(KEY)
    return None if content is None else checked_model(content, path.with_suffix(".json")).found_near(path.parent)


def trained_on_features(path):
    """Whether the record beside the checkpoint tells that its last layer was trained on fixed features of photos."""
    return read_record(path).get("options", {}).get("crops") == "fixed"


def default_crops(path):
    """Crops an image that the checkpoint's embeddings are the mean of, unless told otherwise; of the release's, ten."""
    record = read_record(path)
    options = record.get("options", {})
    if KEY in record:
        return 1
    return options["views"] if trained_on_features(path) else find(options.get("backbone", "alexnet")).CROPS


def check_trained_with(path, tag_embeddings):
    """Raise UserError if the record beside the checkpoint tells of other tag embeddings than this file's."""
    trained, found = read_record(path).get("fingerprints", {}).get(tag_embeddings.name), fingerprint(tag_embeddings)
    if trained not in (None, found):
        raise UserError(f"{path} was trained with a {tag_embeddings.name} of SHA-256 {trained[:12]}…, and "
                        f"{tag_embeddings} has {found[:12]}…: they are of other data sets, or tags were processed anew")


def embedder_of(path, crops=None, gpu=None):
    """What embeds photos as the checkpoint `path` does: its own network, or the image encoder that it was trained on.

    It is a `tf_encoder.PhotoNetwork` and safe for several threads. Raises UserError.

    Args:
        crops: crops a photo, or None for the checkpoint's default; an image encoder sees one, the middle.
        gpu: number of the GPU, or None for the CPU.
    """
    trained, crops = read_checkpoint(path), crops or default_crops(path)
    if trained.model is None:
        return Encoder(trained.weights, crops, device_name(gpu, note), unit=trained.fitted)
    if crops != 1:
        raise UserError(f"{trained.model.path} embeds the photos of this checkpoint, by one crop: expected --crops 1")
    return OnnxEncoder(trained.model, trained.weights[layers.LAST], trained.fitted, gpu)
