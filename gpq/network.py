"""GPQ's network, a small VGG with batch normalisation, and its parameters under the release's names.

Letters: B images of a batch, M segments of D numbers of a feature, K codewords, L classes.
"""
import numpy as np

from gpq import matlab
from models.session import tf
from util import UserError, one_line, stream

SCOPE = "Fixed_VGG"
# name of the convolution, name of its batch normalisation, channels in and out; kernels are 3×3
CONVOLUTIONS = (("conv2d", "batch0", 3, 64), ("conv2d_1", "batch0-1", 64, 64),
                ("conv2d_2", "batch1", 64, 128), ("conv2d_3", "batch1-1", 128, 128),
                ("conv2d_4", "batch2", 128, 256), ("conv2d_5", "batch2-1", 256, 256),
                ("conv2d_6", "batch2-2", 256, 256),
                ("conv2d_7", "batch3", 256, 512), ("conv2d_8", "batch3-1", 512, 512),
                ("conv2d_9", "batch3-2", 512, 512))
POOLED_AFTER = ("conv2d_1", "conv2d_3", "conv2d_6")
BRANCH = POOLED_AFTER[-1]  # its pooled output is averaged too, and concatenated with that of the last convolution
DECAY, EPSILON = 0.9, 0.001  # of batch normalisation
CODEBOOKS, PROTOTYPES = "Z", "C"  # the release's names of the codebooks and of the classes' prototypes
DENSE = f"{SCOPE}/dense"
MOST_HEADER = 10_000  # bytes before the values in an .npz file's arrays


# ---------------------------------------------------------------- parameters

def parameter_shapes(length, codewords, classes, convolutions=CONVOLUTIONS):
    """`{name: shape}` of all that is trained: the network, Z and the prototypes."""
    shapes = {}
    for convolution, norm, inputs, outputs in convolutions:
        shapes |= {f"{SCOPE}/{convolution}/kernel": (3, 3, inputs, outputs), f"{SCOPE}/{convolution}/bias": (outputs,),
                   f"{SCOPE}/{norm}/beta": (outputs,), f"{SCOPE}/{norm}/gamma": (outputs,)}
    width = convolutions[-1][3] + {row[0]: row[3] for row in convolutions}[BRANCH]  # 512 + 256
    return {**shapes, f"{DENSE}/kernel": (width, length), f"{DENSE}/bias": (length,),
            CODEBOOKS: (codewords, length), PROTOTYPES: (classes, length)}


def xavier(shapes, rng):
    """Random first values, `{name: float32 array}`: kernels, Z and prototypes Xavier uniform; biases and β 0, γ 1."""
    values = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            values[name] = np.full(shape, float(name.endswith("gamma")), np.float32)
        else:
            limit = np.sqrt(6 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1])))
            values[name] = rng.uniform(-limit, limit, shape).astype(np.float32)
    return values


def first_values(shapes, seed, pretrained=None):
    """`{name: float32 array}` to start from: Xavier's, and those of the file `pretrained` if it is given."""
    values = xavier(shapes, stream(seed, "gpq weights"))
    return values if pretrained is None else values | read_pretrained(pretrained, shapes)


def make_variables(shapes):
    """The trained variables, `{name: variable}`, and the placeholders of their first values, `{name: placeholder}`."""
    placeholders = {name: tf.placeholder(tf.float32, shape) for name, shape in shapes.items()}
    return {name: tf.Variable(value, name=name) for name, value in placeholders.items()}, placeholders


# ---------------------------------------------------------------- pretrained files

def read_pretrained(path, shapes):
    """All layers but the last, `{name: float32 array}`, of a `.mat` or `.npz` file. Raises UserError.

    The file has them under the keys `name:0`.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    shapes = {name: shape for name, shape in shapes.items()
              if name.startswith(f"{SCOPE}/") and not name.startswith(DENSE)}
    sizes = {f"{name}:0": int(np.prod(shape)) for name, shape in shapes.items()}
    try:
        stored = read_npz(path, sizes) if path.suffix == ".npz" else matlab.read_arrays(path.read_bytes(), sizes)
    except Exception as error:  # what damaged files raise here has no common type
        raise UserError(f"{path}: expected a .mat or .npz file, and it could not be read: {one_line(error)}") from error
    values = {}
    for name, shape in shapes.items():
        array = stored.get(f"{name}:0")
        found = None if array is None else np.squeeze(array)
        if found is None or found.shape != shape or not np.issubdtype(found.dtype, np.floating):
            raise UserError(f"{path}: expected floats of shape {shape} under '{name}:0', found "
                            f"{'nothing' if found is None else f'{found.dtype} of shape {found.shape}'}")
        if not np.isfinite(found).all():
            raise UserError(f"{path}: '{name}:0' holds NaN or infinite values")
        values[name] = found.astype(np.float32)
    return values


def read_npz(path, sizes):
    """`{name: array}` of the arrays named in `sizes`, `{name: numbers in it}`. Arrays of more numbers are refused."""
    with np.load(path, allow_pickle=False) as file:
        for name in sizes.keys() & set(file.files):
            if file.zip.getinfo(f"{name}.npy").file_size > 8 * sizes[name] + MOST_HEADER:
                raise ValueError(f"{name!r} holds more than {sizes[name]} numbers")
        return {name: file[name] for name in sizes if name in file}


# ---------------------------------------------------------------- batch normalisation

class MovingAverages:
    """The means and variances with which batch normalisation works after training.

    The mean is zero-debiased: m̃ ← 0.9·m̃ + 0.1·mean from 0, t ← t + 1, mean ← m̃ / (1 − 0.9^t). The variance is not:
    it starts at 1 and becomes 0.9·variance + 0.1·variance of the batch, in which the fused operation includes Bessel's
    correction.

    Attributes:
        variables: `{name: variable}`; four for each layer in training, two otherwise.
    """

    def __init__(self, training, convolutions=CONVOLUTIONS):
        first = {"moving_mean": 0.0, "moving_variance": 1.0}
        if training:
            first["moving_mean/biased"] = 0.0
        self.variables = {}
        for _, norm, _, outputs in convolutions:
            for part, value in first.items():
                self._add(f"{SCOPE}/{norm}/{part}", tf.fill([outputs], value))
            if training:
                self._add(f"{SCOPE}/{norm}/moving_mean/local_step", tf.zeros([]))

    def _add(self, name, value):
        self.variables[name] = tf.Variable(value, trainable=False, name=name)

    def layer(self, norm):
        """The moving mean and the moving variance of the layer `norm`, float32 (channels,)."""
        return [self.variables[f"{SCOPE}/{norm}/{part}"] for part in ("moving_mean", "moving_variance")]

    def update(self, statistics):
        """An operation that updates the averages with the statistics of one batch, `{norm: (mean, variance)}`."""
        updates = []
        for norm, (mean, variance) in statistics.items():
            moving_mean, moving_variance = self.layer(norm)
            biased = self.variables[f"{SCOPE}/{norm}/moving_mean/biased"]
            step = self.variables[f"{SCOPE}/{norm}/moving_mean/local_step"]
            sums, count = biased.assign(DECAY * biased + (1 - DECAY) * mean), step.assign_add(1)
            updates += [moving_mean.assign(sums / (1 - DECAY ** count)),
                        moving_variance.assign(DECAY * moving_variance + (1 - DECAY) * variance)]
        return tf.group(updates)


# ---------------------------------------------------------------- features

def extract_features(images, variables, averages, training, convolutions=CONVOLUTIONS):
    """Features, float32 (B, M·D), and the batch's statistics in each normalisation, `{norm: (mean, variance)}`.

    Args:
        images: standardised, float32 (B, 32, 32, 3).
        variables: as returned by `make_variables`.
        averages: MovingAverages.
        training: whether a batch is normalised by its own statistics rather than by the moving averages.
    """
    x, statistics, branch = images, {}, None
    for convolution, norm, _, _ in convolutions:
        x = tf.nn.conv2d(x, variables[f"{SCOPE}/{convolution}/kernel"], strides=1, padding="SAME")
        x = tf.nn.bias_add(x, variables[f"{SCOPE}/{convolution}/bias"])
        gamma, beta = variables[f"{SCOPE}/{norm}/gamma"], variables[f"{SCOPE}/{norm}/beta"]
        mean, variance = (None, None) if training else averages.layer(norm)
        x, *statistics[norm] = tf.nn.fused_batch_norm(x, gamma, beta, mean, variance, EPSILON, is_training=training)
        x = tf.nn.relu(x)
        if convolution in POOLED_AFTER:
            x = tf.nn.max_pool2d(x, 2, 2, "SAME")
        if convolution == BRANCH:
            branch = tf.reduce_mean(x, [1, 2])  # (B, 256)
    pooled = tf.concat([tf.reduce_mean(x, [1, 2]), branch], 1)  # (B, 768)
    return tf.matmul(pooled, variables[f"{DENSE}/kernel"]) + variables[f"{DENSE}/bias"], statistics
