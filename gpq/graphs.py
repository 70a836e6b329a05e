"""GPQ's two graphs, of a training step and of encoding, and the checkpoints that the second one reads.

Letters: B labelled and U unlabelled images of a batch, M segments, K codewords, L classes;
a feature has M segments of D numbers.
"""
import numpy as np

from gpq import losses, network, retrieval
from gpq.data import SIDE, standardize
from models.session import finite_operations, open_session, tf
from models.states import step_of
from storage.files import CHECKSUMS, check_checksums, recover_folders
from util import UserError, check_finite, note, one_line, progress

MODEL = "model.ckpt"  # what the names of TensorFlow's files in a checkpoint's folder begin with
ENCODED_AT_ONCE = 250  # images a run of the encoder
BETA_1 = 0.5  # of Adam
DECAY_STEPS, DECAY = 100, 0.95


def learning_rate(first, step):
    """The learning rate of a 0-based step."""
    return first * DECAY ** (step // DECAY_STEPS)


# ---------------------------------------------------------------- the training step

class TrainingGraph:
    """The graph of one training step, finalized.

    Args:
        config: a `gpq.config.Config`.
        classes (int): L.
        loss: "gpq" for the whole method; "classification" for that loss alone, without unlabelled images.
        device: as returned by `session.device_name`.
        convolutions: see `network.CONVOLUTIONS`.
    """

    def __init__(self, config, classes, loss, device, convolutions=network.CONVOLUTIONS):
        shapes = network.parameter_shapes(config.length, config.codewords, classes, convolutions)
        self._semi_supervised = loss == "gpq"
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.device(device):
            self._build_inputs()
            self._build_features(shapes, convolutions)
            self._build_losses(config)
            self._build_train_op()
            self._initialize = tf.global_variables_initializer()
            self._finite = finite_operations(tf.global_variables())
            self.saver = tf.train.Saver(max_to_keep=None)
            self.graph.finalize()

    def _build_inputs(self):
        """images, labels, unlabelled and learning_rate, which are fed."""
        self.images = tf.placeholder(tf.float32, [None, SIDE, SIDE, 3])  # (B, 32, 32, 3)
        self.labels = tf.placeholder(tf.int64, [None])  # (B,)
        self.unlabelled = tf.placeholder(tf.float32, [None, SIDE, SIDE, 3])  # (U, 32, 32, 3)
        self.learning_rate = tf.placeholder(tf.float32, [])

    def _build_features(self, shapes, convolutions):
        """variables, features (B, M·D), target_features (U, M·D), and the update of the moving averages."""
        self.variables, self._first_values = network.make_variables(shapes)
        averages = network.MovingAverages(training=True, convolutions=convolutions)
        self.features, statistics = network.extract_features(
            self.images, self.variables, averages, True, convolutions)
        self._update = averages.update(statistics)
        if self._semi_supervised:
            self.target_features, statistics = network.extract_features(
                self.unlabelled, self.variables, averages, True, convolutions)
            with tf.control_dependencies([self._update]):
                self._update = averages.update(statistics)

    def _build_losses(self, config):
        """hash L_N-PQ, cls L_cls, ent L_SEM and their weighted sum, loss."""
        prototypes = losses.intra_normalize(self.variables[network.PROTOTYPES], config.n_book)  # (L, M·D)
        codebooks = losses.soft_assign(prototypes, self.variables[network.CODEBOOKS], config.n_book, config.alpha)  # Z'
        f = losses.intra_normalize(self.features, config.n_book)  # (B, M·D)
        d = losses.soft_assign(codebooks, f, config.n_book, config.alpha)  # (B, M·D)
        self.hash = losses.n_pair_loss(f, d, self.labels, config.n_book)
        self.cls = losses.classification_loss(
            losses.class_logits(f, prototypes, config.n_book, config.beta), self.labels)
        if not self._semi_supervised:
            self.ent, self.loss = tf.zeros([]), self.cls
            return
        g = losses.intra_normalize(losses.reverse_gradient(self.target_features), config.n_book)  # (U, M·D)
        self.ent = losses.entropy_loss(losses.class_logits(g, prototypes, config.n_book, config.beta))
        self.loss = self.hash + config.lambda_1 * self.ent + config.lambda_2 * self.cls

    def _build_train_op(self):
        """train_op: one step of Adam, and the update of the moving averages."""
        optimizer = tf.train.AdamOptimizer(self.learning_rate, beta1=BETA_1)
        self.train_op = tf.group(optimizer.minimize(self.loss), self._update)

    def initialize(self, session, values):
        """Set the variables to `values`, `{name: array}`."""
        session.run(self._initialize, {self._first_values[name]: value for name, value in values.items()})

    def check_finite(self, session, step):
        """Raise UserError if a variable holds NaN or infinite values after a 1-based `step`."""
        check_finite(step, session.run(self._finite))

    def step(self, session, images, labels, unlabelled, rate):
        """One training step at a learning `rate`: loss, hash, cls and ent before the step, four floats."""
        feed = {self.images: images, self.labels: labels, self.learning_rate: rate}
        if self._semi_supervised:
            feed[self.unlabelled] = unlabelled
        return [float(value) for value in
                session.run([self.loss, self.hash, self.cls, self.ent, self.train_op], feed)[:4]]


# ---------------------------------------------------------------- checkpoints

def find_checkpoint(path):
    """The prefix of a checkpoint's files: `path`, or, if that is a folder, the newest checkpoint in it.

    If the folder holds several trainings, the last by name is used. Raises UserError.
    """
    if path.is_dir():
        for folder in list(path.glob("**/")):
            recover_folders(folder)
        found = [index.parent for index in path.glob(f"**/{MODEL}.index") if not index.parent.name.startswith(".")]
        if not found:
            raise UserError(f"{path}: expected a checkpoint of gpq.train in this folder, found none")
        path = max(found, key=lambda state: (state.parent, step_of(state) or 0)) / MODEL
    if not path.with_name(f"{path.name}.index").is_file():
        raise UserError(f"{path}: expected a TensorFlow checkpoint, and {path.name}.index is missing")
    return path


def check_checkpoint(path, config, needed):
    """Raise UserError unless the checkpoint `path` is whole and holds all of `needed`, `{name: shape}`.

    A note is printed for a checkpoint without checksums, such as the release's.
    """
    if not check_checksums(path.with_name(CHECKSUMS)):
        note(f"{path} has no checksums in a {CHECKSUMS} next to it, so damage to it would not be noticed")
    try:
        shapes = tf.train.load_checkpoint(str(path)).get_variable_to_shape_map()
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(f"{path}: this checkpoint cannot be read: {one_line(error)}") from error
    stored = shapes.get(network.CODEBOOKS)
    if stored != list(needed[network.CODEBOOKS]):
        raise UserError(f"{path}: {config.n_book} codebooks of {config.codewords} codewords of {config.len_code} "
                        f"dimensions need Z with shape [{config.codewords}, {config.length}], and the checkpoint's is "
                        f"{stored}: give the --n-book, --bn-word and --len-code of its training")
    for name, shape in needed.items():
        if shapes.get(name) != list(shape):
            raise UserError(f"{path}: expected {name} with shape {list(shape)}, found {shapes.get(name, 'none')}")


# ---------------------------------------------------------------- the encoder

class Encoder:
    """A trained network that computes features.

    Attributes:
        codebooks: Z, raw, float32 (K, M·D).
        prototypes: C, of the classes, raw, float32 (L, M·D).

    Args:
        checkpoint: prefix of the files of a checkpoint, ours or the release's. Raises UserError if it does not fit.
        config: the `gpq.config.Config` that it was trained with.
        classes (int): L.
        device: as returned by `session.device_name`.
        convolutions: see `network.CONVOLUTIONS`.
    """

    def __init__(self, checkpoint, config, classes, device, convolutions=network.CONVOLUTIONS):
        self._n_book = config.n_book
        graph = tf.Graph()
        with graph.as_default(), tf.device(device):
            self._images = tf.placeholder(tf.float32, [None, SIDE, SIDE, 3])  # (B, 32, 32, 3)
            variables, _ = network.make_variables(
                network.parameter_shapes(config.length, config.codewords, classes, convolutions))
            averages = network.MovingAverages(training=False, convolutions=convolutions)
            self._features, _ = network.extract_features(self._images, variables, averages, False, convolutions)
            stored = {**variables, **averages.variables}
            saver = tf.train.Saver(stored)
            graph.finalize()
        check_checkpoint(checkpoint, config, {name: tuple(variable.shape) for name, variable in stored.items()})
        self._session = open_session(graph)
        saver.restore(self._session, str(checkpoint))
        self.codebooks, self.prototypes = self._session.run(
            [variables[network.CODEBOOKS], variables[network.PROTOTYPES]])

    def features(self, images, what):
        """Features, raw, float32 (N, M·D), of images, RGB uint8 (N, 32, 32, 3); `what` names the progress bar."""
        parts = []
        with progress(total=len(images), desc=what, unit="image") as bar:
            for start in range(0, len(images), ENCODED_AT_ONCE):
                batch = images[start:start + ENCODED_AT_ONCE]
                parts.append(self._session.run(self._features, {self._images: standardize(batch)}))
                bar.update(len(batch))
        return np.concatenate(parts)

    def soft_codebooks(self, alpha):
        """Z', the codebooks of training, float32 (K, M·D)."""
        return retrieval.soft_codebooks(self.prototypes, self.codebooks, self._n_book, alpha)
