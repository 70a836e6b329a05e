"""Where graphs run: TensorFlow in its version 1 behaviour, the device, and the session."""
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's own notes on drivers it does not find
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # no Keras here: without this, importing it takes two seconds
import tensorflow.compat.v1 as tf

from util import UserError, one_line

tf.logging.set_verbosity(tf.logging.ERROR)
tf.disable_v2_behavior()
tf.enable_resource_variables()
tf.compat.v2.config.experimental.enable_op_determinism()


def device_name(gpu, warn):
    """The device for a graph: `/gpu:N`, or the CPU when `gpu` is None or, after `warn(line)`, when it is not there."""
    if gpu is None:
        return "/cpu:0"
    if gpu >= len(tf.config.list_physical_devices("GPU")):
        warn(f"GPU {gpu} was not found: the run goes on with the CPU")
        return "/cpu:0"
    return f"/gpu:{gpu}"


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
                            f"lower learning rate, or --resume from the last saved state")


def write_scalars(writer, step, scalars):
    """Tell TensorBoard of `{tag: number}` after a 1-based step. `writer`: a tf.summary.FileWriter."""
    writer.add_summary(tf.Summary(value=[tf.Summary.Value(tag=tag, simple_value=value)
                                         for tag, value in scalars.items()]), step)


def open_session(graph):
    """A session on `graph` with soft placement that takes GPU memory as it needs it."""
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    return tf.Session(graph=graph, config=config)
