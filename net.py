"""Training: the schedule, the graph of one gradient step, the alternating optimisation, and resumable states.

Letters: N images, B images of a batch, T merged tags, D = 300, M codebooks of K = 256 codewords.
"""
import shutil
import time
from dataclasses import dataclass

import numpy as np

import quantizer
from backbones import alexnet, layers
from image_files import CROP_SIDE, random_crops
from losses import quantization_loss
from session import check_finite, finite_operations, first_device, in_towers, save_variables, tf
from storage.safe_files import CHECKSUMS, check_checksums, check_settings, recover_folders, replacing_folder, write_json
from util import DIMENSIONS, PRECISIONS, UserError, stream

HALVING_STEPS = 300  # the learning rate halves every so many steps
# Factors on the gradients, (kernel, bias). Adam divides them out again; the release has them, so they stay.
FACTORS, LAST_FACTORS = (1, 2), (10, 20)
# What the losses are computed in: TensorFlow's rewrite for bfloat16 would take all float32 matrix products.
LOSS_TYPES = {"float32": tf.float32, "bfloat16": tf.float64}
# A factor on the loss that the gradients are divided by again. Those of AlexNet reach from 1e-7 to 0.1, the float16 of
# a GPU from 6e-8 to 65504.
LOSS_SCALES = {"float32": 1, "bfloat16": 2**12}
CHUNK = 500  # images that share the visiting orders of ICM in training
TABLES = "quantizer.npz"  # in a state's folder, beside the variables
VARIABLES = "variables"
SETTINGS = "settings.json"


# ---------------------------------------------------------------- schedule

def learning_rate(first, step):
    """The learning rate of a 0-based step."""
    return first * 0.5 ** (step // HALVING_STEPS)


@dataclass(frozen=True)
class Schedule:
    """Which images each step sees and when the codebooks are updated, from nothing but these numbers.

    With P = 2·⌈N/B⌉, an update follows the gradient step of the 0-based steps P, 2P, …; it leaves the epoch it
    interrupts and begins a fresh permutation. An epoch is ⌊N/B⌋ full batches; a set smaller than B is one batch.
    """
    images: int  # N
    batch_size: int
    seed: int

    @property
    def period(self):
        """P, steps between two updates."""
        return 2 * -(-self.images // self.batch_size)

    def updates_after(self, step):
        """Whether the codebooks are updated after the gradient step of this 0-based step."""
        return step > 0 and step % self.period == 0

    def rows(self, step):
        """The images of a 0-based step, int64 (B,)."""
        batch = min(self.batch_size, self.images)  # B
        updates = max(step - 1, 0) // self.period  # before this step
        first = updates * self.period + 1 if updates else 0  # step after the last update
        epoch, place = divmod(step - first, self.images // batch)
        permutation = stream(self.seed, "permutation", updates, epoch).permutation(self.images)
        return permutation[place * batch:(place + 1) * batch]


# ---------------------------------------------------------------- graph

class TrainingGraph:
    """The graph of one gradient step, finalized. `step` runs it.

    Args:
        words: W, float32 (T, D).
        embedding_loss: function of embeddings (B, D), labels (B, T) and W that gives a scalar.
        dropout (float): rate after fc6 and fc7.
        trainable: names of the layers that are trained.
        device: as of `session.device_name`. Of several, each embeds a part of the batch; the losses of the whole batch
            are computed on the first, which holds the variables.
        backbone: `LAYERS`, `LAST` and `embed` as in alexnet.py.
        image_shape: of what the backbone takes.
        precision: that of the session which runs the graph.
    """

    def __init__(self, words, embedding_loss, dropout, trainable, device, backbone=alexnet,
                 image_shape=(CROP_SIDE, CROP_SIDE, 3), precision=PRECISIONS[0]):
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.device(first_device(device)):
            self._build_inputs(image_shape, len(words))
            self._build_embeddings(backbone, trainable, dropout, device)
            self._build_losses(words, embedding_loss, LOSS_TYPES[precision])
            self._build_train_op(backbone.LAST, LOSS_SCALES[precision])
            self._initialize = tf.global_variables_initializer()
            self._finite = finite_operations(tf.global_variables())
            self.saver = tf.train.Saver(max_to_keep=None)
            self.graph.finalize()

    def _build_inputs(self, image_shape, tag_count):
        """images, labels, reconstructions, learning_rate, quantization_weight and dropout_seeds."""
        self.images = tf.placeholder(tf.uint8, [None, *image_shape])  # (B, 227, 227, 3)
        self.labels = tf.placeholder(tf.uint8, [None, tag_count])  # (B, T)
        self.reconstructions = tf.placeholder(tf.float32, [None, DIMENSIONS])  # (B, D), q
        self.learning_rate = tf.placeholder(tf.float32, [])
        self.quantization_weight = tf.placeholder(tf.float32, [])  # λ, 0 until the codebooks exist
        self.dropout_seeds = tf.placeholder(tf.int32, [2, 2])

    def _build_embeddings(self, backbone, trainable, rate, device):
        """variables and embeddings r, float32 (B, D)."""
        def embed(images, tower):
            def dropout(x, index):
                if rate == 0:
                    return x
                kept = tf.random.stateless_uniform(tf.shape(x), self.dropout_seeds[index] + tower) >= rate
                return x * tf.cast(kept, tf.float32) / (1 - rate)
            return backbone.embed(images, self.variables, dropout)[0]

        self.variables, self._first_values = layers.make_variables(backbone.LAYERS, trainable)
        self.embeddings = in_towers(embed, self.images, device)

    def _build_losses(self, words, embedding_loss, kind):
        """embedding_loss L_emb and quantization_loss λ·L_q of type `kind`; their sum is what is minimised."""
        embeddings, labels, reconstructions, weight = [tf.cast(tensor, kind) for tensor in (
            self.embeddings, self.labels, self.reconstructions, self.quantization_weight)]
        factor = tf.constant(quantizer.semantic_factor(words), kind)  # (D, min(T, D))
        self.embedding_loss = embedding_loss(embeddings, labels, tf.constant(words, kind))
        self.quantization_loss = weight * quantization_loss(embeddings, reconstructions, factor)

    def _build_train_op(self, last, scale):
        """train_op: one Adam step on the scaled gradients; `scale`: of the loss."""
        optimizer = tf.train.AdamOptimizer(self.learning_rate)
        factors = {id(variable): factor for layer, pair in self.variables.items()
                   for variable, factor in zip(pair, LAST_FACTORS if layer == last else FACTORS, strict=True)}
        gradients = optimizer.compute_gradients((self.embedding_loss + self.quantization_loss) * scale,
                                                colocate_gradients_with_ops=True)
        self.train_op = optimizer.apply_gradients(
            [(gradient * (factors[id(variable)] / scale), variable) for gradient, variable in gradients])

    def initialize(self, session, weights):
        """Begin with `weights`, `{layer: [kernel, bias]}`."""
        session.run(self._initialize, layers.feed_weights(self._first_values, weights))

    def check_finite(self, session, step):
        """Raise UserError if a variable holds NaN or infinite values after a 1-based `step`."""
        check_finite(step, session.run(self._finite))

    def step(self, session, images, labels, reconstructions, rate, quantization_weight, dropout_seeds):
        """One gradient step: embeddings r before it, float32 (B, D), L_emb and λ·L_q."""
        fetches = [self.embeddings, self.embedding_loss, self.quantization_loss, self.train_op]
        return session.run(fetches, {
            self.images: images, self.labels: labels, self.reconstructions: reconstructions,
            self.learning_rate: rate, self.quantization_weight: quantization_weight,
            self.dropout_seeds: dropout_seeds})[:3]


# ---------------------------------------------------------------- alternating optimisation

class AlternatingOptimisation:
    """The codebooks, the codes and the table of embeddings, updated in turns with the network.

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
            self.codebooks = quantizer.initial_codebooks(
                self.embeddings, self.codebooks, stream(self._seed, "k-means", step))
        self.codes = quantizer.encode(
            self.embeddings, self.codebooks, self._factor, stream(self._seed, "icm", step), CHUNK)
        self.codebooks = quantizer.update_codebooks(self.embeddings, self.codes, self.codebooks)


# ---------------------------------------------------------------- a step of the whole

@dataclass(frozen=True)
class StepReport:
    """What a step has to tell; `seconds` are those of the session's run alone."""
    rate: float
    embedding_loss: float
    quantization_loss: float  # times λ
    seconds: float


class Trainer:
    """Takes the steps of a training: each depends on its number, the seed and what came before, nothing else."""

    def __init__(self, training_set, store, schedule, graph, alternation, first_rate, quantization_weight,
                 joint=True):
        """`joint`: whether codebooks and codes are learned in turns with the network, as the method does."""
        self._tags = training_set.tags
        self._store = store
        self._schedule = schedule
        self._graph = graph
        self._alternation = alternation
        self._first_rate = first_rate
        self._quantization_weight = quantization_weight
        self._joint = joint

    def load(self, step):
        """The batch of a 0-based step: rows, int64 (B,), and crops, uint8 (B, 227, 227, 3)."""
        rows = self._schedule.rows(step)
        return rows, random_crops(self._store, rows, stream(self._schedule.seed, "crops", step))

    def run(self, session, step, rows, images):
        """The gradient step on a batch of `load`, and the update of the codebooks if one follows."""
        alternation = self._alternation
        rate = learning_rate(self._first_rate, step)
        weight = 0.0 if alternation.codes is None else self._quantization_weight
        seeds = stream(self._schedule.seed, "dropout", step).integers(2**31, size=(2, 2))
        labels, reconstructions = self._tags[rows].toarray(), alternation.reconstructions(rows)
        began = time.perf_counter()
        embeddings, embedding, quantization = self._graph.step(
            session, images, labels, reconstructions, rate, weight, seeds)
        seconds = time.perf_counter() - began
        check_finite(step + 1, {"embedding loss": np.isfinite(embedding), "embeddings": np.isfinite(embeddings).all(),
                                "quantization loss": np.isfinite(quantization)})
        alternation.embeddings[rows] = embeddings
        if self._joint and self._schedule.updates_after(step):
            alternation.update(step)
            check_finite(step + 1, {"codebooks": np.isfinite(alternation.codebooks).all()})
        return StepReport(rate, float(embedding), float(quantization), seconds)


# ---------------------------------------------------------------- resumable states

class States:
    """The resumable states of a training in `folder`, one at a time: `step_N/` holds all that step N begins from.

    Args:
        settings: what a run that resumes must share with the one that saved, plain containers.
    """

    def __init__(self, folder, graph, alternation, settings):
        self._folder = folder
        self._graph = graph
        self._alternation = alternation
        self._settings = settings

    def save(self, step, session):
        """Save the state that the 0-based `step` begins from, whole or not at all; then drop older ones.

        Raises UserError, and keeps the older ones, if a variable is not finite.
        """
        self._graph.check_finite(session, step)
        target, alternation = self._path(step), self._alternation
        codes = np.empty((0, 0), np.uint8) if alternation.codes is None else alternation.codes
        with replacing_folder(target) as new:
            save_variables(self._graph.saver, session, new / VARIABLES)
            np.savez(new / TABLES, embeddings=alternation.embeddings, codebooks=alternation.codebooks, codes=codes)
            write_json(new / SETTINGS, self._settings)
        for other in self._folder.iterdir():
            if other != target:
                shutil.rmtree(other)

    def newest_step(self):
        """The 0-based step that the newest state begins. Raises UserError if there is none."""
        recover_folders(self._folder)
        states = sorted(self._folder.glob("step_*"))
        if not states:
            raise UserError(f"{self._folder}: there is no saved state to resume; --save-every writes one")
        return int(states[-1].name.removeprefix("step_"))

    def restore(self, session):
        """Go back to the newest state. Raises UserError if it was altered or is of a training with other settings."""
        newest = self._path(self.newest_step())
        check_checksums(newest / CHECKSUMS)
        check_settings(newest / SETTINGS, self._settings, {"precision": PRECISIONS[0]})
        self._graph.saver.restore(session, str(newest / VARIABLES))
        with np.load(newest / TABLES, allow_pickle=False) as tables:
            self._alternation.embeddings = tables["embeddings"]
            self._alternation.codebooks = tables["codebooks"]
            self._alternation.codes = tables["codes"] if tables["codes"].size else None

    def _path(self, step):
        return self._folder / f"step_{step:08d}"
