"""Train GPQ on CIFAR-10: `python -m gpq.train GPU [options]`."""
import argparse
import math

from gpq import data
from gpq.config import add_options, config_of
from storage.files import write_json
from storage.log import log_progress, open_log, plain, provenance
from util import StopRequest, UserError, advance, check_finite, gpu_number, progress, run_program

# what a resumed run may change
FREE = ("gpu", "root", "data", "pretrained", "checkpoints", "logs", "resume", "epochs", "save_period", "versions",
        "git_commit")
RECORD = "record.json"  # in the folder of the checkpoints


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="python -m gpq.train",
        description="Train GPQ's network, codebooks and prototypes on labelled and unlabelled images. Writes "
                    "<checkpoints>/<experiment>/step_NNNNNN and <logs>/<experiment>.log.")
    parser.add_argument("gpu", metavar="GPU", type=gpu_number, help="number of the GPU; -1 or cpu for the CPU")
    parser.add_argument("--loss", choices=("gpq", "classification"), default="gpq",
                        help="gpq: the whole method; classification: for comparison, the classification loss alone, "
                             "without unlabelled images (default gpq)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    add_options(parser)
    return parser.parse_args()


def main():
    options = parse_arguments()
    from gpq import graphs, network
    from models.session import device_name, open_session, tf, write_scalars
    from models.states import States, saved_settings

    # ------------------------------------------------ images
    folder = options.root / options.data
    size, size_unlabelled = options.batch_size, options.batch_size_unlabelled if options.loss == "gpq" else 0
    split = data.load_split(folder, options.labelled_per_class, options.images, options.seed)
    check_batch(folder, len(split.labelled), "labelled", size, "--batch-size")
    check_batch(folder, len(split.database), "unlabelled", size_unlabelled, "--batch-size-unlabelled")

    # ------------------------------------------------ the log, the record and the checkpoints
    config, classes = config_of(options), len(split.class_names)
    experiment = f"cifar10_{options.loss}_nbits={config.bits}_seed={options.seed}"
    logs = options.root / options.logs
    log = open_log(logs / f"{experiment}.log")
    log.info(f"{len(split.labelled)} labelled and {len(split.database)} unlabelled images, {len(split.query)} queries.")
    pretrained = None if options.pretrained is None else options.root / options.pretrained
    first = network.first_values(
        network.parameter_shapes(config.length, config.codewords, classes), options.seed, pretrained)
    files = [folder / name for name in data.FILES] + ([pretrained] if pretrained else [])
    record = {**vars(options), "classes": split.class_names, **provenance({path.name: path for path in files})}
    states = States(options.root / options.checkpoints / experiment, saved_settings(record, FREE),
                    variables=graphs.MODEL, digits=6)
    last = options.epochs * options.steps_per_epoch
    steps = range(first_step(states, options.resume, last), last)

    # ------------------------------------------------ the graph
    batches = data.batches(split, size, size_unlabelled, options.seed, steps)  # the first is made in the meantime
    graph = graphs.TrainingGraph(config, classes, options.loss, device_name(options.gpu, log.warning))
    write_json(states.folder / RECORD, plain(record))
    events = tf.summary.FileWriter(str(logs / experiment))

    # ------------------------------------------------ the steps
    with open_session(graph.graph) as session:
        if options.resume:
            states.restore(steps.start, session, graph)
            log.info(f"resumed after step {steps.start}.")
        else:
            graph.initialize(session, first)
        if last == 0:
            states.save(0, session, graph)
        with StopRequest() as stop, events, progress(
                total=len(steps), delay=0, desc="training", unit="step") as bar:
            for step, batch in zip(steps, batches, strict=True):
                rate = graphs.learning_rate(options.learning_rate, step)
                loss, hash_, cls, ent = graph.step(session, *batch, rate)
                check_finite(step + 1, {"the loss": math.isfinite(loss)})
                advance(bar, loss)
                write_scalars(events, step + 1, {
                    "loss/total": loss, "loss/n_pair": hash_, "loss/classification": cls, "loss/entropy": ent,
                    "learning_rate": rate})
                epoch, rest = divmod(step + 1, options.steps_per_epoch)
                if not rest:
                    log_progress(log, bar, f"epoch: {epoch}/{options.epochs}, iter: {step + 1} - (Batch) "
                                 f"loss: {loss:.4f}, hash: {hash_:.4f}, cls: {cls:.4f}, ent: {ent:.4f}, lr: {rate:.5f}")
                if stop.signal or step + 1 == last or (not rest and epoch % options.save_period == 0):
                    states.save(step + 1, session, graph)
                if stop.signal:
                    log.info(f"{stop.signal.name} came: saved the state after step {step + 1}; --resume continues from "
                             "it.")
                    break
    log.info(f"saved {states.folder}.")


def check_batch(folder, images, what, size, option):
    """Raise UserError if there are fewer `images` than in one batch of `size`."""
    if images < size:
        raise UserError(f"{folder}: its {images} {what} images are fewer than one batch of {size}; {option} makes it "
                        "smaller")


def first_step(states, resume, last):
    """The 0-based step to start from. Raises UserError if the checkpoints in the folder do not allow it.

    Args:
        states: the checkpoints, a `models.states.States`.
        last (int): steps of the whole training.
    """
    if resume:
        start = states.newest_step()
        if start > last:
            raise UserError(f"{states.folder}: the newest checkpoint follows step {start}, beyond the {last} of "
                            "--epochs")
        return start
    if states.steps():
        raise UserError(f"{states.folder} holds checkpoints: continue from them with --resume, or name another folder "
                        "with --checkpoints")
    return 0


if __name__ == "__main__":
    run_program(main)
