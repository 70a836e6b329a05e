"""GPQ's training: the experiment from top to bottom, then what it starts from."""
import math
from dataclasses import asdict

from gpq import data, network
from gpq.graphs import MODEL, TrainingGraph, learning_rate
from models.session import device_name, open_session, tf, write_scalars
from models.states import States, saved_settings
from storage.files import write_json
from storage.log import log_progress, open_log, plain, provenance
from util import StopRequest, UserError, advance, check_finite, prefetch, progress, stream

# what a resumed run may change
FREE_OPTIONS = ("data", "pretrained", "checkpoints", "logs", "epochs", "save_period", "versions", "git_commit")
RECORD = "record.json"  # in the folder of the checkpoints


# ---------------------------------------------------------------- the experiment

def train(options, config):
    """Read, build, take the steps, and save a checkpoint now and then.

    Args:
        options: those of gpq/train.py.
        config: the `gpq.config.Config` in them.
    """
    experiment = f"cifar10_{options.loss}_nbits={config.bits}_seed={options.seed}"
    split = data.load_split(config.data, config.labelled_per_class, config.images, options.seed)
    check_batches(config, split, options.loss)
    log = open_log(config.logs / f"{experiment}.log")
    log.info(f"{len(split.labelled)} labelled and {len(split.database)} unlabelled images, {len(split.query)} queries.")
    classes = len(split.class_names)
    first = first_values(config, network.parameter_shapes(config.length, config.codewords, classes), options.seed)
    record = record_of(options, config, split)
    states = States(config.checkpoints / experiment, saved_settings(record, FREE_OPTIONS), variables=MODEL, digits=6)
    start = first_step(states, options.resume, config.steps)

    steps = range(start, config.steps)
    batches = load_batches(split, config, options, steps)  # the first is made from here on
    graph = TrainingGraph(config, classes, options.loss, device_name(options.gpu, log.warning))
    write_json(states.folder / RECORD, plain(record))
    events = tf.summary.FileWriter(str(config.logs / experiment))

    with open_session(graph.graph) as session:
        if options.resume:
            states.restore(start, session, graph)
            log.info(f"resumed after step {start}.")
        else:
            graph.initialize(session, first)
        if config.steps == 0:
            states.save(0, session, graph)
        with StopRequest() as stop, events, progress(
                total=len(steps), delay=0, desc="training", unit="step") as bar:
            for step, batch in zip(steps, batches, strict=True):
                rate = learning_rate(config.learning_rate, step)
                loss, hash_, cls, ent = graph.step(session, *batch, rate)
                check_finite(step + 1, {"the loss": math.isfinite(loss)})
                advance(bar, loss)
                write_scalars(events, step + 1, {
                    "loss/total": loss, "loss/n_pair": hash_, "loss/classification": cls, "loss/entropy": ent,
                    "learning_rate": rate})
                epoch, rest = divmod(step + 1, config.steps_per_epoch)
                if not rest:
                    log_progress(log, bar, f"epoch: {epoch}/{config.epochs}, iter: {step + 1} - (Batch) "
                                 f"loss: {loss:.4f}, hash: {hash_:.4f}, cls: {cls:.4f}, ent: {ent:.4f}, lr: {rate:.5f}")
                if stop.signal or step + 1 == config.steps or (not rest and epoch % config.save_period == 0):
                    states.save(step + 1, session, graph)
                if stop.signal:
                    log.info(f"{stop.signal.name} came: saved the state after step {step + 1}; --resume goes on from "
                             "it.")
                    break
    log.info(f"saved {states.folder}.")


def load_batches(split, config, options, steps):
    """An iterator over the steps' batches, each made during the step before: images, labels and unlabelled images.

    Images are float32 (B, 32, 32, 3) and labels int64 (B,); with the classification loss there are no
    unlabelled images (None).
    """
    def load(step):
        images, labels = data.draw(split.labelled, config.batch_size, "labelled", options.seed, step)
        unlabelled = None
        if options.loss == "gpq":
            unlabelled, _ = data.draw(split.database, config.batch_size_unlabelled, "unlabelled", options.seed, step)
        return images, labels, unlabelled
    return prefetch(load, steps)


# ---------------------------------------------------------------- what a training starts from

def check_batches(config, split, loss):
    """Raise UserError unless each part holds a batch."""
    parts = [("labelled", split.labelled, config.batch_size, "batch-size")]
    if loss == "gpq":
        parts.append(("unlabelled", split.database, config.batch_size_unlabelled, "batch-size-unlabelled"))
    for what, part, size, option in parts:
        if len(part) < size:
            raise UserError(f"{config.data}: its {len(part)} {what} images are fewer than one batch of {size}; "
                            f"--{option} makes it smaller")


def first_step(states, resume, steps):
    """The 0-based step that the training starts or resumes with. Raises UserError if the folder does not allow it."""
    if resume:
        start = states.newest_step()
        if start > steps:
            raise UserError(f"{states.folder}: the newest checkpoint follows step {start}, beyond the {steps} of "
                            "--epochs")
        return start
    if states.steps():
        raise UserError(f"{states.folder} holds checkpoints: --resume goes on from them, --checkpoints names another "
                        "folder")
    return 0


def record_of(options, config, split):
    """All that the result depends on: options, classes, versions, SHA-256 of the files."""
    files = {name: config.data / name for name in data.FILES}
    if config.pretrained is not None:
        files[config.pretrained.name] = config.pretrained
    return {**asdict(config), "loss": options.loss, "seed": options.seed, "classes": split.class_names,
            **provenance(files)}


def first_values(config, shapes, seed):
    """`{name: array}` to start from: Xavier's, and those of --pretrained where it is given."""
    values = network.xavier(shapes, stream(seed, "gpq weights"))
    return values if config.pretrained is None else values | network.read_pretrained(config.pretrained, shapes)
