"""Train WSDHQ: `python train.py DATASET LR ITERATIONS LAMBDA SUBSPACE_NUM LOSS NOTES GPU [options]`.

Options first; then the experiment: data, network, the training loop with its schedule, and the checkpoint.
Letters: N images, B images of a batch, T merged tags, F features, D = 300, M codebooks of K = 256 codewords.
"""
import argparse
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from dataset import faults_in, find_dataset, load_images, load_training, read_image_list
from models.checkpoint import LAST, checkpoint_encoder, fit_entries, is_last_layer_alone, read_checkpoint
from models.encoder import embed, encoder_next_to
from models.features import features_file, photo_features, read_features
from quantization import quantizer
from storage.arrays import CODEBOOKS, read_weights, write_weights
from storage.files import check_checksums, check_space, read_json, reserved_space, with_checksums
from storage.log import (
    experiment_name,
    log_progress,
    margin_form,
    open_log,
    plain,
    provenance,
    softmax_form,
)
from util import (
    DIMENSIONS,
    MOST_CODEBOOKS,
    StopRequest,
    UserError,
    add_shared_options,
    advance,
    check_finite,
    gpu_number,
    number,
    prefetch,
    progress,
    run_program,
    stream,
)

MARGIN_LOSSES, SOFTMAX_LOSSES = ("WSDQH", "WSDHQ", "WDHT"), ("SOFTMAX", "MILNCE")
HALVING_STEPS = 300  # the learning rate halves every so many steps
SECOND_STAGE = 5  # updates of --two-stage: as many as the released 800 steps have
FREE_OPTIONS = ("iterations", "gpu", "cache_gb", "root", "save_every", "resume", "weights", "print_path", "encoder")
NO_WORDS = "These photos carry too few tags to learn words from."


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Train a network and the codebooks on images and their merged tags; writes "
                    "checkpoints/<experiment>.npy and .json, and logs/<experiment>.log.")
    parser.add_argument("dataset", metavar="DATASET", help="flickr, nuswide, or the name of a folder in data/")
    parser.add_argument("lr", metavar="LR", type=number(float, 0),
                        help="learning rate of the first 300 steps; it halves every 300 steps")
    parser.add_argument("iterations", metavar="ITERATIONS", type=number(int, 0), help="gradient steps")
    parser.add_argument("lambda_", metavar="LAMBDA", type=number(float, 0), help="weight of the quantization loss")
    parser.add_argument("codebooks", metavar="SUBSPACE_NUM", type=number(int, 1, MOST_CODEBOOKS),
                        help=f"codebooks, 1 to {MOST_CODEBOOKS}; 8 bits each")
    parser.add_argument("loss", metavar="LOSS", choices=(*MARGIN_LOSSES, *SOFTMAX_LOSSES, "PCA"),
                        help="WSDQH (the release's spelling; WSDHQ is the same): the adaptive cosine margin; "
                             "WDHT: the baseline's hinge; SOFTMAX: cross entropy of softmax over all tags with those "
                             "of the image; MILNCE: -log of the softmax that these have together; PCA: no training, "
                             "for photos without tags: features reduced to 300 numbers, and fitted codebooks")
    parser.add_argument("notes", metavar="NOTES", help="ends the experiment's name")
    parser.add_argument("gpu", metavar="GPU", type=gpu_number, help="number of the GPU; -1 or cpu for the CPU")
    loss = parser.add_argument_group("loss")
    loss.add_argument("--fixed-margin", action="store_true", help="--margin in place of the adaptive margin")
    loss.add_argument("--margin", type=number(float), default=0.7,
                      help="of --fixed-margin and WDHT, in cosine (default 0.7)")
    loss.add_argument("--gamma", type=number(float, 0), default=1.0, help="exponent of the adaptive margin (default 1)")
    loss.add_argument("--no-l2-norm", action="store_true", help="embeddings and words are not normalised")
    loss.add_argument("--negative-sampling", action="store_true",
                      help="only the best-scored tags of an image count as tags that it does not have")
    loss.add_argument("--two-stage", action="store_true",
                      help="the paper's ablation: train the network first, codebooks and codes afterwards")
    loss.add_argument("--temperature", type=number(float, 0.001), default=0.1,
                      help="of SOFTMAX and MILNCE: what cosines are divided by (default 0.1)")
    loss.add_argument("--pairs", type=number(float, 0), default=0.0, metavar="WEIGHT",
                      help="of SOFTMAX and MILNCE: weight of a second loss, by which images that share tags should "
                           "be near one another (default 0; 1 for own photos)")
    network = parser.add_argument_group("network")
    network.add_argument("--weights", type=Path, metavar="FILE",
                         help="weights to start from: AlexNet's, or a checkpoint, from whose last layer and codebooks "
                              "training then goes on (default: alexnet.npy in --root)")
    network.add_argument("--backbone-init", choices=("file", "lsuv"), default="file",
                         help="start AlexNet from --weights, or from random weights, scaled layer by layer to unit "
                              "variance; these learn with LR 1e-5 to 3e-5 and --dropout 0 (default file)")
    network.add_argument("--finetune", choices=("all", "last"), default="all",
                         help="layers of AlexNet to train: all, or the last one, fc8 (default all)")
    network.add_argument("--encoder", type=Path, metavar="FILE.onnx",
                         help="in place of AlexNet: train the last layer on the features of an image encoder, which "
                              "are computed once and kept in features/; prepare/efficientnet.py and prepare/encoder.py "
                              "write what it needs")
    network.add_argument("--float", action="store_true",
                         help="run the encoder as it is (default: a convolutional one in 8 bits, which is faster)")
    network.add_argument("--features", type=Path, metavar="FILE.h5",
                         help="train the last layer on features from elsewhere: `train`, `database` and `query`, "
                              "images × features, rows as in the image lists")
    network.add_argument("--dropout", type=number(float, 0, 0.99),
                         help="share of what the last layers see that is dropped (default 0.5 of fc6 and fc7 of "
                              "AlexNet, 0.2 of features)")
    network.add_argument("--final-fit", action=argparse.BooleanOptionalAction,
                         help="fit the codebooks anew at the end, to the trained network's embeddings scaled to length "
                              "1, in plain Euclidean distance (default: where the last layer is trained on features)")
    running = parser.add_argument_group("running")
    running.add_argument("--batch-size", type=number(int, 1), default=256, help="images a step (default 256)")
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
    running.add_argument("--print-path", action="store_true",
                         help="print the path of the checkpoint that these arguments train, and do nothing else")
    add_shared_options(parser)
    options = parser.parse_args()
    check_options(options, parser.error)
    return options


def check_options(options, refuse):
    """Call `refuse(sentence)` for options that do not go together, and use the release's spelling of the loss."""
    if options.loss == "WSDHQ":
        options.loss = "WSDQH"  # so that names agree
    if options.weights is not None and options.backbone_init == "lsuv":
        refuse("--weights and --backbone-init lsuv exclude each other")
    if options.negative_sampling and options.loss != "WSDQH":
        refuse(f"--negative-sampling is an option of WSDQH, not of {options.loss}")
    if options.pairs and options.loss not in SOFTMAX_LOSSES:
        refuse(f"--pairs is an option of {' and '.join(SOFTMAX_LOSSES)}, not of {options.loss}")
    if options.features is not None and options.encoder is not None:
        refuse("--features and --encoder exclude each other")
    if options.loss == "PCA" and options.encoder is None:
        refuse("PCA reduces the features of an image encoder: expected --encoder FILE.onnx")
    if options.two_stage and options.final_fit:
        refuse("--two-stage and --final-fit exclude each other: both learn the codebooks at the end")
    if "/" in options.notes:
        refuse(f"argument NOTES: expected no slash, found {options.notes!r}")


def checkpoint_path(options):
    """The checkpoint that these options train."""
    if options.loss == "PCA":
        experiment = f"{options.dataset}_PCA_nbits={8 * options.codebooks}_{options.notes}"
    else:
        form = (softmax_form(options.temperature, options.pairs) if options.loss in SOFTMAX_LOSSES
                else margin_form(options.gamma, options.margin if options.fixed_margin else None))
        experiment = experiment_name(options.dataset, options.loss, options.codebooks, form, options.lambda_,
                                     options.notes)
    return options.root / "checkpoints" / f"{experiment}.npy"


# ---------------------------------------------------------------- the experiment

def main():
    options = parse_arguments()
    target = checkpoint_path(options)
    if options.print_path:
        print(target)
        return

    # images, tags, and weights to start from
    folder = find_dataset(options.dataset, options.root)
    untagged = options.loss == "PCA"
    training_set = load_images(folder) if untagged else load_training(
        folder, options.skip_bad, check_images=options.features is None)
    weights_file, stored = stored_weights(options, target)
    log = open_log(options.root / "logs" / f"{target.stem}.log")
    describe(log, training_set)

    # features, in place of photos, for the last layer alone
    from quantization.codebooks import final_fit  # loads scikit-learn
    features, encoder = None, None
    if options.features is not None:
        features = read_features(options.features, "train", folder.split_files("train")[0])[training_set.rows]
    elif options.encoder is not None:
        from models.make_encoder import training_encoder  # needs the package onnx
        encoder = training_encoder(options.encoder, options.root / "features" / f"{folder.name}_{options.encoder.name}",
                                   training_set.paths, options.float, options.seed, options.gpu)
    elif is_last_layer_alone(stored or {}):
        encoder = checkpoint_encoder(weights_file, read_checkpoint(weights_file), options.gpu)
    if encoder is not None:
        features = photo_features(folder, "train", training_set.rows, encoder,
                                  features_file(options.root, folder.name, encoder.sha256), log.info)
        compute_other_splits(folder, encoder, options.root, log)

    record = {"options": plain(vars(options)), "seed": options.seed, "encoder": encoder and encoder.sha256,
              **provenance(data_files(folder, untagged, weights_file, options.features))}
    if untagged:  # nothing is trained
        from models import pca
        weights = {LAST: pca.last_layer(features.astype(np.float32))}
        fit = final_fit(embed(features[:, None], weights[LAST], unit=True), options.codebooks, options.seed)
        keep_encoder(encoder, target)
        write_weights(target, {**weights, **fit_entries(*fit)}, {**record, "no_words": why_no_words(folder)})
        log.info(f"saved {target}.")
        return

    # the schedule, and the batches of the steps
    import net  # loads TensorFlow, which takes seconds
    from models.session import device_name, write_scalars
    from models.states import States, saved_settings
    device = device_name(options.gpu, log.warning)
    inputs = net.FeatureInputs(features) if features is not None else net.PhotoInputs(
        training_set.paths, options.seed, options.cache_gb * 1e9, device)
    schedule = Schedule(len(inputs), options.batch_size, options.seed)
    fits = options.final_fit if options.final_fit is not None else features is not None and not options.two_stage
    states = States(target.with_name(f"{target.stem}_state"), saved_settings(
        {**record["options"], **record["fingerprints"], "encoder_sha256": record["encoder"]}, FREE_OPTIONS),
        variables="variables", digits=8)
    start = states.newest_step() if options.resume else 0
    if start > options.iterations:
        raise UserError(f"the saved state follows step {start}, beyond the {options.iterations} ITERATIONS")
    steps = range(start, options.iterations)
    batches = load_batches(inputs, schedule, steps)  # the first is loaded from here on

    # the network, and the codebooks that are updated in turns with it
    factor = quantizer.semantic_factor(training_set.embeddings)  # (D, min(T, D))
    if options.loss in SOFTMAX_LOSSES:
        loss = net.softmax_loss(options.loss, options.temperature, options.pairs)
    elif options.loss == "WDHT":
        loss = net.wdht_loss(options.margin, not options.no_l2_norm)
    else:
        loss = net.margin_loss(options.gamma, options.margin if options.fixed_margin else None, not options.no_l2_norm,
                               options.negative_sampling)
    dropout = options.dropout if options.dropout is not None else 0.5 if features is None else 0.2
    trainable = list(inputs.network.LAYERS) if options.finetune == "all" else [LAST]
    network = net.TrainingNetwork(inputs.network, training_set.embeddings, factor, loss, dropout, trainable, device)
    codebooks, has_codebooks = net.first_codebooks(options.codebooks, stored, options.seed)
    alternation = net.AlternatingUpdate(len(inputs), factor, codebooks, options.seed, has_codebooks)
    joint = not options.two_stage and (options.lambda_ > 0 or not fits)
    if options.iterations <= schedule.period and joint and not (has_codebooks or fits):
        log.warning(f"the first update of the codebooks would follow step {schedule.period + 1}, and this run has "
                    f"{options.iterations}: the checkpoint will hold random codebooks.")

    # the training loop
    with network.open_session() as session, reserved_space(target, network.weight_bytes + codebooks.nbytes):
        if options.resume:
            alternation.restore(states.restore(start, session, network))
            log.info(f"resumed before step {start + 1}.")
        else:
            weights = net.first_weights(inputs, stored, weights_file, options.seed, device)
            kept = {LAST: stored is not None and weights[LAST] is stored.get(LAST), CODEBOOKS: has_codebooks}
            if any(kept.values()):
                log.info(f"{' and '.join(name for name in kept if kept[name])} start from {weights_file}.")
            network.initialize(session, weights)
        stored = None  # a quarter of a GB

        def save_state(step):
            states.save(step, session, network, alternation.tables())
            states.keep_only(step)

        if options.save_every or options.two_stage:
            state_bytes = network.state_bytes + sum(table.nbytes for table in alternation.tables().values())
            check_space(states.folder, state_bytes * (1 if states.steps() else 2))  # the new one next to the old one
        bar = progress(total=len(steps), delay=0, desc="training", unit="step")
        with StopRequest() as stop, network.events(options.root / "logs" / target.stem) as events, bar:
            for step, scalars, seconds in take_steps(batches, training_set.tags, schedule, network, alternation,
                                                     session, options.lr, options.lambda_, joint):
                advance(bar, scalars["loss/embedding"])
                log_progress(log, bar, step_line(step, scalars, seconds))
                write_scalars(events, step + 1, scalars)
                if stop.signal or (options.save_every and (step + 1) % options.save_every == 0):
                    save_state(step + 1)
                if stop.signal:
                    log.info(f"{stop.signal.name}: saved the state after step {step + 1}; --resume goes on from it.")
                    break

        # what is learned after the last step, and the checkpoint
        network.check_finite(session, options.iterations)
        weights = session.run(network.variables)
        if options.two_stage:
            if steps:
                save_state(options.iterations)  # so that an interrupted second stage begins there
            alternation.embeddings = inputs.embeddings(weights, unit=False)
            for update in range(SECOND_STAGE):
                alternation.update(options.iterations + update)
        checkpoint = {**weights, CODEBOOKS: alternation.codebooks.reshape(-1, DIMENSIONS)}  # C: (M·K, D)
        if fits:
            embeddings = inputs.embeddings(weights, unit=True)
            checkpoint |= fit_entries(*final_fit(embeddings, options.codebooks, options.seed))
            log.info(f"fitted {options.codebooks} codebooks to {len(embeddings):,} embeddings.")
        write_checkpoint(target, checkpoint, record, encoder, save_state, options)
    log.info(f"saved {target}.")


def take_steps(batches, tags, schedule, network, alternation, session, first_rate, quantization_weight, joint=True):
    """Take the steps; yields each one's 0-based number, `{tag: number}` of its scalars, and its seconds in the graph.

    A step depends on its number, the seed and what came before, and on nothing else.

    Args:
        batches: from `load_batches`.
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
        embeddings, embedding_loss, quantization_loss = network.step(
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


def load_batches(inputs, schedule, steps):
    """An iterator over the steps' batches, each loaded during the step before: the step's number, rows, int64 (B,), and
    what the network sees of these images, (B, …)."""
    def load(step):
        rows = schedule.rows(step)
        return step, rows, inputs.batch(rows, step)
    return prefetch(load, steps)


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


# ---------------------------------------------------------------- what training starts from

def stored_weights(options, target):
    """The file that training starts from and its entries; None and None for random weights, or where features are
    given without --weights. Raises UserError if the file is missing or damaged, or if it is to be overwritten."""
    path = options.weights
    if path is None and (options.backbone_init == "lsuv" or options.encoder or options.features):
        return None, None
    path = path or options.root / "alexnet.npy"
    if not path.is_file():
        raise UserError(f"{path}: no such file: training starts from AlexNet's ImageNet weights in the release's "
                        "format (see 'AlexNet weights' in docs/datasets.md), or from random ones with --backbone-init "
                        "lsuv, which learn with LR 1e-5 to 3e-5 and --dropout 0 and collapse without")
    if path.resolve() == target.resolve() and not options.resume:
        raise UserError(f"{path} is the checkpoint that this training would overwrite: choose other NOTES")
    check_checksums(path.with_suffix(".json"))
    return path, read_weights(path)


def compute_other_splits(folder, encoder, root, log):
    """Compute the features of database and queries too, where the data set has them; bad images are left out."""
    for split in ("database", "test"):
        image_list = folder.split_files(split)[0]
        if image_list.is_file():
            names = read_image_list(image_list)
            bad = faults_in(folder.images, names)
            rows = np.array([row for row in range(len(names)) if row not in bad], np.int64)
            photo_features(folder, split, rows, encoder, features_file(root, folder.name, encoder.sha256), log.info)


# ---------------------------------------------------------------- the checkpoint

def keep_encoder(encoder, target):
    """Copy an encoder and its record next to the checkpoint `target`, so that the checkpoint is complete."""
    copy = encoder_next_to(target)
    record = {**msgspec.to_builtins(encoder.record), "crops": 1}  # as its features were computed
    with with_checksums(copy.with_suffix(".json"), record, copy) as (temporary,):
        shutil.copyfile(encoder.path, temporary)


def write_checkpoint(target, checkpoint, record, encoder, save_state, options):
    """Write `{layer: [kernel, bias], "C": codebooks}`, and the ImageEncoder, if there is one, next to it. Where that
    fails the state is kept, and UserError raised."""
    try:
        if encoder:
            keep_encoder(encoder, target)
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


def data_files(folder, untagged, *others):
    """`{name: path}` of all files that the result depends on."""
    image_list, tags = folder.split_files("train")
    files = [image_list, *([] if untagged else [tags, folder.tag_embeddings, folder.merge_map]), *filter(None, others)]
    return {path.name: path for path in files}


def why_no_words(folder):
    """Why words cannot be searched for, as prepare/photos.py reports it, a sentence."""
    report = folder.splits / "report.json"
    return (read_json(report) if report.is_file() else {}).get("no_words") or NO_WORDS


# ---------------------------------------------------------------- reports

def describe(log, training_set):
    """Log what the training set holds."""
    if training_set.tags is None:
        log.info(f"{len(training_set.paths)} training images.")
        return
    images, tags = training_set.tags.shape
    log.info(f"{images} training images, {tags} merged tags, {training_set.tags.nnz / images:.1f} tags an image; "
             f"{training_set.untagged} images have none, {training_set.skipped} bad images were left out.")


def step_line(step, scalars, seconds):
    """The release's line of a 0-based step. The rate is rounded as float32, which prints 1.875e-5 as 0.0000188."""
    return (f"step [{step + 1:4d}], lr [{np.float32(scalars['learning_rate']):.7f}], embedding loss "
            f"[{scalars['loss/embedding']:7.4f}], quantization loss [{scalars['loss/quantization']:7.4f}], "
            f"{seconds:5.2f} sec/batch.")


if __name__ == "__main__":
    run_program(main)
