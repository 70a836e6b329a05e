"""Codebooks fitted at the end: to embeddings of length 1 of the training images, which no longer change."""
import re
import time

from dataset import find_dataset, load_training
from models.backbones import LAST, of_weights
from models.checkpoint import check_trained_with, default_crops, read_checkpoint, read_record, trained_on_features
from models.features import photo_features, read_features
from models.session import device_name
from models.training_inputs import FeatureInputs, PhotoInputs
from quantization.codebooks import fit_codebooks, fit_sample
from quantization.neighbourhoods import averages, neighbourhoods
from quantization.quantizer import query_factor
from storage.arrays import CODEBOOKS, FIT, NEIGHBOURS, write_weights
from storage.files import fingerprint
from storage.log import open_log, plain
from util import DIMENSIONS, UserError, stream


def fitted_entries(inputs, weights, codebooks, seed, device, precision, log):
    """The entries of a checkpoint that fitted codebooks make: C, (M·K, D), the factor S, (D, D), of the distances in
    which codes are found, and the neighbourhoods.

    Args:
        inputs: of `training_inputs`.
        weights: `{layer: [kernel, bias]}`.
        codebooks (int): M.
    """
    began = time.perf_counter()
    embeddings = inputs.embeddings(weights, device, precision, unit=True)
    neighbours = neighbourhoods(embeddings, stream(seed, "anchors"))
    vectors = averages(fit_sample(embeddings, stream(seed, "fit sample")), neighbours)
    factor = query_factor(vectors)
    fitted = fit_codebooks(vectors, codebooks, stream(seed, "final fit"), factor)
    sample = f", a sample of {len(embeddings):,}" if len(vectors) < len(embeddings) else ""
    log.info(f"fitted {codebooks} codebooks to {len(vectors):,} embeddings{sample}, duration: "
             f"{time.perf_counter() - began:.2f} sec.")
    return {CODEBOOKS: fitted.reshape(-1, DIMENSIONS), FIT: factor, NEIGHBOURS: neighbours}


def fit(options):
    """What fit.py does. Raises UserError."""
    folder = find_dataset(options.dataset, options.root)
    checkpoint = read_checkpoint(options.checkpoint)
    check_trained_with(options.checkpoint, folder.tag_embeddings)
    codebooks = options.codebooks or len(checkpoint.codebooks)
    target = options.output or fitted_path(options.checkpoint, codebooks)
    if target.resolve() == options.checkpoint.resolve():
        raise UserError(f"{target} is the checkpoint itself: --output names another file")
    log = open_log(options.root / "logs" / f"{target.stem}.log")
    device = device_name(options.gpu, log.warning, options.precision)
    training_set = load_training(folder, options.skip_bad, check_images=options.features is None)
    inputs = fitting_inputs(options, folder, training_set, checkpoint, device, log)
    entries = fitted_entries(inputs, checkpoint.weights, codebooks, options.seed, device, options.precision, log)
    record = {**read_record(options.checkpoint), "fit": {
        "options": plain(vars(options)), "checkpoint_sha256": fingerprint(options.checkpoint)}}
    write_weights(target, {**checkpoint.weights, **entries}, record)
    log.info(f"saved {target}.")


def fitted_path(checkpoint, codebooks):
    """Where the fitted checkpoint goes: beside the old one, its name telling the bits and ending in _fit."""
    stem = re.sub(r"nbits=\d+", f"nbits={8 * codebooks}", checkpoint.stem)
    return checkpoint.with_name(f"{stem}_fit.npy")


def fitting_inputs(options, folder, training_set, checkpoint, device, log):
    """The training images as the checkpoint has seen them: photos, or features."""
    if options.features is not None:
        width = len(checkpoint.weights[LAST][0])
        features = read_features(options.features, "train", folder.split_files("train")[0], width)[training_set.rows]
        return FeatureInputs(features, options.seed)
    backbone = of_weights(checkpoint.weights)
    if backbone is None:
        raise UserError(f"{options.checkpoint} was trained on features from elsewhere: expected --features FILE.h5")
    if not trained_on_features(options.checkpoint):
        return PhotoInputs(training_set.paths, backbone, options.seed, cache_bytes=0)
    return FeatureInputs(photo_features(
        folder, "train", training_set.rows, checkpoint.weights, backbone, default_crops(options.checkpoint), device,
        options.precision, options.root, log), options.seed)
