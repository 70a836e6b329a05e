"""Describe an image encoder from elsewhere (CLIP, DINO, …): `python prepare/encoder.py FILE.onnx --size S …`.

train.py takes the file with --encoder.
"""
import argparse
from pathlib import Path

import msgspec

from models.encoder import MOST_SIDE, EncoderRecord, ImageEncoder
from storage.files import as_record, fingerprint, write_json
from util import UserError, number, run_program


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Write FILE.json, the record of how photos are prepared for an image encoder in ONNX, after a "
                    "trial run of the encoder. train.py --encoder FILE.onnx then trains on its features.")
    parser.add_argument("model", metavar="FILE.onnx", type=Path,
                        help="an image encoder, whose input is images × 3 × S × S or images × S × S × 3, floats or "
                             "uint8, and whose output is images × features, or maps of features, which are averaged "
                             "over height and width")
    parser.add_argument("--size", type=number(int, 1, MOST_SIDE), required=True, metavar="S",
                        help="pixels of the square that the model sees")
    parser.add_argument("--mean", type=number(float), nargs=3, default=(0, 0, 0), metavar=("R", "G", "B"),
                        help="subtracted from pixel values, which are 0 to 1 (default 0 0 0)")
    parser.add_argument("--std", type=number(float, 1e-6), nargs=3, default=(1, 1, 1), metavar=("R", "G", "B"),
                        help="divisors of the differences (default 1 1 1)")
    parser.add_argument("--resize", type=number(int, 1, MOST_SIDE), metavar="SIDE",
                        help="pixels to which the middle square of a photo is resized, before the middle S × S is cut "
                             "out (default S)")
    parser.add_argument("--stretch", action="store_true",
                        help="resize the whole photo to SIDE × SIDE, whatever its proportions")
    parser.add_argument("--bgr", action="store_true", help="the model's channels are blue, green, red")
    parser.add_argument("--layer", metavar="OUTPUT", help="the model's output to take, if it has several")
    return parser.parse_args()


def main():
    options = parse_arguments()
    path = options.model
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    record_file = path.with_suffix(".json")
    record = as_record("the options", {
        "size": options.size, "resize": options.resize or options.size, "stretch": options.stretch, "bgr": options.bgr,
        "mean": list(options.mean), "std": list(options.std), "layer": options.layer,
        "sha256": {path.name: fingerprint(path)}}, EncoderRecord)
    width = ImageEncoder(path, record=record).width
    write_json(record_file, msgspec.to_builtins(record))
    print(f"wrote {record_file}: {width:,} features of each image")


if __name__ == "__main__":
    run_program(main)
