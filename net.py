"""Training: the experiment from top to bottom, then its parts.

The parts are a step, the schedule, the graph of one gradient step, the alternating optimisation, and the loss. What
the steps see of the images: training_inputs.py; what a training starts from: first_weights.py.
Letters: N images, B images of a batch, T merged tags, D = 300, M codebooks of K = 256 codewords.
"""
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from dataset import find_dataset, load_training
from models import backbones, layers, losses
from models.backbones import LAST
from models.features import photo_features, read_features
from models.first_weights import check_first_weights, first_codebooks, first_weights, read_stored_weights
from models.fitting import fitted_entries
from models.image_model import image_model_record
from models.layers import check_weights
from models.session import (
    check_finite,
    device_name,
    finite_operations,
    first_device,
    in_towers,
    open_session,
    tf,
    write_scalars,
)
from models.states import States, saved_settings
from models.training_inputs import FeatureInputs, PhotoInputs
from quantization import quantizer
from quantization.codebooks import initial_codebooks, update_codebooks
from storage.arrays import CODEBOOKS, write_weights
from storage.files import check_space, reserved_space
from storage.log import log_progress, open_log, plain, provenance
from util import DIMENSIONS, PRECISIONS, StopRequest, UserError, advance, prefetch, progress, stream

HALVING_STEPS = 300  # the learning rate halves every so many steps
# Factors on the gradients, (kernel, bias). Adam divides them out again; the release has them, so they stay.
FACTORS, LAST_FACTORS = (1, 2), (10, 20)
# What the losses are computed in: TensorFlow's rewrite for bfloat16 would take all float32 matrix products.
LOSS_TYPES = {"float32": tf.float32, "bfloat16": tf.float64}
# A factor on the loss that the gradients are divided by again. Those of AlexNet reach from 1e-7 to 0.1, the float16 of
# a GPU from 6e-8 to 65504.
LOSS_SCALES = {"float32": 1, "bfloat16": 2**12}
SOFTMAX_LOSSES = {"MILNCE": losses.multiple_instance_loss, "SOFTMAX": losses.softmax_loss}
CHUNK = 500  # images that share the visiting orders of ICM in training
SECOND_STAGE = 5  # updates of --two-stage: as many as the released 800 steps have
OLDER_OPTIONS = {  # of states from before there was a choice
    "precision": PRECISIONS[0], "backbone": "alexnet", "crops": "random", "views": 1, "temperature": 0.1, "pairs": 0.0,
    "features": None, "final_fit": False}
# what a resumed run may change
FREE_OPTIONS = ("iterations", "gpu", "cache_gb", "root", "save_every", "resume", "weights", "print_path")


# ---------------------------------------------------------------- the experiment

def train(options, target):
    """Read, build, take the steps, and write the checkpoint.

    Args:
        options: those of train.py.
        target: path of the checkpoint, an .npy file.
    """
    backbone = backbones.find(options.backbone)
    folder = find_dataset(options.dataset, options.root)
    training_set = load_training(folder, options.skip_bad, check_images=options.features is None)
    check_first_weights(options)
    log = open_log(options.root / "logs" / f"{target.stem}.log")
    describe(log, training_set)
    files = data_files(options, folder)
    record = {"options": plain(vars(options)), "seed": options.seed, **provenance(files), **image_model_record(files)}
    states = States(target.with_name(f"{target.stem}_state"),
                    saved_settings({**record["options"], **record["fingerprints"]}, FREE_OPTIONS),
                    variables="variables", digits=8, defaults=OLDER_OPTIONS)
    start = states.newest_step() if options.resume else 0
    if start > options.iterations:
        raise UserError(f"the saved state follows step {start}, beyond the {options.iterations} ITERATIONS")

    device = device_name(options.gpu, log.warning, options.precision)
    reading = ThreadPoolExecutor(1).submit(read_stored_weights, options)  # while the graph is built
    inputs = training_inputs(options, folder, training_set, backbone, reading, device, log)
    steps = range(start, options.iterations)
    schedule = Schedule(len(inputs), options.batch_size, options.seed)
    batches = load_batches(inputs, schedule, steps)  # the first is loaded from here on

    factor = quantizer.semantic_factor(training_set.embeddings)  # (D, min(T, D))
    trainable = list(backbone.LAYERS) if options.finetune == "all" else [LAST]
    graph = TrainingGraph(inputs.network, training_set.embeddings, factor, embedding_loss(options), options.dropout,
                          trainable, device, options.precision)
    stored = reading.result()
    frozen = frozen_layers(options, stored, inputs.network, backbone)
    codebooks, has_codebooks = first_codebooks(options, stored, log)
    alternation = AlternatingOptimisation(len(inputs), factor, codebooks, options.seed, has_codebooks)
    joint = not options.two_stage and (options.lambda_ > 0 or not options.final_fit)
    if options.iterations <= schedule.period and not has_codebooks and joint and not options.final_fit:
        log.warning(f"the first update of the codebooks would follow step {schedule.period + 1}, and this run has "
                    f"{options.iterations}: the checkpoint will hold random codebooks.")
    events = tf.summary.FileWriter(str(options.root / "logs" / target.stem))

    with open_session(graph.graph, options.precision) as session:
        if options.resume:
            alternation.restore(states.restore(start, session, graph))
            log.info(f"resumed before step {start + 1}.")
        else:
            graph.initialize(session, first_weights(inputs.network, options, stored, inputs, device, log))
        stored = reading = None  # a quarter of a GB

        def save_state(step):
            states.save(step, session, graph, alternation.tables())
            states.keep_only(step)

        with reserved_space(target, graph.weight_bytes + bytes_of(frozen) + codebooks.nbytes):
            if options.save_every or options.two_stage:
                state_bytes = graph.state_bytes + sum(table.nbytes for table in alternation.tables().values())
                check_space(states.folder, state_bytes * (1 if states.steps() else 2))  # the new beside the old one
            bar = progress(total=len(steps), delay=0, desc="training", unit="step")
            with StopRequest() as stop, events, bar:
                for step, scalars, seconds in take_steps(batches, training_set.tags, schedule, graph, alternation,
                                                         session, options.lr, options.lambda_, joint):
                    advance(bar, scalars["loss/embedding"])
                    log_progress(log, bar, step_line(step, scalars, seconds))
                    write_scalars(events, step + 1, scalars)
                    if stop.signal or (options.save_every and (step + 1) % options.save_every == 0):
                        save_state(step + 1)
                    if stop.signal:
                        log.info(f"{stop.signal.name} came: saved the state after step {step + 1}; --resume goes on "
                                 "from it.")
                        break
            graph.check_finite(session, options.iterations)
            weights = {**frozen, **session.run(graph.variables)}
            if options.two_stage:
                if steps:
                    save_state(options.iterations)  # so that an interrupted second stage begins there
                learn_codebooks(alternation, inputs, weights, options, device)
        checkpoint = {**weights, CODEBOOKS: alternation.codebooks.reshape(-1, DIMENSIONS)}  # C: (M·K, D)
        if options.final_fit:
            checkpoint |= fitted_entries(inputs, weights, options.codebooks, options.seed, device, options.precision,
                                         log)
        write_checkpoint(target, checkpoint, record, save_state, options)
    log.info(f"saved {target}.")


def take_steps(batches, tags, schedule, graph, alternation, session, first_rate, quantization_weight, joint=True):
    """Take the steps; yields each one's 0-based number, `{tag: number}` of its scalars, and its seconds in the graph.

    A step depends on its number, the seed and what came before, and on nothing else.

    Args:
        batches: of `load_batches`.
        tags: CSR uint8 (N, T).
        quantization_weight: λ.
        joint: whether codebooks and codes are learned in turns with the network, as the method does.
    """
    for step, rows, inputs in batches:
        rate = learning_rate(first_rate, step)
        weight = 0.0 if alternation.codes is None else quantization_weight
        seeds = stream(schedule.seed, "dropout", step).integers(2**31, size=(2, 2))
        batch_tags, reconstructions = tags[rows].toarray(), alternation.reconstructions(rows)  # (B, T), (B, D)
        began = time.perf_counter()
        embeddings, embedding_loss, quantization_loss = graph.step(
            session, inputs, batch_tags, reconstructions, rate, weight, seeds)
        seconds = time.perf_counter() - began
        check_finite(step + 1, {"embedding loss": np.isfinite(embedding_loss),
                                "embeddings": np.isfinite(embeddings).all(),
                                "quantization loss": np.isfinite(quantization_loss)})
        alternation.embeddings[rows] = embeddings
        if joint and schedule.updates_after(step):
            alternation.update(step)
            check_finite(step + 1, {"codebooks": np.isfinite(alternation.codebooks).all()})
        yield step, {"learning_rate": rate, "loss/embedding": float(embedding_loss),
                     "loss/quantization": float(quantization_loss)}, seconds


def training_inputs(options, folder, training_set, backbone, reading, device, log):
    """What the steps see of the images: random crops, or fixed features, given or computed.

    `reading`: the future of `read_stored_weights`, which is waited for where features are computed.
    """
    if options.features is not None:
        features = read_features(options.features, "train", folder.split_files("train")[0])[training_set.rows]
        return FeatureInputs(features, options.seed)
    if options.crops == "random":
        return PhotoInputs(training_set.paths, backbone, options.seed, options.cache_gb * 1e9)
    weights = check_weights(reading.result(), backbone.LAYERS, options.weights)
    return FeatureInputs(photo_features(folder, "train", training_set.rows, weights, backbone, options.views, device,
                                        options.precision, options.root, log), options.seed)


def frozen_layers(options, stored, network, backbone):
    """`{layer: [kernel, bias]}` of the backbone's layers that the network does not hold; none of features from
    elsewhere."""
    if options.features is not None:
        return {}
    return {layer: stored[layer] for layer in backbone.LAYERS if layer not in network.LAYERS}


def load_batches(inputs, schedule, steps):
    """An iterator over the steps' batches, each loaded during the step before: the step's number, rows, int64 (B,), and
    what the network sees of these images, (B, …)."""
    def load(step):
        rows = schedule.rows(step)
        return step, rows, inputs.batch(rows, step)
    return prefetch(load, steps)


def learn_codebooks(alternation, inputs, weights, options, device):
    """The second of two stages: codebooks and codes of the trained network's embeddings of the plain centre."""
    alternation.embeddings = inputs.embeddings(weights, device, options.precision, unit=False)
    for update in range(SECOND_STAGE):
        alternation.update(options.iterations + update)


def write_checkpoint(target, checkpoint, record, save_state, options):
    """Write `{layer: [kernel, bias], "C": codebooks}`. Where that fails the state is kept, and UserError raised."""
    try:
        write_weights(target, checkpoint, record)
    except OSError as error:
        failure = f"{target} could not be written ({error.strerror})"
        try:
            if not options.two_stage:  # the state before its second stage is saved already
                save_state(options.iterations)
        except (OSError, UserError) as second:
            raise UserError(f"{failure}, nor could the state after the last step ({second})") from error
        raise UserError(f"{failure}; the state after the last step is saved: --resume writes the checkpoint once "
                        "that is possible") from error


# ---------------------------------------------------------------- reports

def describe(log, training_set):
    """Log what the training set holds."""
    images, tags = training_set.tags.shape
    log.info(f"{images} training images, {tags} merged tags, {training_set.tags.nnz / images:.1f} tags an image; "
             f"{training_set.untagged} images have none, {training_set.skipped} bad images were left out.")


def step_line(step, scalars, seconds):
    """The release's line of a 0-based step."""
    return (f"step [{step + 1:4d}], lr [{scalars['learning_rate']:.7f}], embedding loss "
            f"[{scalars['loss/embedding']:7.4f}], quantization loss [{scalars['loss/quantization']:7.4f}], "
            f"{seconds:5.2f} sec/batch.")


def data_files(options, folder):
    """`{name: path}` of all files that the result depends on."""
    files = [*folder.split_files("train"), folder.tag_embeddings, folder.merge_map]
    if options.backbone_init == "file" and options.weights is not None:
        files.append(options.weights)
    if options.features is not None:
        files.append(options.features)
    return {path.name: path for path in files}


# ---------------------------------------------------------------- schedule

def learning_rate(first, step):
    """The learning rate of a 0-based step."""
    return first * 0.5 ** (step // HALVING_STEPS)


@dataclass(frozen=True)
class Schedule:
    """Which images each step sees and when the codebooks are updated, from nothing but these numbers.

    With p = 2·⌈N/B⌉, an update follows the gradient step of the 0-based steps p, 2p, …; it leaves the epoch it
    interrupts and begins a fresh permutation. An epoch is ⌊N/B⌋ full batches; a set smaller than B is one batch.
    """
    images: int  # N
    batch_size: int
    seed: int

    @property
    def period(self):
        """p, steps between two updates."""
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

    Attributes:
        weight_bytes, state_bytes (int): what the network's variables take, and all variables with Adam's.

    Args:
        network: one of `backbones.BACKBONES`, or a `head.Head`.
        tag_embeddings: W, float32 (T, D).
        factor: S of `quantizer.semantic_factor`, float32 (D, min(T, D)).
        embedding_loss: function of embeddings (B, D), tags (B, T) and W that gives a scalar.
        dropout (float): rate before the last layers.
        trainable: names of the layers that are trained.
        device: as of `session.device_name`. Of several, each embeds a part of the batch; the losses of the whole batch
            are computed on the first, which holds the variables.
        precision: that of the session which runs the graph.
    """

    def __init__(self, network, tag_embeddings, factor, embedding_loss, dropout, trainable, device,
                 precision=PRECISIONS[0]):
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.device(first_device(device)):
            self._build_inputs(*network.INPUT, len(tag_embeddings))
            self._build_embeddings(network, trainable, dropout, device)
            self.weight_bytes = bytes_of_variables()
            self._build_losses(tag_embeddings, factor, embedding_loss, LOSS_TYPES[precision])
            self._build_train_op(LOSS_SCALES[precision])
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

    def _build_embeddings(self, network, trainable, rate, device):
        """variables and embeddings r, float32 (B, D)."""
        def embed(inputs, tower):
            def dropout(x, index):
                if rate == 0:
                    return x
                kept = tf.random.stateless_uniform(tf.shape(x), self.dropout_seeds[index] + tower) >= rate
                return x * tf.cast(kept, tf.float32) / (1 - rate)
            return layers.embed(network, inputs, self.variables, dropout)[0]

        self.variables, self._first_values = layers.make_variables(network.LAYERS, trainable)
        self.embeddings = in_towers(embed, self.inputs, device)

    def _build_losses(self, tag_embeddings, factor, embedding_loss, kind):
        """embedding_loss L_emb and quantization_loss λ·L_q of type `kind`; their sum is what is minimised."""
        embeddings, tags, reconstructions, weight = [tf.cast(tensor, kind) for tensor in (
            self.embeddings, self.tags, self.reconstructions, self.quantization_weight)]
        self.embedding_loss = embedding_loss(embeddings, tags, tf.constant(tag_embeddings, kind))
        self.quantization_loss = weight * losses.quantization_loss(
            embeddings, reconstructions, tf.constant(factor, kind))

    def _build_train_op(self, scale):
        """train_op: one Adam step on the scaled gradients; `scale`: of the loss."""
        optimizer = tf.train.AdamOptimizer(self.learning_rate)
        factors = {id(variable): factor for layer, pair in self.variables.items()
                   for variable, factor in zip(pair, LAST_FACTORS if layer == layers.LAST else FACTORS, strict=True)}
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

    def step(self, session, inputs, tags, reconstructions, rate, quantization_weight, dropout_seeds):
        """One gradient step: embeddings r before it, float32 (B, D), L_emb and λ·L_q."""
        fetches = [self.embeddings, self.embedding_loss, self.quantization_loss, self.train_op]
        return session.run(fetches, {
            self.inputs: inputs, self.tags: tags, self.reconstructions: reconstructions,
            self.learning_rate: rate, self.quantization_weight: quantization_weight,
            self.dropout_seeds: dropout_seeds})[:3]


def bytes_of(weights):
    """What `{layer: [kernel, bias]}` take."""
    return sum(array.nbytes for pair in weights.values() for array in pair)


def bytes_of_variables():
    """What the variables take that the graph has by now."""
    return sum(variable.shape.num_elements() * variable.dtype.size for variable in tf.global_variables())


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
            self.codebooks = initial_codebooks(
                self.embeddings, self.codebooks, stream(self._seed, "k-means", step))
        self.codes = quantizer.encode(
            self.embeddings, self.codebooks, self._factor, stream(self._seed, "icm", step), CHUNK)
        self.codebooks = update_codebooks(self.embeddings, self.codes, self.codebooks)

    def tables(self):
        """`{name: array}` of all that a saved state has of this."""
        codes = np.empty((0, 0), np.uint8) if self.codes is None else self.codes
        return {"embeddings": self.embeddings, "codebooks": self.codebooks, "codes": codes}

    def restore(self, tables):
        """Go back to `tables` of a saved state."""
        self.embeddings, self.codebooks = tables["embeddings"], tables["codebooks"]
        self.codes = tables["codes"] if tables["codes"].size else None


# ---------------------------------------------------------------- the loss of the command line

def embedding_loss(options):
    """The loss of the command line as a function of embeddings, tags and tag embeddings."""
    if options.loss in SOFTMAX_LOSSES:
        return partial(softmax_and_pairs, SOFTMAX_LOSSES[options.loss], options.temperature, options.pairs)
    if options.loss == "WDHT":
        return partial(losses.wdht_loss, margin=options.margin, l2_norm=not options.no_l2_norm)
    return partial(losses.adaptive_margin_loss, gamma=options.gamma,
                   fixed_margin=options.margin if options.fixed_margin else None,
                   l2_norm=not options.no_l2_norm, negative_sampling=options.negative_sampling)


def softmax_and_pairs(softmax, temperature, weight, embeddings, tags, tag_embeddings):
    """One of the losses by softmax over the tags, and `weight` times that of pairs of images."""
    loss = softmax(embeddings, tags, tag_embeddings, temperature)
    return loss + weight * losses.pair_loss(embeddings, tags, temperature) if weight else loss
