"""Where graphs run: TensorFlow in its version 1 behaviour, the devices, the precision, and the session."""
import os
from pathlib import Path

from models.quiet import without_notes
from util import PRECISIONS, UserError, one_line

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # no Keras here: without this, importing it takes two seconds
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # TensorFlow leaves it off where there is no AVX-512; it is faster
with without_notes():
    import tensorflow.compat.v1 as tf
    from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of a processor that computes with it; the last is Arm's

tf.logging.set_verbosity(tf.logging.ERROR)
tf.disable_v2_behavior()
tf.enable_resource_variables()
tf.compat.v2.config.experimental.enable_op_determinism()


# ---------------------------------------------------------------- devices

def device_name(gpus, warn, precision=PRECISIONS[0]):
    """Where a graph runs: `/gpu:0`, several as `/gpu:0,/gpu:1`, or `/cpu:0`.

    Args:
        gpus: the number of a GPU, a list of several, or None for the CPU. Those that are not there are left out.
        warn: function of a line, which is told what is not there.
        precision: as of `open_session`.
    """
    asked = [] if gpus is None else [gpus] if isinstance(gpus, int) else gpus
    count = len(tf.config.list_physical_devices("GPU")) if asked else 0
    found = [gpu for gpu in asked if gpu < count]
    for gpu in asked:
        if gpu not in found:
            warn(f"GPU {gpu} was not found: the run goes on with "
                 + (f"GPU {' and '.join(map(str, found))}" if found else "the CPU"))
    if precision == "bfloat16" and not found and not has_bfloat16():
        warn("this processor has no instructions for bfloat16, so --precision bfloat16 makes the run no faster")
    return ",".join(f"/gpu:{gpu}" for gpu in found) or "/cpu:0"


def has_bfloat16(cpuinfo=Path("/proc/cpuinfo")):
    """Whether the processor that Linux describes in a file has instructions for bfloat16; of others nobody knows."""
    return not cpuinfo.is_file() or bool(BFLOAT16_FLAGS.intersection(cpuinfo.read_text().split()))


def first_device(device):
    """The first of the devices that `device_name` names, which holds the variables."""
    return device.split(",")[0]


def in_towers(function, batch, device):
    """A batch divided over several devices: what `function(part, tower)` gives for each part, concatenated.

    The parts' sizes differ by at most one. With one device nothing is divided.

    Args:
        function: of rows of the batch and of the 0-based number of their device; gives a row for each.
        batch: a tensor (B, …).
        device: as of `device_name`.
    """
    devices = device.split(",")
    if len(devices) == 1:
        return function(batch, 0)
    size, parts = tf.shape(batch)[0], []
    for tower, name in enumerate(devices):
        with tf.device(name):
            begin, end = size * tower // len(devices), size * (tower + 1) // len(devices)
            part = batch[begin:tf.maximum(end, begin + 1)]  # never empty, since oneDNN's pooling fails on that
            parts.append(function(part, tower)[:end - begin])
    return tf.concat(parts, 0)


# ---------------------------------------------------------------- variables and steps

def save_variables(saver, session, path):
    """Write a TensorFlow checkpoint, its files beginning with `path`. Raises UserError where that fails."""
    try:
        saver.save(session, str(path), write_meta_graph=False, write_state=False)
    except tf.errors.OpError as error:
        raise UserError(f"{path}: this checkpoint could not be written: {one_line(error.message)}") from error


def finite_operations(variables):
    """`{name: operation that tells whether every value of the variable is finite}`, floats only."""
    return {variable.op.name: tf.reduce_all(tf.math.is_finite(variable)) for variable in variables
            if variable.dtype.is_floating}


def check_finite(step, finite):
    """Raise UserError for the first of `{name: bool}` that is not finite after a 1-based step."""
    for name, is_finite in finite.items():
        if not is_finite:
            raise UserError(f"step {step}: {name} holds NaN or infinite values, so the training has diverged; try a "
                            "lower learning rate, or --resume from the last state, if one was saved")


def write_scalars(writer, step, scalars):
    """Tell TensorBoard of `{tag: number}` after a 1-based step. `writer`: a tf.summary.FileWriter."""
    writer.add_summary(tf.Summary(value=[tf.Summary.Value(tag=tag, simple_value=value)
                                         for tag, value in scalars.items()]), step)


# ---------------------------------------------------------------- sessions

def configuration(precision=PRECISIONS[0]):
    """How a session runs: soft placement, GPU memory as it is needed, and the precision.

    With "bfloat16", TensorFlow rewrites convolutions, matrix products and what lies between them when the graph is
    first run: on a CPU in bfloat16, on a GPU in float16, which has not been run yet. Variables, what is fetched and all
    float64 stay as they are.
    """
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    if precision == "bfloat16":
        rewrite = config.graph_options.rewrite_options
        rewrite.auto_mixed_precision_onednn_bfloat16 = RewriterConfig.ON
        rewrite.auto_mixed_precision = RewriterConfig.ON
    return config


def open_session(graph, precision=PRECISIONS[0]):
    """A session on `graph`, configured as above. `precision`: one of util.PRECISIONS."""
    return tf.Session(graph=graph, config=configuration(precision))
