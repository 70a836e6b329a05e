"""The training network: AlexNet or the last layer alone, its losses, the Adam step, and the alternating update of codes
and codebooks (sections 5 to 7 of the method).

Letters: N images, B images of a batch, T merged tags, D = 300, M codebooks of K = 256 codewords.
"""
from functools import partial

import numpy as np

from models import alexnet, layers, losses
from models.checkpoint import CROP_SIDE, LAST, checked_layers, is_last_layer_alone
from models.encoder import embed
from models.session import finite_operations, open_session, tf
from net_val import ValidationNetwork
from quantization import quantizer
from quantization.codebooks import initial_codebooks, random_codebooks, update_codebooks
from storage.arrays import CODEBOOKS
from storage.images import IMAGE_SIDE, ImageStore, random_crops
from util import DIMENSIONS, UserError, check_finite, stream

# Factors on the gradients, (kernel, bias). Adam divides them out again; the release has them, so they stay.
FACTORS, LAST_FACTORS = (1, 2), (10, 20)
INITIAL_IMAGES = 64  # of the batch that sets the scale of random weights
CHUNK = 500  # images that share the visiting orders of ICM in training


# ---------------------------------------------------------------- inputs

class PhotoInputs:
    """N photos, of which AlexNet sees another random crop in each step.

    Args:
        paths: N image files.
        cache_bytes: memory for decoded images.
        device: from `session.device_name`.
    """
    network = alexnet

    def __init__(self, paths, seed, cache_bytes, device):
        self._store, self._seed, self._device = ImageStore(paths, cache_bytes), seed, device

    def __len__(self):
        return len(self._store)

    def batch(self, rows, step):
        """Crops of the images `rows` in a 0-based step, uint8 (B, 227, 227, 3)."""
        return random_crops(self._store, rows, CROP_SIDE, stream(self._seed, "crops", step))

    def centres(self, rows):
        """The centres of the images `rows`, uint8 (B, 227, 227, 3)."""
        middle = np.full((len(rows), 2), (IMAGE_SIDE - CROP_SIDE) // 2)
        return self._store.crops(rows, CROP_SIDE, middle, np.zeros(len(rows), bool))

    def embeddings(self, weights, unit):
        """Embeddings of the centres of all images, without dropout, float32 (N, D); `unit`: of length 1."""
        network = ValidationNetwork(1, self._device)
        return network.embed_photos(weights, self._store.paths, unit, "embedding training images")


class FeatureInputs:
    """Fixed features of N images, float (N, F), which the last layer sees."""

    def __init__(self, features):
        self.network, self._features = layers.Head(features.shape[1]), features

    def __len__(self):
        return len(self._features)

    def batch(self, rows, _step):
        """Features of the images `rows`, float32 (B, F)."""
        return self._features[rows].astype(np.float32)

    def embeddings(self, weights, unit):
        """Embeddings of all images, without dropout, float32 (N, D); `unit`: of length 1."""
        return embed(self._features[:, None], weights[LAST], unit)


def first_weights(inputs, stored, weights_file, seed, device):
    """`{layer: [kernel, bias]}` that training starts from: the entries of a file, and a fresh last layer where it has
    none of the right shape. Raises UserError if another layer is missing, or if the file holds a last layer alone, of
    other features.

    Args:
        inputs: PhotoInputs or FeatureInputs.
        stored: entries of `weights_file`, or None for random weights of unit variance.
    """
    if stored is None and inputs.network is alexnet:
        rows = stream(seed, "first images").permutation(len(inputs))[:INITIAL_IMAGES]
        return layers.lsuv_weights(inputs.centres(rows), stream(seed, "weights"), device)
    shapes = inputs.network.LAYERS
    weights = checked_layers(stored or {}, shapes, weights_file)
    if LAST not in weights:
        if is_last_layer_alone(stored or {}):
            raise UserError(f"{weights_file}: expected {LAST} for {shapes[LAST][0]:,} features an image, found one for "
                            f"{len(stored[LAST][0]):,}")
        weights[LAST] = layers.fresh_last_layer(shapes[LAST][0], stream(seed, LAST))
    return weights


# ---------------------------------------------------------------- graph

class TrainingNetwork:
    """The graph of one gradient step, finalized. `step` runs it.

    Attributes:
        weight_bytes, state_bytes (int): the size of the network's variables, and of all variables with Adam's.

    Args:
        network: the module `models.alexnet`, or a `layers.Head`.
        tag_embeddings: W, float32 (T, D).
        factor: S of `quantizer.semantic_factor`, float32 (D, min(T, D)).
        embedding_loss: function of embeddings (B, D), tags (B, T) and W that gives a scalar.
        dropout (float): rate before the last layers.
        trainable: names of the layers that are trained.
        device: from `session.device_name`.
    """

    def __init__(self, network, tag_embeddings, factor, embedding_loss, dropout, trainable, device):
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.device(device):
            self._build_inputs(*network.INPUT, len(tag_embeddings))
            self._build_embeddings(network, trainable, dropout)
            self.weight_bytes = bytes_of_variables()
            self._build_losses(tag_embeddings, factor, embedding_loss)
            self._build_train_op()
            self.state_bytes = bytes_of_variables()
            self._initialize = tf.global_variables_initializer()
            self._finite = finite_operations(tf.global_variables())
            self.saver = tf.train.Saver(max_to_keep=None)
            self.graph.finalize()

    def _build_inputs(self, kind, shape, tag_count):
        """inputs, tags, reconstructions, learning_rate, quantization_weight and dropout_seeds."""
        self.inputs = tf.placeholder(kind, [None, *shape])  # (B, 227, 227, 3) of AlexNet
        self.tags = tf.placeholder(tf.uint8, [None, tag_count])  # (B, T)
        self.reconstructions = tf.placeholder(tf.float32, [None, DIMENSIONS])  # (B, D), q
        self.learning_rate = tf.placeholder(tf.float32, [])
        self.quantization_weight = tf.placeholder(tf.float32, [])  # λ, 0 until the codebooks exist
        self.dropout_seeds = tf.placeholder(tf.int32, [2, 2])

    def _build_embeddings(self, network, trainable, rate):
        """variables and embeddings r, float32 (B, D)."""
        def dropout(x, index):
            if rate == 0:
                return x
            kept = tf.random.stateless_uniform(tf.shape(x), self.dropout_seeds[index]) >= rate
            return x * tf.cast(kept, tf.float32) / (1 - rate)

        self.variables, self._first_values = layers.make_variables(network.LAYERS, trainable)
        self.embeddings, _ = layers.embed(network, self.inputs, self.variables, dropout)

    def _build_losses(self, tag_embeddings, factor, embedding_loss):
        """embedding_loss L_emb and quantization_loss λ·L_q; their sum is what is minimised."""
        tags = tf.cast(self.tags, tf.float32)
        self.embedding_loss = embedding_loss(self.embeddings, tags, tf.constant(tag_embeddings, tf.float32))
        self.quantization_loss = self.quantization_weight * losses.quantization_loss(
            self.embeddings, self.reconstructions, tf.constant(factor, tf.float32))

    def _build_train_op(self):
        """train_op: one Adam step on the scaled gradients."""
        optimizer = tf.train.AdamOptimizer(self.learning_rate)
        factors = {id(variable): factor for layer, pair in self.variables.items()
                   for variable, factor in zip(pair, LAST_FACTORS if layer == LAST else FACTORS, strict=True)}
        gradients = optimizer.compute_gradients(self.embedding_loss + self.quantization_loss,
                                                colocate_gradients_with_ops=True)
        self.train_op = optimizer.apply_gradients(
            [(gradient * factors[id(variable)], variable) for gradient, variable in gradients])

    def open_session(self):
        return open_session(self.graph)

    def events(self, folder):
        """TensorBoard's writer of scalars into a folder."""
        return tf.summary.FileWriter(str(folder))

    def initialize(self, session, weights):
        """Begin with `weights`, `{layer: [kernel, bias]}`."""
        session.run(self._initialize, layers.feed_weights(self._first_values, weights))

    def check_finite(self, session, step):
        """Raise UserError if a variable holds NaN or infinite values after a 1-based `step`."""
        check_finite(step, session.run(self._finite))

    def step(self, session, inputs, tags, reconstructions, rate, quantization_weight, dropout_seeds):
        """One gradient step: embeddings r before it, float32 (B, D), L_emb and λ·L_q."""
        fetches = [self.embeddings, self.embedding_loss, self.quantization_loss, self.train_op]
        return session.run(fetches, {
            self.inputs: inputs, self.tags: tags, self.reconstructions: reconstructions,
            self.learning_rate: rate, self.quantization_weight: quantization_weight,
            self.dropout_seeds: dropout_seeds})[:3]


def bytes_of_variables():
    """The size of the variables that the default graph has so far."""
    return sum(variable.shape.num_elements() * variable.dtype.size for variable in tf.global_variables())


# ---------------------------------------------------------------- alternating update

def first_codebooks(count, stored, seed):
    """The codebooks to start from, float32 (M, K, D), and whether they come from a trained model, whose entries are
    `stored`, or None."""
    codebooks = random_codebooks(count, stream(seed, "codebooks"))
    found = (stored or {}).get(CODEBOOKS)
    if found is None or found.size != codebooks.size:
        return codebooks, False
    return found.reshape(codebooks.shape), True


class AlternatingUpdate:
    """The codebooks, the codes and the table of embeddings, updated alternately with the network.

    Attributes:
        embeddings: each image's r of the last step that saw it, in training mode, float32 (N, D); 0 before.
        codebooks: C, float32 (M, K, D).
        codes: uint8 (N, M), or None before the first update.
    """

    def __init__(self, images, factor, codebooks, seed, has_codebooks=False):
        """`has_codebooks`: whether `codebooks` come from a trained model, so that k-means is not needed."""
        self._factor = factor
        self._seed = seed
        self._has_codebooks = has_codebooks
        self.embeddings = np.zeros((images, DIMENSIONS), np.float32)
        self.codebooks = codebooks
        self.codes = None

    def reconstructions(self, rows):
        """q of some images, float32 (B, D); 0 before the first update."""
        if self.codes is None:
            return np.zeros((len(rows), DIMENSIONS), np.float32)
        return quantizer.reconstruct(self.codes[rows], self.codebooks)

    def update(self, step):
        """Initialise the codebooks the first time; then recompute codes by ICM and codebooks in closed form."""
        if self.codes is None and not self._has_codebooks:
            self.codebooks = initial_codebooks(
                self.embeddings, self.codebooks, stream(self._seed, "k-means", step))
        self.codes = quantizer.encode(
            self.embeddings, self.codebooks, self._factor, stream(self._seed, "icm", step), CHUNK)
        self.codebooks = update_codebooks(self.embeddings, self.codes, self.codebooks)

    def tables(self):
        """`{name: array}` of what is saved with the network's variables, so that training can be resumed."""
        codes = np.empty((0, 0), np.uint8) if self.codes is None else self.codes
        return {"embeddings": self.embeddings, "codebooks": self.codebooks, "codes": codes}

    def restore(self, tables):
        """Go back to `tables` of a saved state."""
        self.embeddings, self.codebooks = tables["embeddings"], tables["codebooks"]
        self.codes = tables["codes"] if tables["codes"].size else None


# ---------------------------------------------------------------- losses

SOFTMAX = {"MILNCE": losses.multiple_instance_loss, "SOFTMAX": losses.softmax_loss}


def softmax_loss(name, temperature, pairs):
    """The loss SOFTMAX or MILNCE, plus `pairs` times that of image pairs, as a function of embeddings, tags and W."""
    def loss(embeddings, tags, tag_embeddings):
        of_tags = SOFTMAX[name](embeddings, tags, tag_embeddings, temperature)
        return of_tags + pairs * losses.pair_loss(embeddings, tags, temperature) if pairs else of_tags
    return loss


def wdht_loss(margin, l2_norm):
    """The hinge of WDHT as a function of embeddings, tags and W."""
    return partial(losses.wdht_loss, margin=margin, l2_norm=l2_norm)


def margin_loss(gamma, fixed_margin, l2_norm, negative_sampling):
    """The cosine margin loss as a function of embeddings, tags and W. `fixed_margin`: None for the adaptive margin."""
    return partial(losses.adaptive_margin_loss, gamma=gamma, fixed_margin=fixed_margin, l2_norm=l2_norm,
                   negative_sampling=negative_sampling)
