"""Where graphs run: TensorFlow in its version 1 behaviour, the device and the session."""
import contextlib
import os
import subprocess
import sys

from util import UserError, one_line

# Passes its input on, except the notes and warnings that TensorFlow's libraries write before their logging is set up.
FILTER = r"""
import re, sys
for line in sys.stdin.buffer:
    if not re.match(rb"WARNING: All log messages before absl|[IW][0-9]{4} ", line):
        sys.stderr.buffer.write(line)
"""
QUIET = "3"  # without drivers even level 2 reports that they are missing; errors come as exceptions


@contextlib.contextmanager
def without_notes():
    """Within the block, in which TensorFlow is imported, what is written to stderr passes through FILTER.

    The filter is a process of its own, so that what a library says before it ends this process is shown too. A user who
    sets TF_CPP_MIN_LOG_LEVEL sees everything that this level lets through.
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", QUIET) != QUIET:
        yield
        return
    stderr = os.dup(2)
    try:
        with subprocess.Popen([sys.executable, "-ISc", FILTER], stdin=subprocess.PIPE) as passing:
            os.dup2(passing.stdin.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(stderr, 2)
    finally:
        os.close(stderr)


os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # no Keras here: without this, importing it takes two seconds
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # TensorFlow leaves it off where there is no AVX-512; it is faster
with without_notes():
    import tensorflow.compat.v1 as tf

tf.logging.set_verbosity(tf.logging.ERROR)
tf.disable_v2_behavior()
tf.enable_resource_variables()
tf.compat.v2.config.experimental.enable_op_determinism()


def device_name(gpu, warn):
    """Where a graph runs, such as `/gpu:0`, or `/cpu:0`.

    Args:
        gpu: the number of a GPU, or None for the CPU, which is also used where that GPU is missing.
        warn: function of a line that says so.
    """
    if gpu is None:
        return "/cpu:0"
    if gpu >= len(tf.config.list_physical_devices("GPU")):
        warn(f"GPU {gpu} was not found: the run goes on with the CPU")
        return "/cpu:0"
    return f"/gpu:{gpu}"


def open_session(graph):
    """A session on `graph`, with soft placement, and GPU memory as it is needed."""
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    return tf.Session(graph=graph, config=config)


# ---------------------------------------------------------------- variables and steps

def save_variables(saver, session, path):
    """Write a TensorFlow checkpoint, its files beginning with `path`. Raises UserError where that fails."""
    try:
        saver.save(session, str(path), write_meta_graph=False, write_state=False)
    except tf.errors.OpError as error:
        raise UserError(f"{path}: this checkpoint could not be written: {one_line(error.message)}") from error


def finite_operations(variables):
    """`{name: operation that gives whether every value of the variable is finite}`, floats only."""
    return {variable.op.name: tf.reduce_all(tf.math.is_finite(variable)) for variable in variables
            if variable.dtype.is_floating}


def write_scalars(writer, step, scalars):
    """Log `{tag: number}` of a 1-based step to TensorBoard. `writer`: a tf.summary.FileWriter."""
    writer.add_summary(tf.Summary(value=[tf.Summary.Value(tag=tag, simple_value=value)
                                         for tag, value in scalars.items()]), step)
