"""Train WSDHQ: `python train.py DATASET LR ITERATIONS LAMBDA SUBSPACE_NUM LOSS NOTES GPU [options]`."""
import argparse
from functools import partial
from pathlib import Path

import numpy as np

from storage.arrays import read_weights, write_weights
from storage.run_log import experiment_name, open_log, provenance
from storage.safe_files import check_checksums
from util import (
    MOST_CODEBOOKS,
    StopRequest,
    UserError,
    add_precision,
    add_shared_options,
    gpu_numbers,
    number,
    prefetch,
    progress,
    run_program,
    stream,
)

SECOND_STAGE = 5  # updates of --two-stage: as many as the released 800 steps have
INITIAL_IMAGES = 64  # of the batch that sets the scale of random weights
# what a resumed run may change
FREE_OPTIONS = ("iterations", "gpu", "cache_gb", "root", "save_every", "resume", "weights")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Train AlexNet and the codebooks on images and their merged tags; writes "
                    "checkpoints/<experiment>.npy and .json, and logs/<experiment>.log.")
    parser.add_argument("dataset", metavar="DATASET", help="flickr, nuswide, or the name of a folder in data/")
    parser.add_argument("lr", metavar="LR", type=number(float, 0),
                        help="learning rate of the first 300 steps; it halves every 300 steps")
    parser.add_argument("iterations", metavar="ITERATIONS", type=number(int, 0), help="gradient steps")
    parser.add_argument("lambda_", metavar="LAMBDA", type=number(float, 0), help="weight of the quantization loss")
    parser.add_argument("codebooks", metavar="SUBSPACE_NUM", type=number(int, 1, MOST_CODEBOOKS),
                        help=f"codebooks, 1 to {MOST_CODEBOOKS}; 8 bits each")
    parser.add_argument("loss", metavar="LOSS", choices=("WSDQH", "WSDHQ", "WDHT"),
                        help="WSDQH (the release's spelling; WSDHQ is the same): the adaptive cosine margin; "
                             "WDHT: the baseline's hinge")
    parser.add_argument("notes", metavar="NOTES", help="ends the experiment's name")
    parser.add_argument("gpu", metavar="GPU", type=gpu_numbers,
                        help="number of the GPU, several as 0,1; -1 or cpu for the CPU")
    margin = parser.add_argument_group("loss")
    margin.add_argument("--fixed-margin", action="store_true", help="--margin in place of the adaptive margin")
    margin.add_argument("--margin", type=number(float), default=0.7,
                        help="of --fixed-margin and WDHT, in cosine (default 0.7)")
    margin.add_argument("--gamma", type=number(float, 0), default=1.0,
                        help="exponent of the adaptive margin (default 1)")
    margin.add_argument("--no-l2-norm", action="store_true", help="embeddings and words are not normalised")
    margin.add_argument("--negative-sampling", action="store_true",
                        help="only the best-scored tags of an image count as ones it has not")
    margin.add_argument("--two-stage", action="store_true",
                        help="the paper's ablation: train the network first, codebooks and codes afterwards")
    network = parser.add_argument_group("network")
    network.add_argument("--weights", type=Path, metavar="FILE",
                         help="weights to start from: alexnet.npy, or a checkpoint, from whose fc8 and codebooks "
                              "training then goes on (default: alexnet.npy in --root)")
    network.add_argument("--backbone-init", choices=("file", "lsuv"), default="file",
                         help="start from --weights, or from random weights, scaled layer by layer to unit variance; "
                              "these learn with LR 1e-5 to 3e-5 and --dropout 0 (default file)")
    network.add_argument("--finetune", choices=("all", "last"), default="all",
                         help="layers to train: all, or fc8 alone (default all)")
    network.add_argument("--dropout", type=number(float, 0, 0.99), default=0.5,
                         help="share of fc6 and fc7 that is dropped (default 0.5)")
    running = parser.add_argument_group("running")
    running.add_argument("--batch-size", type=number(int, 1), default=256, help="images a step (default 256)")
    add_precision(running)
    running.add_argument("--cache-gb", type=number(float, 0), default=4.0,
                         help="memory for decoded images, GB of 10^9 bytes (default 4; 5,000 images a GB)")
    running.add_argument("--skip-bad", action="store_true",
                         help="leave out images that cannot be read, with their rows, and count them")
    running.add_argument("--save-every", type=number(int, 1), metavar="N",
                         help="save a state that can be resumed every N steps; the newest is kept "
                              "(0.7 GB; default: none)")
    running.add_argument("--resume", action="store_true",
                         help="go on from the newest saved state, also one that Ctrl-C left; the weights at the end "
                              "are those of a run that was not interrupted")
    add_shared_options(parser)
    options = parser.parse_args()
    if options.loss == "WSDHQ":
        options.loss = "WSDQH"  # the release's spelling, so that names agree
    if options.weights is not None and options.backbone_init == "lsuv":
        parser.error("--weights and --backbone-init lsuv exclude each other")
    if options.negative_sampling and options.loss == "WDHT":
        parser.error("--negative-sampling is an option of WSDQH, not of WDHT")
    if options.weights is None:
        options.weights = options.root / "alexnet.npy"
    if "/" in options.notes:
        parser.error(f"argument NOTES: expected no slash, found {options.notes!r}")
    return options


def main():
    options = parse_arguments()
    import dataset
    experiment = experiment_name(options.dataset, options.loss, options.codebooks, options.fixed_margin,
                                 options.margin, options.gamma, options.lambda_, options.notes)
    folder = dataset.find_dataset(options.dataset, options.root)
    training_set = dataset.load_training(folder, options.skip_bad)
    check_first_weights(options)
    log = open_log(options.root / "logs" / f"{experiment}.log")
    describe(log, training_set)
    record = {"options": plain(options), "seed": options.seed, **provenance(data_files(options, folder))}
    train(options, training_set, options.root / "checkpoints" / experiment, record, log)


def data_files(options, folder):
    """`{name: path}` of all that the result depends on."""
    files = [*folder.split_files("train"), folder.tag_embeddings, folder.merge_map]
    if options.backbone_init == "file":
        files.append(options.weights)
    return {path.name: path for path in files}


def plain(options):
    """The options as JSON knows them."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}


def check_first_weights(options):
    """Raise UserError if training is to start from --weights and they are not there."""
    if options.backbone_init == "file" and not options.weights.is_file():
        raise UserError(f"{options.weights}: no such file: training starts from AlexNet's ImageNet weights in the "
                        "release's format (see 'AlexNet weights' in docs/datasets.md), or from random ones with "
                        "--backbone-init lsuv")


def describe(log, training_set):
    images, tags = training_set.tags.shape
    log.info(f"{images} training images, {tags} merged tags, {training_set.tags.nnz / images:.1f} tags an image; "
             f"{training_set.untagged} images have none, {training_set.skipped} bad images were left out.")


def train(options, training_set, target, record, log):
    """The experiment: build, run, save. `target` is the checkpoint's path without its suffix."""
    import image_files
    import net
    import quantizer
    from backbones import alexnet
    from session import device_name, open_session

    stored = None
    if options.backbone_init == "file":
        check_checksums(options.weights.with_suffix(".json"))
        stored = read_weights(options.weights)
    device = device_name(options.gpu, log.warning, options.precision)
    store = image_files.ImageStore(training_set.paths, options.cache_gb * 1e9)
    schedule = net.Schedule(len(store), options.batch_size, options.seed)
    codebooks, has_codebooks = first_codebooks(options, stored, log)
    alternation = net.AlternatingOptimisation(
        len(store), quantizer.semantic_factor(training_set.embeddings), codebooks, options.seed, has_codebooks)
    trainable = list(alexnet.LAYERS) if options.finetune == "all" else [alexnet.LAST]
    graph = net.TrainingGraph(training_set.embeddings, embedding_loss(options), options.dropout, trainable, device,
                              precision=options.precision)
    trainer = net.Trainer(training_set, store, schedule, graph, alternation, options.lr, options.lambda_,
                          joint=not options.two_stage)
    states = net.States(target.with_name(f"{target.name}_state"), graph, alternation, resumed_settings(record))

    start = states.newest_step() if options.resume else 0
    if start > options.iterations:
        raise UserError(f"the saved state follows step {start}, beyond the {options.iterations} ITERATIONS")
    steps = range(start, options.iterations)
    batches = zip(steps, prefetch(trainer.load, steps), strict=True)  # the first is loaded from here on

    with open_session(graph.graph, options.precision) as session:
        if options.resume:
            states.restore(session)
            log.info(f"resumed before step {start + 1}.")
        else:
            graph.initialize(session, first_weights(options, stored, store, device, log))
        stored = None  # a quarter of a GB
        if options.iterations <= schedule.period and not has_codebooks and not options.two_stage:
            log.warning(f"the first update of the codebooks would follow step {schedule.period + 1}, and this run "
                        f"has {options.iterations}: the checkpoint will hold random codebooks.")
        with StopRequest() as stop:
            run_steps(progress(batches, total=len(steps), desc="training"), trainer, states, session, options, log,
                      options.root / "logs" / target.name, stop)
        graph.check_finite(session, options.iterations)
        weights = session.run(graph.variables)
        if options.two_stage and steps:
            states.save(options.iterations, session)  # so that an interrupted second stage begins there
    if options.two_stage:
        learn_codebooks(alternation, training_set.paths, weights, options, device)
    write_weights(f"{target}.npy", {**weights, "C": alternation.codebooks.reshape(-1, codebooks.shape[-1])}, record)
    log.info(f"saved {target}.npy.")


def learn_codebooks(alternation, paths, weights, options, device):
    """The second of two stages: codebooks and codes of the trained network's embeddings of the plain centre."""
    import net_val
    encoder = net_val.Encoder(weights, 1, device, options.precision)
    alternation.embeddings = encoder.embed(paths, "embedding training images")
    for update in range(SECOND_STAGE):
        alternation.update(options.iterations + update)


def resumed_settings(record):
    """What a run that resumes must share with the one that saved."""
    options = {key: value for key, value in record["options"].items() if key not in FREE_OPTIONS}
    return {**options, **record["fingerprints"]}


def run_steps(batches, trainer, states, session, options, log, events, stop):
    """Take a step for each (step, batch) and tell of it in the log and, in the folder `events`, to TensorBoard.

    `stop`: a StopRequest; after its signal the state is saved, and no step follows.
    """
    from session import tf, write_scalars
    writer = tf.summary.FileWriter(str(events))
    for step, (rows, images) in batches:
        report = trainer.run(session, step, rows, images)
        log.info(f"step [{step + 1:4d}], lr [{report.rate:.7f}], embedding loss [{report.embedding_loss:7.4f}], "
                 f"quantization loss [{report.quantization_loss:7.4f}], {report.seconds:5.2f} sec/batch.")
        write_scalars(writer, step + 1, {
            "loss/embedding": report.embedding_loss, "loss/quantization": report.quantization_loss,
            "learning_rate": report.rate})
        if stop.signal or (options.save_every and (step + 1) % options.save_every == 0):
            states.save(step + 1, session)
        if stop.signal:
            log.info(f"{stop.signal.name} came: saved the state after step {step + 1}; --resume goes on from it.")
            break
    writer.close()


def first_weights(options, stored, store, device, log):
    """`{layer: [kernel, bias]}` to start from."""
    from backbones import alexnet, layers
    if stored is None:
        rows = stream(options.seed, "first images").permutation(len(store))[:INITIAL_IMAGES]
        middle = np.full((len(rows), 2), 14)
        images = store.crops(rows, middle, np.zeros(len(rows), bool))
        return layers.lsuv_weights(images, stream(options.seed, "weights"), device)
    weights = layers.check_weights(stored, alexnet.LAYERS, options.weights)
    if alexnet.LAST not in weights:
        weights[alexnet.LAST] = layers.fresh_last_layer(alexnet.LAYERS, stream(options.seed, alexnet.LAST))
    else:
        log.info(f"{alexnet.LAST} starts from {options.weights}.")
    return weights


def first_codebooks(options, stored, log):
    """The codebooks to start from, float32 (M, K, D), and whether they come from a trained model."""
    import quantizer
    codebooks = quantizer.random_codebooks(options.codebooks, stream(options.seed, "codebooks"))
    found = (stored or {}).get("C")
    if found is None or found.size != codebooks.size:
        return codebooks, False
    log.info(f"the codebooks start from {options.weights}.")
    return found.reshape(codebooks.shape), True


def embedding_loss(options):
    """The loss of the command line as a function of embeddings, labels and words."""
    import losses
    if options.loss == "WDHT":
        return partial(losses.wdht_loss, margin=options.margin, l2_norm=not options.no_l2_norm)
    return partial(losses.adaptive_margin_loss, gamma=options.gamma,
                   fixed_margin=options.margin if options.fixed_margin else None,
                   l2_norm=not options.no_l2_norm, negative_sampling=options.negative_sampling)


if __name__ == "__main__":
    run_program(main)
