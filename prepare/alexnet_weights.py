"""Converts public AlexNet weights into alexnet.npy: `python prepare/alexnet_weights.py SOURCE alexnet.npy`.

alexnet_sources.py reads the formats; alexnet_conversion.py explains what is converted and what is compared.
"""
import argparse
from pathlib import Path

from storage.arrays import write_weights
from storage.files import fingerprint
from util import UserError, run_program


def main():
    args = parse_args()
    check_target(args.source, args.target, args.force)
    from prepare import alexnet_sources
    source = alexnet_sources.read_source(args.source)
    print(f"read {args.source}, {alexnet_sources.FORMATS[source.format]}, SHA-256 {fingerprint(args.source)}")
    channels = chosen_channels(args.source, source, args.channels)
    from prepare import alexnet_conversion  # loads TensorFlow
    weights = alexnet_conversion.convert(source, channels)
    print(description(source, channels))
    moved = ""
    if args.check and source.model:
        difference, by_order = alexnet_conversion.compare(args.source, source, weights, channels)
        print(f"compared with ONNX Runtime on {alexnet_conversion.CHECK_IMAGES} images: fc7 in this network's order of "
              f"layers differs by at most {difference:.1e} of the largest value")
        moved = f"; on the compared images that moves fc7 by up to {by_order:.1%} of the largest value"
    elif args.check:
        print(f"not compared: nothing here runs {alexnet_sources.FORMATS[source.format]}")
    if source.normalises_first is not False:
        print(f"warning: {order_of(source)}{moved}")
    write_weights(args.target, weights, {"source": args.source.name, "source_sha256": fingerprint(args.source),
                                         "format": source.format, "channels": channels})
    print(f"wrote {args.target}, SHA-256 {fingerprint(args.target)}")


def parse_args():
    parser = argparse.ArgumentParser(
        description="Convert public AlexNet weights into alexnet.npy, from which train.py starts: TensorFlow's "
                    "bvlc_alexnet.npy, a .caffemodel or an ONNX model.")
    parser.add_argument("source", metavar="SOURCE", type=Path,
                        help="the weights; the format is recognised by the content")
    parser.add_argument("target", metavar="TARGET", type=Path, help="the file to write, alexnet.npy")
    parser.add_argument("--channels", choices=("reverse", "keep"),
                        help="reverse: conv1's BGR kernels are reversed and the means adjusted, so that each kernel "
                             "sees the colour it learned from; keep: they see red in place of blue, as in the release "
                             "(default reverse)")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True,
                        help="compare the converted network with an ONNX source on two images (default: compare)")
    parser.add_argument("--force", action="store_true", help="replace TARGET if it exists")
    return parser.parse_args()


def check_target(source, target, force):
    """Refuse a target that exists, before the source is read. Raises UserError."""
    if target.is_dir():
        raise UserError(f"{target}: expected the name of a file to write, found a folder")
    if target.exists() and not force:
        raise UserError(f"{target} already exists; --force replaces it")
    if not source.is_file():
        raise UserError(f"{source}: no such file")


def chosen_channels(path, source, channels):
    """`--channels`, or its default, which must not reverse channels that were reversed before. Raises UserError."""
    if channels is None and not source.has_fc8:
        raise UserError(f"{path}: expected bvlc_alexnet.npy with its fc8, found a file without it, which may have been "
                        "converted already; choose --channels keep or --channels reverse")
    return channels or "reverse"


def description(source, channels):
    """What was done to the layers, in a line."""
    layout = "layouts were TensorFlow's already" if source.format == "npy" else (
        "kernels from (O, I, H, W) to (H, W, I, O), fc6's rows from channel, row, column to row, column, channel")
    conv1 = ("conv1's BGR kernels reversed to RGB, the difference of the means moved into its bias"
             if channels == "reverse" else "conv1's channels kept: BGR kernels see RGB, as in the release")
    return f"{layout}; {conv1}; fc8 left out, training starts with a new one"


def order_of(source):
    """A warning for a source that normalises, or may normalise, before it pools."""
    if source.normalises_first:
        return "the source normalises before it pools, this network afterwards"
    return ("an .npy file does not record the order of its layers; bvlc_alexnet normalises before it pools, this "
            "network afterwards")


if __name__ == "__main__":
    run_program(main)
