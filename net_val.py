"""The validation network: AlexNet on the crops of photos, whose mean is the embedding (section 8 of the method).

Letters: B images a run of the graph, V crops an image, D = 300.
"""
import numpy as np

from models import alexnet, layers
from models.checkpoint import CROP_SIDE
from models.encoder import crops_of
from models.session import device_name, open_session, tf
from storage.images import IMAGE_SIDE, map_photos, resize_bilinearly
from util import DIMENSIONS, cores, unit_length

CPU_CROPS, GPU_CROPS = 40, 160  # crops that a run of the graph embeds
CPU_RUNS = 8  # runs at the same time on a CPU, at most one a core, because a single run leaves cores idle


class ValidationNetwork:
    """The graph that embeds images, finalized.

    Args:
        crops (int): V: 10, 5, 2 or 1, see `encoder.crops_of`.
        device: from `session.device_name`.
    """

    def __init__(self, crops, device):
        on_cpu = device == "/cpu:0"
        self._images_at_once = max(1, (CPU_CROPS if on_cpu else GPU_CROPS) // crops)
        self._runs_at_once = min(cores(), CPU_RUNS) if on_cpu else 1
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.device(device):
            self._build_crops(crops)
            self._build_embeddings(crops)
            self._initialize = tf.global_variables_initializer()
            self.graph.finalize()

    def _build_crops(self, count):
        """images, uint8 (B, 256, 256, 3), and all their crops, uint8 (V·B, 227, 227, 3)."""
        self.images, parts = tf.placeholder(tf.uint8, [None, IMAGE_SIDE, IMAGE_SIDE, 3]), []
        for (top, left), flip in crops_of(count, CROP_SIDE, IMAGE_SIDE):
            seen = tf.reverse(self.images, [2]) if flip else self.images
            parts.append(seen[:, top:top + CROP_SIDE, left:left + CROP_SIDE])
        self._crops = tf.concat(parts, 0)

    def _build_embeddings(self, count):
        """embeddings r, the mean over the crops, float32 (B, D)."""
        variables, self._first_values = layers.make_variables(alexnet.LAYERS, trainable=())
        outputs, _ = layers.embed(alexnet, self._crops, variables)  # (V·B, D)
        self.embeddings = tf.reduce_mean(tf.reshape(outputs, [count, -1, DIMENSIONS]), 0)

    def initialize(self, session, weights):
        """Take `weights`, `{layer: [kernel, bias]}`."""
        session.run(self._initialize, layers.feed_weights(self._first_values, weights))

    def embed_photos(self, weights, paths, unit=False, what="embedding"):
        """Embeddings of N image files, float32 (N, D), in a session of its own. Raises UserError for a file that cannot
        be read.

        Args:
            weights: `{layer: [kernel, bias]}`.
            unit: whether they are scaled to length 1, as those of fitted codebooks are.
            what: what is done, for the progress bar.
        """
        with open_session(self.graph) as session:
            self.initialize(session, weights)

            def run(images):
                return session.run(self.embeddings, {self.images: images})
            blocks = map_photos(run, paths, resize_bilinearly, self._images_at_once, self._runs_at_once, what)
            embeddings = np.concatenate([found for _, found, _ in blocks])
        return unit_length(embeddings) if unit else embeddings


def embed_split(weights, crops, gpu, unit, log):
    """A function of a split and its RetrievalSet that returns embeddings by AlexNet, float32 (N, D). Arguments as
    above."""
    network = ValidationNetwork(crops, device_name(gpu, log.warning))

    def embeddings(split, content):
        return network.embed_photos(weights, content.paths, unit, f"embedding {split} images")
    return embeddings
