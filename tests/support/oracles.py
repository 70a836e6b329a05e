"""The method's formulas, written densely, slowly and obviously, in float64. Fast code is held against them.

Letters: B images of a batch, N images, T tags, D = 300, M codebooks of K = 256.
"""
import numpy as np


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def adaptive_margin_loss(r, y, w, gamma=1.0, fixed_margin=None, l2_norm=True):
    r, w = np.float64(r), np.float64(w)
    if l2_norm:
        r, w = unit(r), unit(w)
    total, terms = 0.0, 0
    for b in range(len(r)):
        for i in np.flatnonzero(y[b] == 1):
            for j in np.flatnonzero(y[b] == 0):
                margin = fixed_margin
                if margin is None:
                    margin = 2.0 ** (1 - gamma) * (1 - w[i] @ w[j]) ** gamma
                total += max(0.0, margin - (r[b] @ w[i] - r[b] @ w[j]))
                terms += 1
    return total / terms if terms else 0.0


def sampled_margin_loss(r, y, w, gamma=1.0, fixed_margin=None):
    """The same with negative sampling: j runs over the n best scores, where an image's own tags score 0."""
    r, w = unit(np.float64(r)), unit(np.float64(w))
    p = int(y.sum(1).max())
    n = min(y.shape[1] - p, p)
    total = 0.0
    for b in range(len(r)):
        scores = np.where(y[b] == 1, 0.0, w @ r[b])
        best = np.argsort(-scores, kind="stable")[:n]
        for i in np.flatnonzero(y[b] == 1):
            for j in best:
                margin = fixed_margin
                if margin is None:
                    margin = 2.0 ** (1 - gamma) * (1 - w[i] @ w[j]) ** gamma
                total += max(0.0, margin - (r[b] @ w[i] - scores[j]))
    return total / (n * y.sum())


def wdht_loss(r, y, w, margin=0.7, l2_norm=True):
    r, w = np.float64(r), np.float64(w)
    if l2_norm:
        r, w = unit(r), unit(w)
    tagged = [b for b in range(len(r)) if y[b].any()]
    a = {b: w[y[b] == 1].mean(0) for b in tagged}
    losses = [sum(max(0.0, margin + r[b] @ a[c] - r[b] @ a[b]) for c in tagged) - margin for b in tagged]
    return np.mean(losses) / (len(tagged) - 1)


def log_softmax(scores):
    return [score - np.log(sum(np.exp(other) for other in scores)) for score in scores]


def multiple_instance_loss(r, y, w, temperature=0.1):
    r, w = unit(np.float64(r)), unit(np.float64(w))
    losses = []
    for b in range(len(r)):
        own = np.flatnonzero(y[b] == 1)
        if len(own):
            logs = log_softmax([r[b] @ w[i] / temperature for i in range(len(w))])
            losses.append(-np.log(sum(np.exp(logs[i]) for i in own)))
    return np.mean(losses) if losses else 0.0


def softmax_loss(r, y, w, temperature=0.1):
    r, w = unit(np.float64(r)), unit(np.float64(w))
    losses = []
    for b in range(len(r)):
        own = np.flatnonzero(y[b] == 1)
        if len(own):
            logs = log_softmax([r[b] @ w[i] / temperature for i in range(len(w))])
            losses.append(np.mean([-logs[i] for i in own]))
    return np.mean(losses) if losses else 0.0


def pair_loss(r, y, temperature=0.1):
    r, losses = unit(np.float64(r)), []
    for b in range(len(r)):
        others = [c for c in range(len(r)) if c != b]
        targets = [cosine(y[b], y[c]) if y[b].any() and y[c].any() else 0.0 for c in others]
        if sum(targets) > 0:
            logs = log_softmax([r[b] @ r[c] / temperature for c in others])
            losses.append(-sum(t * log for t, log in zip(targets, logs, strict=True)) / sum(targets))
    return np.mean(losses) if losses else 0.0


def quantization_loss(r, q, w):
    return np.mean([np.sum(((np.float64(r[b]) - q[b]) @ w.T) ** 2) for b in range(len(r))])


def gradient(loss, r, step=1e-6):
    """Central differences of `loss(r)`, entry by entry."""
    result = np.zeros(r.shape)
    for at in np.ndindex(r.shape):
        up, down = np.float64(r), np.float64(r)
        up[at] += step
        down[at] -= step
        result[at] = (loss(up) - loss(down)) / (2 * step)
    return result


def one_hot(codes, k=256):
    """H, float64 (N, M·K)."""
    h = np.zeros((len(codes), codes.shape[1] * k))
    for n, m in np.ndindex(codes.shape):
        h[n, m * k + int(codes[n, m])] = 1
    return h


def icm_encode(r, codebooks, w, orders):
    """ICM with all T tags in every distance; −1 marks a codebook that was not visited yet."""
    r, c, w = np.float64(r), np.float64(codebooks), np.float64(w)
    codes = np.full((len(r), len(c)), -1)
    for n in range(len(r)):
        for order in orders:
            for m in order:
                rest = r[n] - sum(c[other, codes[n, other]] for other in range(len(c))
                                  if other != m and codes[n, other] >= 0)
                codes[n, m] = np.argmin([np.sum(((rest - word) @ w.T) ** 2) for word in c[m]])
    return codes


def query_error(errors, queries):
    """Between the squared length of each error (N, D) and its mean squared score with queries (Q, D): eᵀΣ^¼e, (N,)."""
    values, directions = np.linalg.eigh(np.mean([np.outer(q, q) for q in queries], 0))
    root = sum(max(value, 0) ** 0.25 * np.outer(d, d) for value, d in zip(values, directions.T, strict=True))
    return np.array([e @ root @ e for e in errors])


def nearest_reconstruction(x, codebooks):
    """The squared distance of each vector to the nearest of all K^M reconstructions, by trying every one."""
    sums = [np.zeros(codebooks.shape[2])]
    for codebook in np.float64(codebooks):
        sums = [total + word for total in sums for word in codebook]
    return np.array([min(np.sum((vector - total) ** 2) for total in sums) for vector in np.float64(x)])


def neighbour_averages(u, anchors, sharpness):
    u, anchors = np.float64(u), np.float64(anchors)
    found = []
    for image in u:
        weights = [np.exp(sharpness * (image @ anchor - 1)) for anchor in anchors]
        found.append((image + sum(w * anchor for w, anchor in zip(weights, anchors, strict=True))) / (1 + sum(weights)))
    return np.array(found)


def update_codebooks(u, codes, codebooks):
    h = one_hot(codes)
    c = np.linalg.inv(h.T @ h + 0.001 * np.eye(h.shape[1])) @ h.T @ np.float64(u)
    old = codebooks.reshape(c.shape)
    for row in range(len(c)):
        if np.sum(c[row] ** 2) < 1e-8:
            c[row] = old[row]
    return c.reshape(codebooks.shape)


def retrieval(scores, query_labels, database_labels, topk):
    """Released MAP@K, MAP with min(R, K), mean precision and recall curves: one query, one rank at a time."""
    released, usual, precisions, recalls = [], [], [], []
    for q in range(len(scores)):
        order = sorted(range(scores.shape[1]), key=lambda n: (-scores[q, n], n))[:topk]
        relevant = [bool(np.any(query_labels[q] * database_labels[n])) for n in order]
        everywhere = sum(bool(np.any(query_labels[q] * labels)) for labels in database_labels)
        hits, total, precision, found = 0, 0.0, [], []
        for rank, hit in enumerate(relevant, 1):
            hits += hit
            precision.append(hits / rank)
            found.append(hits)
            total += hit * hits / rank
        if everywhere:
            usual.append(total / min(everywhere, topk))
        if hits:
            released.append(total / hits)
            precisions.append(precision)
            recalls.append(np.array(found) / hits)
    return np.mean(released), np.mean(usual), np.mean(precisions, 0), np.mean(recalls, 0)


# Tags: `v` is a list of vectors.


def cosine(a, b):
    return np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b))


def neighbours(v, k, tau):
    """For each tag, itself and those of its k nearest whose cosine is at least tau."""
    result = []
    for i in range(len(v)):
        cosines = {j: cosine(v[i], v[j]) for j in range(len(v)) if j != i}
        nearest = sorted(cosines, key=lambda j: -cosines[j])[:k]
        result.append({i} | {j for j in nearest if cosines[j] >= tau})
    return result


def mean_direction(vectors):
    """The mean of L2-normalised vectors."""
    return np.mean([x / np.sqrt(np.dot(x, x)) for x in vectors], axis=0)


def enhanced(v, k, tau):
    return [mean_direction([v[j] for j in sorted(members)]) for members in neighbours(v, k, tau)]


def dbscan_groups(v, eps):
    """With two points to a core, a cluster is all that can be reached in steps of at most eps; alone is noise."""
    left, groups = set(range(len(v))), []
    while left:
        group, edge = set(), {min(left)}
        while edge:
            group |= edge
            edge = {j for i in edge for j in left - group if 1 - cosine(v[i], v[j]) <= eps}
        groups.append(sorted(group))
        left -= group
    return groups


def merged_embeddings(v, groups):
    means = [mean_direction([v[i] for i in group]) for group in groups]
    return np.array([mean / np.sqrt(np.dot(mean, mean)) for mean in means])


# EfficientNet-Lite0 from PyTorch's tensors: a map x is (C, H, W), kernels are (O, I, H, W).


def same_convolution(x, kernel, stride=1, depthwise=False):
    """One pixel at a time. Padding that cannot be halved has its odd row below and its odd column to the right."""
    size, (_, height, width) = kernel.shape[2], x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    down = max((rows - 1) * stride + size - height, 0)
    right = max((columns - 1) * stride + size - width, 0)
    x = np.pad(x, ((0, 0), (down // 2, down - down // 2), (right // 2, right - right // 2)))
    result = np.empty((len(kernel), rows, columns))
    for i, j in np.ndindex(rows, columns):
        patch = x[:, i * stride:i * stride + size, j * stride:j * stride + size]
        result[:, i, j] = (patch * kernel[:, 0]).sum((1, 2)) if depthwise else np.tensordot(kernel, patch, 3)
    return result


def batch_normalisation(x, tensors, name):
    scale, offset, mean, variance = (np.float64(tensors[f"{name}.{part}"])[:, None, None]
                                     for part in ("weight", "bias", "running_mean", "running_var"))
    return scale * (x - mean) / np.sqrt(variance + 1e-3) + offset


def relu6(x):
    return np.minimum(np.maximum(x, 0), 6)


def efficientnet_block(x, tensors, name, stride):
    inputs = x
    if f"{name}._expand_conv.weight" in tensors:
        x = same_convolution(x, np.float64(tensors[f"{name}._expand_conv.weight"]))
        x = relu6(batch_normalisation(x, tensors, f"{name}._bn0"))
    x = same_convolution(x, np.float64(tensors[f"{name}._depthwise_conv.weight"]), stride, depthwise=True)
    x = relu6(batch_normalisation(x, tensors, f"{name}._bn1"))
    x = same_convolution(x, np.float64(tensors[f"{name}._project_conv.weight"]))
    x = batch_normalisation(x, tensors, f"{name}._bn2")
    return x + inputs if x.shape == inputs.shape else x


def efficientnet_lite0(image, tensors):
    """The pooled features, float64 (1280,), of a BGR image (H, W, 3), and the maps after stem, blocks and head."""
    x = (np.float64(image[..., ::-1].transpose(2, 0, 1)) - 127) / 128
    x = same_convolution(x, np.float64(tensors["_conv_stem.weight"]), 2)
    maps = [relu6(batch_normalisation(x, tensors, "_bn0"))]
    for number, stride in enumerate([1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]):
        maps.append(efficientnet_block(maps[-1], tensors, f"_blocks.{number}", stride))
    x = same_convolution(maps[-1], np.float64(tensors["_conv_head.weight"]))
    maps.append(relu6(batch_normalisation(x, tensors, "_bn1")))
    return maps[-1].mean((1, 2)), maps
