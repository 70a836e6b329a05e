"""GPQ's losses as TensorFlow graphs, and the operations they share.

Letters: B labelled and U unlabelled images of a batch, M segments (codebooks), K codewords of a codebook,
D dimensions of a codeword, L classes. A codebook is a slice of Z, float32 (K, M·D): segment m of row k is codeword k of
codebook m.
"""
from models.session import tf

NORM_WEIGHT = 0.0005  # 0.25 · 0.002, on the squared norms in the N-pair loss
SMALLEST = 1e-5  # keeps the logarithm of the entropy finite


# ---------------------------------------------------------------- segments

def segments(x, n_book):
    """The M segments of each row: (n, M·D) to (n, M, D)."""
    return tf.reshape(x, [-1, n_book, x.shape[1] // n_book])


def intra_normalize(x, n_book):
    """intra(x): each segment of each row L2-normalised on its own, (n, M·D)."""
    return tf.reshape(tf.nn.l2_normalize(segments(x, n_book), axis=2), tf.shape(x))


def soft_assign(z, x, n_book, alpha):
    """soft(z → x): each segment of x expressed in the rows of z, then intra-normalised, float32 (n, M·D).

        w_k = softmax_k α·(x·z_k − 1)        x' = Σ_k w_k z_k

    Args:
        z: the rows to express x in, float32 (rows, M·D).
        x: float32 (n, M·D).
        alpha: α, how hard the assignment is.
    """
    parts = []
    for rows, part in zip(tf.split(z, n_book, 1), tf.split(x, n_book, 1), strict=True):  # (m, D), (n, D)
        weights = tf.nn.softmax(alpha * (tf.matmul(part, rows, transpose_b=True) - 1))  # (n, m)
        parts.append(tf.matmul(weights, rows))
    return intra_normalize(tf.concat(parts, 1), n_book)


@tf.custom_gradient
def reverse_gradient(x):
    """x, with the sign of its gradient reversed: the network before it maximises what is minimised after it."""
    return tf.identity(x), lambda gradient: -gradient


# ---------------------------------------------------------------- losses

def n_pair_loss(features, descriptors, labels, n_book):
    """The N-pair product quantization loss L_N-PQ, with its regulariser of the norms, a scalar.

        logits = M·f̂·d̂ᵀ        targets_ij ∝ [label_i = label_j]
        loss = mean of cross-entropies + 0.0005·(mean‖f‖² + mean‖d‖²)

    Args:
        features: f, float32 (B, M·D).
        descriptors: d, f softly quantized, float32 (B, M·D).
        labels: int (B,).
    """
    logits = n_book * tf.matmul(tf.nn.l2_normalize(features, 1), tf.nn.l2_normalize(descriptors, 1), transpose_b=True)
    same = tf.cast(tf.equal(labels[:, None], labels[None]), tf.float32)  # (B, B)
    targets = same / tf.reduce_sum(same, 1, keepdims=True)
    pairs = tf.nn.softmax_cross_entropy_with_logits(labels=targets, logits=logits)  # (B,)
    norms = tf.reduce_sum(features ** 2, 1) + tf.reduce_sum(descriptors ** 2, 1)  # (B,)
    return tf.reduce_mean(pairs) + NORM_WEIGHT * tf.reduce_mean(norms)


def class_logits(features, prototypes, n_book, beta):
    """Mean over the segments of the cosines with the prototypes, times β², float32 (B, L).

    Args:
        features: f, intra-normalised, float32 (B, M·D).
        prototypes: of the classes, intra-normalised, float32 (L, M·D).
    """
    return tf.matmul(beta * features, beta * prototypes, transpose_b=True) / n_book


def classification_loss(logits, labels):
    """L_cls, the mean cross-entropy of logits, (B, L), with labels, int (B,)."""
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))


def entropy_loss(logits):
    """L_SEM, the mean negative entropy of the class probabilities of unlabelled images, from logits (U, L)."""
    p = tf.nn.softmax(logits)
    return tf.reduce_mean(tf.reduce_sum(p * tf.log(p + SMALLEST), 1))
