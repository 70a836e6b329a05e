"""A trained network that turns photos into embeddings, or into the features below its last layer.

What belongs here: the crops of an image, the graph that runs on them, and running it over many image files.
Letters: N images, B images a run of the graph, V crops an image, D = 300, F features.
"""
import threading

import numpy as np

from models import layers
from models.backbones import of_weights
from models.session import first_device, in_towers, open_session, tf
from storage.images import IMAGE_SIDE, ImageStore, decodable_images
from util import DIMENSIONS, PRECISIONS, UserError, cores, first_few, prefetch, progress

CROPS_AT_ONCE = 160  # crops a run of the graph on a GPU
RUNS_AT_ONCE = 8  # of the graph on a CPU, or as many as it has cores: each leaves some of them idle
RUNS_AHEAD = 4  # whose photos are decoded while the graph runs


def crops_of(count, side):
    """The crops of an image: (top and left in pixels, whether the image is flipped first), `count` times.

    Ten: four near the corners and the centre, flipped and plain; five: the plain ones; two: the centre, plain and
    flipped; one: the plain centre. `side`: pixels of a crop.
    """
    middle = (IMAGE_SIDE - side) // 2
    far = 2 * middle  # for AlexNet 28, as in the release, though 29 would fit
    offsets = ((0, 0), (far, far), (far, 0), (0, far), (middle, middle))
    return {10: [(offset, flip) for flip in (True, False) for offset in offsets],
            5: [(offset, False) for offset in offsets],
            2: [(offsets[-1], False), (offsets[-1], True)],
            1: [(offsets[-1], False)]}[count]


class EncodingGraph:
    """The graph that embeds images by the mean over their crops, finalized.

    Attributes:
        outputs: embeddings r, float32 (B, D).

    Args:
        backbone: one of `backbones.BACKBONES`.
        crops (int): V: 10, 5, 2 or 1, as of `crops_of`.
        device: as of `session.device_name`; several share the images.
        unit: whether embeddings are scaled to length 1, as those of fitted codebooks are.
    """

    def __init__(self, backbone, crops, device, unit=False):
        self._crops, self._unit = crops, unit
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.device(first_device(device)):
            self.images = tf.placeholder(tf.uint8, [None, IMAGE_SIDE, IMAGE_SIDE, 3])  # (B, 256, 256, 3)
            self.variables, self._first_values = layers.make_variables(self._layers(backbone), trainable=())
            self.outputs = in_towers(lambda images, _: self._outputs(backbone, images), self.images, device)
            self._initialize = tf.global_variables_initializer()
            self.graph.finalize()

    def _layers(self, backbone):
        return backbone.LAYERS

    def _crops_of(self, backbone, images):
        """All crops of images, uint8 (V·B, SIDE, SIDE, 3)."""
        parts = []
        for (top, left), flip in crops_of(self._crops, backbone.SIDE):
            seen = tf.reverse(images, [2]) if flip else images
            parts.append(seen[:, top:top + backbone.SIDE, left:left + backbone.SIDE])
        return tf.concat(parts, 0)

    def _outputs(self, backbone, images):
        outputs, _ = layers.embed(backbone, self._crops_of(backbone, images), self.variables)  # (V·B, D)
        embeddings = tf.reduce_mean(tf.reshape(outputs, [self._crops, -1, DIMENSIONS]), 0)
        return tf.nn.l2_normalize(embeddings, 1) if self._unit else embeddings

    def initialize(self, session, weights):
        """Take `weights`, `{layer: [kernel, bias]}`."""
        session.run(self._initialize, layers.feed_weights(self._first_values, weights))


class FeatureGraph(EncodingGraph):
    """The same without the last layer: outputs are the features of each crop, float32 (B, V, F)."""

    def _layers(self, backbone):
        return {layer: shape for layer, shape in backbone.LAYERS.items() if layer != layers.LAST}

    def _outputs(self, backbone, images):
        outputs, _ = backbone.features(self._crops_of(backbone, images), self.variables)  # (V·B, F)
        return tf.transpose(tf.reshape(outputs, [self._crops, -1, backbone.FEATURES]), [1, 0, 2])


class PhotoNetwork:
    """What stands ready to turn photos into vectors; while it runs, the next photos are decoded.

    A subclass gives `outputs`, a function of images, uint8 (B, …), that gives float32 (B, …).

    Attributes:
        resize: function of a decoded image, uint8 (h, w, 3), that gives the image that `outputs` takes; such an image
            stays as it is.

    Args:
        at_once: images a run.
        runs: how many may run at the same time.
    """

    def __init__(self, resize, at_once, runs=1):
        self.resize = resize
        self._at_once, self._runs = at_once, runs
        self._turn = threading.Semaphore(runs)

    def embed(self, paths, what="embedding"):
        """Vectors of N image files, float32 (N, …); `what` is told where it takes long. Raises UserError."""
        return np.concatenate(list(self.blocks(paths, what)))

    def blocks(self, paths, what="embedding"):
        """The same in parts, (B, …) each, as they are made."""
        store = ImageStore(paths, resize=self.resize)
        with progress(total=len(paths), desc=what, unit="image") as bar:
            for rows, outputs, _ in self._run(lambda rows: (store.images(rows), {}), len(paths)):
                _check_finite(outputs, paths[rows.start:rows.stop])
                bar.update(len(rows))
                yield outputs

    def embed_sound(self, paths, advance):
        """Embeddings of the image files that can be decoded, float32 (n, D), and {row: what is wrong} of the others.

        `advance(images)` is told how many more were looked at.
        """
        parts, faults = [np.empty((0, DIMENSIONS), np.float32)], {}
        for rows, embeddings, bad in self._run(
                lambda rows: decodable_images(paths[rows.start:rows.stop], self.resize), len(paths)):
            parts.append(embeddings)
            faults |= bad
            advance(len(rows))
        embeddings = np.concatenate(parts)
        _check_finite(embeddings, [path for row, path in enumerate(paths) if row not in faults])
        return embeddings, faults

    def _run(self, load, count):
        """For each run its rows, what it gives of the sound images, and {row: what is wrong}.

        `load(rows)` gives the sound images, uint8 (B, …), and {place in rows: what is wrong} of the others.
        """
        def run(rows):
            images, faults = load(rows)
            with self._turn:
                outputs = self.outputs(images) if len(images) else np.empty((0, DIMENSIONS), np.float32)
            return rows, outputs, {rows[place]: fault for place, fault in faults.items()}

        runs = (range(start, min(start + self._at_once, count)) for start in range(0, count, self._at_once))
        return prefetch(run, runs, self._runs + RUNS_AHEAD, workers=self._runs + 1)  # the one more decodes


class Encoder(PhotoNetwork):
    """A trained network that stands ready to embed images, float32 (N, D).

    Args:
        weights: `{layer: [kernel, bias]}`, which tell the backbone.
        crops, device, unit: as of EncodingGraph.
        precision: as of `session.open_session`.
    Raises UserError if the weights are those of a last layer alone.
    """

    make_graph = EncodingGraph

    def __init__(self, weights, crops, device, precision=PRECISIONS[0], **options):
        backbone = of_weights(weights)
        if backbone is None:
            raise UserError("this checkpoint was trained on features from elsewhere and has no network of its own that "
                            "embeds photos")
        at_once, runs = ((backbone.CROPS_AT_ONCE, min(cores(), RUNS_AT_ONCE)) if device == "/cpu:0"
                         else (CROPS_AT_ONCE, 1))
        super().__init__(backbone.resize, max(1, at_once // crops), runs)
        self._graph = self.make_graph(backbone, crops, device, **options)
        self._session = open_session(self._graph.graph, precision)
        self._graph.initialize(self._session, weights)

    def outputs(self, images):
        """What the graph gives of images, uint8 (B, 256, 256, 3)."""
        return self._session.run(self._graph.outputs, {self._graph.images: images})


class FeatureExtractor(Encoder):
    """The same, of the features below the last layer: float32 (N, V, F)."""

    make_graph = FeatureGraph


def _check_finite(outputs, paths):
    finite = np.isfinite(outputs).all(tuple(range(1, outputs.ndim)))
    named = ("an image" if isinstance(paths[row], np.ndarray) else str(paths[row]) for row in np.flatnonzero(~finite))
    if bad := list(named):
        raise UserError(f"the network gives NaN or infinite embeddings of {len(bad)} images: {first_few(bad)}")
