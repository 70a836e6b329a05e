"""The losses, as TensorFlow graphs (section 6 of the method).

Letters: B images of a batch, T merged tags, D = 300, P (image, tag) pairs of the batch. `tags` is the B×T
0/1 matrix of merged tags. No tensor here is larger than P×T: the pairs are gathered, never B×T×T. Floats are float32,
or all float64.
"""
from models.session import tf


def adaptive_margin_loss(embeddings, tags, tag_embeddings, gamma=1.0, fixed_margin=None, l2_norm=True,
                         negative_sampling=False):
    """The adaptive cosine margin loss, a scalar; 0 for a batch without tags.

        margin_ij = 2^(1−γ) · (1 − ŵ_i·ŵ_j)^γ
        L_emb = Σ_b Σ_{i∈𝒫_b} Σ_{j∉𝒫_b} max(0, margin_ij − (r̂_b·ŵ_i − r̂_b·ŵ_j)) / Σ_b |𝒫_b|·(T − |𝒫_b|)

    Args:
        embeddings: r, float32 (B, D).
        tags: 0/1 float32 (B, T).
        tag_embeddings: W, float32 (T, D), a constant.
        fixed_margin: a margin in place of margin_ij.
        l2_norm: whether r and W are normalised first.
        negative_sampling: whether only the n best-scored tags of an image count as j, its own ones scored 0.
    """
    if l2_norm:
        embeddings, tag_embeddings = _unit(embeddings), _unit(tag_embeddings)
    scores = tf.matmul(embeddings, tag_embeddings, transpose_b=True)  # (B, T)
    pairs = tf.where(tags > 0)  # (P, 2)
    image, tag = pairs[:, 0], pairs[:, 1]
    own = tf.gather_nd(scores, pairs)[:, None]  # (P, 1)
    own_embeddings = tf.gather(tag_embeddings, tag)  # (P, D)
    margins = _margins(own_embeddings, tag_embeddings, gamma, fixed_margin, l2_norm)  # (P, T) or a number
    tags_of_image = tf.reduce_sum(tags, 1)  # (B,)
    tag_count = tf.cast(tf.shape(tags)[1], tags.dtype)  # T
    if not negative_sampling:
        hinge = tf.nn.relu(margins - own + tf.gather(scores, image)) * (1 - tf.gather(tags, image))  # (P, T)
        terms = tf.reduce_sum(tags_of_image * (tag_count - tags_of_image))
        return tf.math.divide_no_nan(tf.reduce_sum(hinge), terms)
    most = tf.reduce_max(tags_of_image)
    sample = tf.minimum(tag_count - most, most)  # n
    best, chosen = tf.nn.top_k(scores * (1 - tags), tf.cast(sample, tf.int32))  # (B, n) twice
    if fixed_margin is None:
        margins = tf.gather(margins, tf.gather(chosen, image), batch_dims=1)  # (P, n)
    hinge = tf.nn.relu(margins - own + tf.gather(best, image))  # (P, n)
    return tf.math.divide_no_nan(tf.reduce_sum(hinge), sample * tf.reduce_sum(tags_of_image))


def wdht_loss(embeddings, tags, tag_embeddings, margin=0.7, l2_norm=True):
    """The hinge of WDHT, a scalar: an image should be nearer to the mean of its own tags than to those of others.

        a_b = mean of ŵ over 𝒫_b;  L_emb = mean_b( Σ_c max(0, margin + r̂_b·a_c − r̂_b·a_b) − margin ) / (B − 1)

    B counts the images with tags; the others contribute nothing. Arguments as above.
    """
    if l2_norm:
        embeddings, tag_embeddings = _unit(embeddings), _unit(tag_embeddings)
    tags_of_image = tf.reduce_sum(tags, 1, keepdims=True)  # (B, 1)
    means = tf.math.divide_no_nan(tf.matmul(tags, tag_embeddings), tags_of_image)  # (B, D), a
    scores = tf.matmul(embeddings, means, transpose_b=True)  # (B, B)
    tagged = tf.cast(tags_of_image > 0, tags.dtype)  # (B, 1)
    hinge = tf.nn.relu(margin + scores - tf.linalg.diag_part(scores)[:, None]) * tf.transpose(tagged)
    count = tf.reduce_sum(tagged)
    total = tf.reduce_sum(tagged[:, 0] * (tf.reduce_sum(hinge, 1) - margin))
    return tf.math.divide_no_nan(total, count * (count - 1))


def multiple_instance_loss(embeddings, tags, tag_embeddings, temperature=0.1):
    """−log of the softmax that an image's tags have together, a scalar: MIL-NCE (Miech et al. 2020). One of an image's
    tags being near is enough. Images without tags contribute nothing.

        loss = mean_b −log Σ_{i∈𝒫_b} softmax_T(r̂_b·ŵ_i / temperature)

    Args:
        embeddings, tags, tag_embeddings: as above.
        temperature: what cosines are divided by.
    """
    scores = _tag_scores(embeddings, tag_embeddings, temperature)  # (B, T)
    own = tf.where(tags > 0, scores, tf.fill(tf.shape(scores), scores.dtype.min))
    return _mean_of_tagged(tf.reduce_logsumexp(scores, 1) - tf.reduce_logsumexp(own, 1), tags)


def softmax_loss(embeddings, tags, tag_embeddings, temperature=0.1):
    """The cross entropy of softmax over all tags with an image's own ones, all of equal weight, a scalar: each of them
    should be near. Arguments as above.

        loss = mean_b mean_{i∈𝒫_b} −log softmax_T(r̂_b·ŵ_i / temperature)
    """
    likelihoods = tf.nn.log_softmax(_tag_scores(embeddings, tag_embeddings, temperature))  # (B, T)
    return _mean_of_tagged(-tf.math.divide_no_nan(tf.reduce_sum(likelihoods * tags, 1), tf.reduce_sum(tags, 1)), tags)


def pair_loss(embeddings, tags, temperature=0.1):
    """Images that share tags should be near one another, a scalar: the cross entropy of softmax over the batch's other
    images with the cosines of their tags. Images that share no tag with any other contribute nothing.

        t_bc = y_b·y_c / (‖y_b‖ ‖y_c‖) for c ≠ b, divided by its sum over c
        loss = mean_b Σ_c −t_bc · log softmax_{c≠b}(r̂_b·r̂_c / temperature)
    """
    embeddings, tags = _unit(embeddings), _unit(tags)
    count = tf.shape(tags)[0]
    others = 1 - tf.eye(count, dtype=tags.dtype)  # (B, B)
    shared = tf.matmul(tags, tags, transpose_b=True) * others
    total = tf.reduce_sum(shared, 1)  # (B,)
    scores = tf.matmul(embeddings, embeddings, transpose_b=True) / temperature
    scores = tf.where(others > 0, scores, tf.fill((count, count), scores.dtype.min))
    likelihoods = tf.nn.log_softmax(scores)  # (B, B); of the image itself very small, times 0
    sums = -tf.math.divide_no_nan(tf.reduce_sum(shared * likelihoods, 1), total)
    related = tf.cast(total > 0, tags.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(sums), tf.reduce_sum(related))


def quantization_loss(embeddings, reconstructions, factor):
    """The supervised cosine quantization loss mean_b ‖(r_b − q_b) Wᵀ‖², a scalar, in D dimensions.

    Args:
        embeddings: r, float32 (B, D), not normalised.
        reconstructions: q, float32 (B, D), constants.
        factor: S of `quantizer.semantic_factor`, so that ‖x Wᵀ‖ = ‖x S‖.
    """
    return tf.reduce_mean(tf.reduce_sum(tf.square(tf.matmul(embeddings - reconstructions, factor)), 1))


def _unit(x):
    return tf.nn.l2_normalize(x, axis=-1)


def _tag_scores(embeddings, tag_embeddings, temperature):
    return tf.matmul(_unit(embeddings), _unit(tag_embeddings), transpose_b=True) / temperature  # (B, T)


def _mean_of_tagged(values, tags):
    """The mean of values (B,) over the images that have a tag; 0 if none has."""
    tagged = tf.reduce_any(tags > 0, 1)
    total = tf.reduce_sum(tf.where(tagged, values, tf.zeros_like(values)))
    return tf.math.divide_no_nan(total, tf.reduce_sum(tf.cast(tagged, values.dtype)))


def _margins(own_embeddings, tag_embeddings, gamma, fixed_margin, l2_norm):
    if fixed_margin is not None:
        return fixed_margin
    distance = 1 - tf.matmul(own_embeddings, tag_embeddings, transpose_b=True)  # (P, T)
    if not float(gamma).is_integer():
        distance = tf.nn.relu(distance)  # rounding makes cos > 1, and a negative number has no fractional power
    return distance if gamma == 1 else 2 ** (1 - gamma) * tf.pow(distance, gamma)
