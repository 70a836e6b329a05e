"""Photos without tags: a last layer by PCA of the backbone's features, in place of one that was learned from tags.

Letters: N images, F features, D = 300.
"""
import numpy as np

from dataset import find_dataset, read_image_list
from models import backbones
from models.backbones import LAST
from models.features import photo_features
from models.first_weights import check_first_weights, read_stored_weights
from models.fitting import fitted_entries
from models.session import device_name
from models.training_inputs import FeatureInputs
from storage.arrays import write_weights
from storage.files import read_json
from storage.log import open_log, plain, provenance
from util import DIMENSIONS

NO_WORDS = "These photos carry too few tags to learn words from."
SMALL = 0.1  # the largest number before the activation tanh, which hardly bends so small ones


def train(options, target):
    """Compute the features, reduce them, fit the codebooks, and write the checkpoint.

    Args:
        options: those of train_untagged.py.
        target: path of the checkpoint, an .npy file.
    """
    folder = find_dataset(options.dataset, options.root)
    image_list, _ = folder.split_files("train")
    rows = np.arange(len(read_image_list(image_list)))
    check_first_weights(options)
    weights = read_stored_weights(options)
    log = open_log(options.root / "logs" / f"{target.stem}.log")
    device = device_name(options.gpu, log.warning, options.precision)
    features = photo_features(folder, "train", rows, weights, backbones.find(options.backbone), options.views, device,
                              options.precision, options.root, log)  # (N, 1, F)
    last_layer = reduce(features.mean(1, dtype=np.float32))
    entries = fitted_entries(FeatureInputs(features, options.seed), {LAST: last_layer}, options.codebooks, options.seed,
                             device, options.precision, log)
    record = {"options": plain(vars(options)), "seed": options.seed, "no_words": reason(folder),
              **provenance({"image_list": image_list, "weights": options.weights})}
    write_weights(target, {**weights, LAST: last_layer, **entries}, record)
    log.info(f"saved {target}.")


def reduce(features):
    """The last layer that gives an image its coordinates along the D directions in which `features`, float32 (N, F),
    differ most: [kernel (F, D), bias (D,)]. Where they differ in fewer directions, the other coordinates are 0."""
    mean = features.mean(0, dtype=np.float64)
    centred = features - mean
    lengths, directions = np.linalg.eigh(centred.T @ centred)  # ascending
    best = directions[:, ::-1][:, :DIMENSIONS] * (lengths[::-1][:DIMENSIONS] > 1e-9 * lengths[-1])
    kernel = np.zeros((features.shape[1], DIMENSIONS))
    kernel[:, :best.shape[1]] = best
    kernel *= SMALL / max(np.abs(centred @ kernel).max(), 1e-9)
    return [kernel.astype(np.float32), (-mean @ kernel).astype(np.float32)]


def reason(folder):
    """Why words cannot be searched for, as prepare/photos.py tells it, a sentence."""
    report = folder.splits / "report.json"
    return (read_json(report) if report.is_file() else {}).get("no_words") or NO_WORDS
