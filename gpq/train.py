"""Train GPQ on CIFAR-10: `python -m gpq.train GPU [options]`."""
import argparse
import math
from dataclasses import asdict
from pathlib import Path

from gpq.config import add_options, from_options
from storage.run_log import open_log, provenance
from storage.safe_files import write_json
from util import StopRequest, UserError, gpu_number, prefetch, progress, run_program, stream

# what a resumed run may change
FREE_OPTIONS = ("data", "pretrained", "checkpoints", "logs", "epochs", "save_period", "versions", "git_commit")
RECORD = "record.json"  # in the folder of the checkpoints


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="python -m gpq.train",
        description="Train GPQ's network, codebooks and prototypes on labelled and unlabelled images; writes "
                    "<checkpoints>/<experiment>/step_NNNNNN and <logs>/<experiment>.log.")
    parser.add_argument("gpu", metavar="GPU", type=gpu_number, help="number of the GPU; -1 or cpu for the CPU")
    parser.add_argument("--loss", choices=("gpq", "classification"), default="gpq",
                        help="the whole method, or, to compare with, the classification loss alone, without "
                             "unlabelled images (default gpq)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    add_options(parser)
    return parser.parse_args()


def main():
    options = parse_arguments()
    from gpq import data
    config = from_options(options)
    experiment = f"cifar10_{options.loss}_nbits={config.bits}_seed={options.seed}"
    split = data.load_split(config.data, config.labelled_per_class, config.images, options.seed)
    check_batches(config, split, options.loss)
    log = open_log(config.logs / f"{experiment}.log")
    log.info(f"{len(split.labelled)} labelled and {len(split.database)} unlabelled images, {len(split.query)} queries.")
    train(options, config, split, config.checkpoints / experiment, config.logs / experiment, log)


def check_batches(config, split, loss):
    """Raise UserError unless each part holds a batch."""
    parts = [("labelled", split.labelled, config.batch_size, "batch-size")]
    if loss == "gpq":
        parts.append(("unlabelled", split.database, config.batch_size_unlabelled, "batch-size-unlabelled"))
    for what, part, size, option in parts:
        if len(part) < size:
            raise UserError(f"{config.data}: its {len(part)} {what} images are fewer than one batch of {size}; "
                            f"--{option} makes it smaller")


def record_of(options, config, split):
    """All that the result depends on, plain containers: options, classes, versions, SHA-256 of the files."""
    from gpq.data import FILES
    files = {name: config.data / name for name in FILES}
    if config.pretrained is not None:
        files[config.pretrained.name] = config.pretrained
    return {**asdict(config), "loss": options.loss, "seed": options.seed, "classes": split.class_names,
            **provenance(files)}


def resumed_settings(record):
    """What a run that resumes must share with the one that saved."""
    return {name: value for name, value in record.items() if name not in FREE_OPTIONS}


def train(options, config, split, folder, events, log):
    """The experiment: build, run, save. `folder` is for the checkpoints, `events` for TensorBoard."""
    from gpq import data, graphs, network
    from session import device_name, open_session

    saved = graphs.saved_steps(folder)
    if options.resume and not saved:
        raise UserError(f"{folder}: there is no checkpoint to resume")
    if saved and not options.resume:
        raise UserError(f"{folder} holds checkpoints: --resume goes on from them, --checkpoints names another folder")
    start = saved[-1] if saved else 0
    if start > config.steps:
        raise UserError(f"{folder}: the newest checkpoint follows step {start}, beyond the {config.steps} of --epochs")
    classes = len(split.class_names)
    first = first_values(config, network.parameter_shapes(config.length, config.words, classes), options.seed)
    record = record_of(options, config, split)
    settings = resumed_settings(record)
    graph = graphs.TrainingGraph(config, classes, options.loss, device_name(options.gpu, log.warning))

    def load(step):
        images, labels = data.draw(split.labelled, config.batch_size, "labelled", options.seed, step)
        unlabelled = None
        if options.loss == "gpq":
            unlabelled, _ = data.draw(split.database, config.batch_size_unlabelled, "unlabelled", options.seed, step)
        return images, labels, unlabelled

    write_json(folder / RECORD, {name: str(value) if isinstance(value, Path) else value
                                 for name, value in record.items()})
    with open_session(graph.graph) as session:
        if options.resume:
            graphs.restore(folder, start, graph, session, settings)
            log.info(f"resumed after step {start}.")
        else:
            graph.initialize(session, first)
        with StopRequest() as stop:
            run_steps(config, range(start, config.steps), load, graph, session, events, log, stop,
                      save=lambda step: graphs.save(folder, step, graph, session, settings))
    log.info(f"saved {folder}.")


def first_values(config, shapes, seed):
    """`{name: array}` to start from: Xavier's, and those of --pretrained where it is given."""
    from gpq import network
    values = network.xavier(shapes, stream(seed, "gpq weights"))
    return values if config.pretrained is None else values | network.read_pretrained(config.pretrained, shapes)


def run_steps(config, steps, load, graph, session, events, log, stop, save):
    """Take the 0-based `steps`, tell of them in the log and, in the folder `events`, to TensorBoard, and save.

    `stop`: a StopRequest; after its signal the state is saved, and no step follows.
    """
    from gpq.graphs import learning_rate
    from session import check_finite, tf, write_scalars
    writer = tf.summary.FileWriter(str(events))
    if config.steps == 0:
        save(0)
    for step, batch in progress(zip(steps, prefetch(load, steps), strict=True), total=len(steps), desc="training"):
        rate = learning_rate(config.learning_rate, step)
        loss, hash_, cls, ent = graph.step(session, *batch, rate)
        check_finite(step + 1, {"the loss": math.isfinite(loss)})
        write_scalars(writer, step + 1, {
            "loss/total": loss, "loss/n_pair": hash_, "loss/classification": cls, "loss/entropy": ent,
            "learning_rate": rate})
        epoch, rest = divmod(step + 1, config.steps_per_epoch)
        if not rest:
            log.info(f"epoch: {epoch}/{config.epochs}, iter: {step + 1} - (Batch) loss: {loss:.4f}, hash: {hash_:.4f}, "
                     f"cls: {cls:.4f}, ent: {ent:.4f}, lr: {rate:.5f}")
        if stop.signal or step + 1 == config.steps or (not rest and epoch % config.save_period == 0):
            save(step + 1)
        if stop.signal:
            log.info(f"{stop.signal.name} came: saved the state after step {step + 1}; --resume goes on from it.")
            break
    writer.close()


if __name__ == "__main__":
    run_program(main)
