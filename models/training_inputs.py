"""What a training sees of its N images: random crops of the photos, or fixed features of them.

Both have the network that takes them, and a batch is drawn from nothing but the seed and the step.
"""
import numpy as np

from models.backbones import LAST
from models.features import embed, unit_length
from models.head import Head
from models.tf_encoder import Encoder
from storage.images import IMAGE_SIDE, ImageStore, random_crops
from util import stream


class PhotoInputs:
    """Photos, of which each step sees another random crop.

    Attributes:
        network: one of `backbones.BACKBONES`.
    """

    def __init__(self, paths, backbone, seed, cache_bytes):
        self.network = backbone
        self._store = ImageStore(paths, cache_bytes, backbone.resize)
        self._seed = seed

    def __len__(self):
        return len(self._store)

    def batch(self, rows, step):
        """Crops of the images `rows` in a 0-based step, uint8 (B, SIDE, SIDE, 3)."""
        return random_crops(self._store, rows, self.network.SIDE, stream(self._seed, "crops", step))

    def centres(self, rows):
        """Their middles, uint8 (B, SIDE, SIDE, 3)."""
        middle = np.full((len(rows), 2), (IMAGE_SIDE - self.network.SIDE) // 2)
        return self._store.crops(rows, self.network.SIDE, middle, np.zeros(len(rows), bool))

    def embeddings(self, weights, device, precision, unit):
        """Embeddings of all images by their middles, without dropout, float32 (N, D); `unit`: of length 1."""
        encoder = Encoder(weights, 1, device, precision)
        embeddings = encoder.embed(self._store.paths, "embedding training images")
        return unit_length(embeddings) if unit else embeddings


class FeatureInputs:
    """Fixed features, float (N, V, F), of which each step sees a random view of an image.

    Attributes:
        network: the last layer.
    """

    def __init__(self, features, seed):
        self.network = Head(features.shape[2])
        self._features, self._seed = features, seed

    def __len__(self):
        return len(self._features)

    def batch(self, rows, step):
        """Features of the images `rows` in a 0-based step, float32 (B, F)."""
        views = stream(self._seed, "views", step).integers(self._features.shape[1], size=len(rows))
        return self._features[rows, views].astype(np.float32)

    def embeddings(self, weights, _device, _precision, unit):
        """Embeddings of all images by the mean over their views, without dropout, float32 (N, D)."""
        return embed(self._features, weights[LAST], unit)
