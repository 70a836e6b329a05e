"""Training: the experiment from top to bottom, then its parts.

The parts are a step, the schedule, the graph of one gradient step, the alternating optimisation, and what a training
starts from. Letters: N images, B images of a batch, T merged tags, D = 300, M codebooks of K = 256 codewords.
"""
import time
from dataclasses import dataclass
from functools import partial

import numpy as np

import backbones
import losses
import net_val
import quantizer
from backbones import layers
from codebooks import initial_codebooks, random_codebooks, update_codebooks
from dataset import find_dataset, load_training
from image_files import IMAGE_SIDE, ImageStore, random_crops
from session import (
    check_finite,
    device_name,
    finite_operations,
    first_device,
    in_towers,
    open_session,
    tf,
    write_scalars,
)
from storage.arrays import read_weights, write_weights
from storage.run_log import log_progress, open_log, plain, provenance
from storage.safe_files import check_checksums, check_space, reserved_space
from storage.states import States, saved_settings
from util import DIMENSIONS, PRECISIONS, StopRequest, UserError, advance, prefetch, progress, stream

HALVING_STEPS = 300  # the learning rate halves every so many steps
# Factors on the gradients, (kernel, bias). Adam divides them out again; the release has them, so they stay.
FACTORS, LAST_FACTORS = (1, 2), (10, 20)
# What the losses are computed in: TensorFlow's rewrite for bfloat16 would take all float32 matrix products.
LOSS_TYPES = {"float32": tf.float32, "bfloat16": tf.float64}
# A factor on the loss that the gradients are divided by again. Those of AlexNet reach from 1e-7 to 0.1, the float16 of
# a GPU from 6e-8 to 65504.
LOSS_SCALES = {"float32": 1, "bfloat16": 2**12}
CHUNK = 500  # images that share the visiting orders of ICM in training
SECOND_STAGE = 5  # updates of --two-stage: as many as the released 800 steps have
INITIAL_IMAGES = 64  # of the batch that sets the scale of random weights
# what a resumed run may change
FREE_OPTIONS = ("iterations", "gpu", "cache_gb", "root", "save_every", "resume", "weights", "print_path")


# ---------------------------------------------------------------- the experiment

def train(options, target, backbone):
    """Read, build, take the steps, and write the checkpoint.

    Args:
        options: those of train.py.
        target: path of the checkpoint, an .npy file.
        backbone: a key of `backbones.BACKBONES`.
    """
    backbone = backbones.find(backbone)
    folder = find_dataset(options.dataset, options.root)
    training_set = load_training(folder, options.skip_bad)
    check_first_weights(options)
    log = open_log(options.root / "logs" / f"{target.stem}.log")
    describe(log, training_set)
    record = {"options": plain(vars(options)), "seed": options.seed, **provenance(data_files(options, folder))}
    states = States(target.with_name(f"{target.stem}_state"),
                    saved_settings({**record["options"], **record["fingerprints"]}, FREE_OPTIONS),
                    variables="variables", digits=8, defaults={"precision": PRECISIONS[0]})
    start = states.newest_step() if options.resume else 0
    if start > options.iterations:
        raise UserError(f"the saved state follows step {start}, beyond the {options.iterations} ITERATIONS")

    steps = range(start, options.iterations)
    store = ImageStore(training_set.paths, options.cache_gb * 1e9)
    schedule = Schedule(len(store), options.batch_size, options.seed)
    batches = load_batches(store, schedule, backbone.SIDE, steps)  # the first is loaded from here on,
    reading = prefetch(read_stored_weights, [options])  # and the weights are read, while the graph is built

    device = device_name(options.gpu, log.warning, options.precision)
    factor = quantizer.semantic_factor(training_set.embeddings)  # (D, min(T, D))
    trainable = list(backbone.LAYERS) if options.finetune == "all" else [layers.LAST]
    graph = TrainingGraph(backbone, training_set.embeddings, factor, embedding_loss(options), options.dropout,
                          trainable, device, options.precision)
    stored, = reading
    codebooks, has_codebooks = first_codebooks(options, stored, log)
    alternation = AlternatingOptimisation(len(store), factor, codebooks, options.seed, has_codebooks)
    if options.iterations <= schedule.period and not has_codebooks and not options.two_stage:
        log.warning(f"the first update of the codebooks would follow step {schedule.period + 1}, and this run has "
                    f"{options.iterations}: the checkpoint will hold random codebooks.")
    events = tf.summary.FileWriter(str(options.root / "logs" / target.stem))

    with open_session(graph.graph, options.precision) as session:
        if options.resume:
            alternation.restore(states.restore(start, session, graph))
            log.info(f"resumed before step {start + 1}.")
        else:
            graph.initialize(session, first_weights(backbone, options, stored, store, device, log))
        stored = None  # a quarter of a GB

        def save_state(step):
            states.save(step, session, graph, alternation.tables())
            states.keep_only(step)

        with reserved_space(target, graph.weight_bytes + codebooks.nbytes):
            if options.save_every or options.two_stage:
                state_bytes = graph.state_bytes + sum(table.nbytes for table in alternation.tables().values())
                check_space(states.folder, state_bytes * (1 if states.steps() else 2))  # the new beside the old one
            bar = progress(total=len(steps), desc="training", unit="step")
            with StopRequest() as stop, events, bar:
                for step, scalars, seconds in take_steps(batches, training_set.tags, schedule, graph, alternation,
                                                         session, options.lr, options.lambda_, not options.two_stage):
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
            weights = session.run(graph.variables)
            if options.two_stage:
                if steps:
                    save_state(options.iterations)  # so that an interrupted second stage begins there
                learn_codebooks(alternation, training_set.paths, weights, options, device)
        checkpoint = {**weights, "C": alternation.codebooks.reshape(-1, DIMENSIONS)}  # C: (M·K, D)
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
    for step, rows, images in batches:
        rate = learning_rate(first_rate, step)
        weight = 0.0 if alternation.codes is None else quantization_weight
        seeds = stream(schedule.seed, "dropout", step).integers(2**31, size=(2, 2))
        batch_tags, reconstructions = tags[rows].toarray(), alternation.reconstructions(rows)  # (B, T), (B, D)
        began = time.perf_counter()
        embeddings, embedding_loss, quantization_loss = graph.step(
            session, images, batch_tags, reconstructions, rate, weight, seeds)
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


def load_batches(store, schedule, side, steps):
    """An iterator over the steps' batches, each loaded during the step before: the step's number, rows, int64 (B,), and
    crops, uint8 (B, side, side, 3)."""
    def load(step):
        rows = schedule.rows(step)
        return step, rows, random_crops(store, rows, side, stream(schedule.seed, "crops", step))
    return prefetch(load, steps)


def learn_codebooks(alternation, paths, weights, options, device):
    """The second of two stages: codebooks and codes of the trained network's embeddings of the plain centre."""
    encoder = net_val.Encoder(weights, 1, device, options.precision)
    alternation.embeddings = encoder.embed(paths, "embedding training images")
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
    if options.backbone_init == "file":
        files.append(options.weights)
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
        backbone: one of `backbones.BACKBONES`.
        tag_embeddings: W, float32 (T, D).
        factor: S of `quantizer.semantic_factor`, float32 (D, min(T, D)).
        embedding_loss: function of embeddings (B, D), tags (B, T) and W that gives a scalar.
        dropout (float): rate before the last layers.
        trainable: names of the layers that are trained.
        device: as of `session.device_name`. Of several, each embeds a part of the batch; the losses of the whole batch
            are computed on the first, which holds the variables.
        precision: that of the session which runs the graph.
    """

    def __init__(self, backbone, tag_embeddings, factor, embedding_loss, dropout, trainable, device,
                 precision=PRECISIONS[0]):
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.device(first_device(device)):
            self._build_inputs(backbone.SIDE, len(tag_embeddings))
            self._build_embeddings(backbone, trainable, dropout, device)
            self.weight_bytes = bytes_of_variables()
            self._build_losses(tag_embeddings, factor, embedding_loss, LOSS_TYPES[precision])
            self._build_train_op(LOSS_SCALES[precision])
            self.state_bytes = bytes_of_variables()
            self._initialize = tf.global_variables_initializer()
            self._finite = finite_operations(tf.global_variables())
            self.saver = tf.train.Saver(max_to_keep=None)
            self.graph.finalize()

    def _build_inputs(self, side, tag_count):
        """images, tags, reconstructions, learning_rate, quantization_weight and dropout_seeds."""
        self.images = tf.placeholder(tf.uint8, [None, side, side, 3])  # (B, 227, 227, 3)
        self.tags = tf.placeholder(tf.uint8, [None, tag_count])  # (B, T)
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

    def step(self, session, images, tags, reconstructions, rate, quantization_weight, dropout_seeds):
        """One gradient step: embeddings r before it, float32 (B, D), L_emb and λ·L_q."""
        fetches = [self.embeddings, self.embedding_loss, self.quantization_loss, self.train_op]
        return session.run(fetches, {
            self.images: images, self.tags: tags, self.reconstructions: reconstructions,
            self.learning_rate: rate, self.quantization_weight: quantization_weight,
            self.dropout_seeds: dropout_seeds})[:3]


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


# ---------------------------------------------------------------- what a training starts from

def check_first_weights(options):
    """Raise UserError if training is to start from --weights and they are not there."""
    if options.backbone_init == "file" and not options.weights.is_file():
        raise UserError(f"{options.weights}: no such file: training starts from AlexNet's ImageNet weights in the "
                        "release's format (see 'AlexNet weights' in docs/datasets.md), or from random ones with "
                        "--backbone-init lsuv, which learn with LR 1e-5 to 3e-5 and --dropout 0 and collapse without")


def read_stored_weights(options):
    """What the file --weights holds, or None where training starts from random weights."""
    if options.backbone_init != "file":
        return None
    check_checksums(options.weights.with_suffix(".json"))
    return read_weights(options.weights)


def first_weights(backbone, options, stored, store, device, log):
    """`{layer: [kernel, bias]}` to start from. `stored`: of `read_stored_weights`."""
    if stored is None:
        rows = stream(options.seed, "first images").permutation(len(store))[:INITIAL_IMAGES]
        middle = np.full((len(rows), 2), (IMAGE_SIDE - backbone.SIDE) // 2)
        images = store.crops(rows, backbone.SIDE, middle, np.zeros(len(rows), bool))
        return layers.lsuv_weights(backbone, images, stream(options.seed, "weights"), device)
    weights = layers.check_weights(stored, backbone.LAYERS, options.weights)
    if layers.LAST not in weights:
        weights[layers.LAST] = layers.fresh_last_layer(backbone.LAYERS, stream(options.seed, layers.LAST))
    else:
        log.info(f"{layers.LAST} starts from {options.weights}.")
    return weights


def first_codebooks(options, stored, log):
    """The codebooks to start from, float32 (M, K, D), and whether they come from a trained model."""
    codebooks = random_codebooks(options.codebooks, stream(options.seed, "codebooks"))
    found = (stored or {}).get("C")
    if found is None or found.size != codebooks.size:
        return codebooks, False
    log.info(f"the codebooks start from {options.weights}.")
    return found.reshape(codebooks.shape), True


def embedding_loss(options):
    """The loss of the command line as a function of embeddings, tags and tag embeddings."""
    if options.loss == "WDHT":
        return partial(losses.wdht_loss, margin=options.margin, l2_norm=not options.no_l2_norm)
    return partial(losses.adaptive_margin_loss, gamma=options.gamma,
                   fixed_margin=options.margin if options.fixed_margin else None,
                   l2_norm=not options.no_l2_norm, negative_sampling=options.negative_sampling)
