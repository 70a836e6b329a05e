"""AlexNet weights that people can get become alexnet.npy: `python prepare/alexnet_weights.py SOURCE alexnet.npy`."""
import argparse
from pathlib import Path

from util import UserError, run_program

FORMATS = "a TensorFlow .npy file, a Caffe model, an ONNX model"
CAFFE_STARTS = (b"\x0a", b"\x12", b"\x1a", b"\x20", b"\xa2\x06")  # tags of the fields a NetParameter can begin with


def parse_args():
    parser = argparse.ArgumentParser(
        description="Turn public AlexNet weights into alexnet.npy, from which train.py starts: bvlc_alexnet.npy of "
                    "TensorFlow, a .caffemodel or an ONNX model.")
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the weights; the format is told by the content")
    parser.add_argument("target", metavar="TARGET", type=Path, help="the file to write, alexnet.npy")
    parser.add_argument("--channels", choices=("reverse", "keep"),
                        help="reverse: conv1's BGR kernels are turned round and the means adjusted, so that they see "
                             "what they learned from; keep: they stay, and see red in place of blue as in the release "
                             "(default reverse)")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True,
                        help="hold the converted network against the source on two images (default: do)")
    parser.add_argument("--force", action="store_true", help="replace TARGET if it is there")
    return parser.parse_args()


def check_target(source, target, force):
    """Refuse a target that is there already, before the source is read."""
    if target.is_dir():
        raise UserError(f"{target}: expected the name of a file to write, found a folder")
    if target.exists() and not force:
        raise UserError(f"{target} is already there; --force replaces it")
    if not source.is_file():
        raise UserError(f"{source}: no such file")


def format_of(path):
    """npy, caffe or onnx, told by the first bytes of a file. Raises UserError for any other."""
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"\x93NUMPY"):
        return "npy"
    if start.startswith(b"\x08"):
        return "onnx"
    if start.startswith(CAFFE_STARTS):
        return "caffe"
    raise UserError(f"{path}: expected {FORMATS}, found none of the three")


def main():
    args = parse_args()
    check_target(args.source, args.target, args.force)
    source_format = format_of(args.source)
    if source_format == "npy":
        from prepare import tensorflow_npy as reader
    elif source_format == "caffe":
        from prepare import caffemodel as reader
    else:
        from prepare import onnx_model as reader
    from prepare import weights_conversion
    weights_conversion.write_converted(args, reader)


if __name__ == "__main__":
    run_program(main)
