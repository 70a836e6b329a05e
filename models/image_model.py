"""What is known of a model in ONNX that gave features of photos: its file, and what it sees of a photo.

It stands as JSON in a file of features, and in the record beside a checkpoint that was trained on these.
Running such a model: onnx_encoder.py.
"""
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import NoneType

import h5py

from util import UserError, one_line

KEY = "image_model"  # of the JSON in the attributes of a file of features, and in the record beside a checkpoint
MOST_SIDE = 4096  # pixels of a resized photo
KINDS = {"path": str, "sha256": str, "size": int, "resize": int, "stretch": bool, "bgr": bool, "mean": list,
         "std": list, "layer": str | NoneType}


@dataclass(frozen=True)
class ImageModel:
    """A model's file, and how photos are made ready for it.

    The middle square of a photo, or with `stretch` the whole photo, is resized to `resize`×`resize` pixels. The model
    sees the middle `size`×`size` of them as (x / 255 − mean) / std, RGB or with `bgr` BGR.

    path: the ONNX file; sha256: its SHA-256; mean, std: of red, green and blue; layer: the output that is taken, or
    None for the only one.
    """
    path: str
    sha256: str
    size: int
    resize: int
    stretch: bool
    bgr: bool
    mean: list
    std: list
    layer: str | None

    def found_near(self, folder):
        """The same, with its file in `folder` if it does not lie any more where it was."""
        return self if Path(self.path).is_file() else replace(self, path=str(folder / Path(self.path).name))


def checked_model(content, source):
    """The ImageModel that is told by `content`, as JSON gives it. Raises UserError, which names the file `source`."""
    if not (isinstance(content, dict) and content.keys() == KINDS.keys() and _fits(content)):
        raise UserError(f"{source}: expected under {KEY!r} the description of a model with {', '.join(KINDS)}, found "
                        f"{one_line(content)}")
    return ImageModel(**content)


def _fits(content):
    if not all(isinstance(content[key], kind) for key, kind in KINDS.items()):
        return False
    colours = [*content["mean"], *content["std"]]
    return (1 <= content["size"] <= content["resize"] <= MOST_SIDE and len(content["mean"]) == len(content["std"]) == 3
            and all(isinstance(value, int | float) and math.isfinite(value) for value in colours)
            and min(content["std"]) > 0 and "\0" not in content["path"])


def model_of_features(path):
    """The ImageModel that gave a file of features, or None if the file does not say. Raises UserError."""
    if not h5py.is_hdf5(path):
        return None
    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get(KEY)
    except (OSError, RuntimeError, KeyError):  # whoever reads the features says what is wrong
        return None
    if text is None:
        return None
    try:
        content = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON in the attribute {KEY!r}, found something else ({one_line(error)})"
                        ) from error
    return checked_model(content, path)


def image_model_record(files):
    """For the record of a training: `{KEY: the model that gave the features}` of the file of features among
    `{name: path}`, or {} if there is none or the file does not say. Raises UserError."""
    models = [model for path in files.values() if (model := model_of_features(path))]
    return {KEY: asdict(models[0])} if models else {}
