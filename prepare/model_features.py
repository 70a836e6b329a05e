"""What prepare/features.py does: the features of all splits of a data set by a model in ONNX, in one file."""
import importlib.metadata
import json
from dataclasses import asdict

import h5py
import numpy as np

from dataset import check_links, faults_in, find_dataset, read_image_list
from models import encoder
from models.features import NAMES, complete_features, reading
from models.image_model import KEY, ImageModel, model_of_features
from storage.files import fingerprint
from storage.images import list_faults
from util import UserError, note


def compute(options):
    """Write features/NAME.h5, or complete it. Raises UserError."""
    folder = find_dataset(options.dataset, options.root)
    path = options.root / "features" / f"{options.output}.h5"
    model = described_model(options)
    check_same(path, model, folder.name)
    splits = usable_images(folder)
    network = encoder.OnnxFeatures(model, options.gpu, options.batch_size)
    facts = {KEY: json.dumps(asdict(model)), "dataset": folder.name,
             "onnxruntime": encoder.onnxruntime.__version__,
             "opencv-python": importlib.metadata.version("opencv-python")}
    for split, names in splits.items():
        complete_features(path, facts, folder, split, np.arange(len(names)),
                          np.dtype((np.float32, (network.width,))), lambda: network, print)
    counts = ", ".join(f"{len(names):,} of {NAMES[split]}" for split, names in splits.items())
    print(f"{path}: {network.width:,} features of each image: {counts}")


def described_model(options):
    """The ImageModel of the options of prepare/features.py."""
    if not options.model.is_file():
        raise UserError(f"{options.model}: no such file")
    return ImageModel(str(options.model.resolve()), fingerprint(options.model), options.size, options.resize,
                      options.stretch, options.bgr, options.mean, options.std, options.layer)


def check_same(path, model, dataset):
    """Raise UserError if there is another file of features than this model's of this data set."""
    if not path.exists():
        return
    if not h5py.is_hdf5(path) or model_of_features(path) is None:
        raise UserError(f"{path} is there, and this program has not made it: choose another --output")
    with reading(path) as file:
        there = file.attrs.get("dataset")
    if there != dataset or model_of_features(path) != model:
        raise UserError(f"{path} holds features of another data set or model, or of other settings: choose another "
                        "--output, or delete it")


def usable_images(folder):
    """`{split: image names}` of the splits that the data set has. Raises UserError if an image cannot be used."""
    splits, faults = {}, {}
    for split in NAMES:
        image_list = folder.split_files(split)[0]
        if not image_list.is_file():
            note(f"{image_list} is not there, so the file gets no {NAMES[split]!r}")
            continue
        splits[split] = names = read_image_list(image_list)
        check_links(folder, names)
        faults |= {(split, row): why for row, why in faults_in(folder.images, names).items()}
    if not splits:
        raise UserError(f"{folder.splits}: expected lists of images such as train_img.txt, found none")
    if faults:
        def told(image):
            split, row = image
            return f"{folder.images / splits[split][row]} ({split}, row {row + 1})"
        raise UserError(f"{len(faults)} images cannot be used; every row needs features, so take these rows out of the "
                        f"split files: {list_faults(faults, told)}")
    return splits
