"""GPQ's formulas, written slowly and obviously, in float64: one image, one segment, one codeword at a time."""
import numpy as np


def unit(x):
    return x / np.sqrt(np.sum(np.float64(x) ** 2))


def intra(x, books):
    return np.array([np.concatenate([unit(part) for part in np.split(row, books)]) for row in np.float64(x)])


def softmax(x):
    return np.exp(x) / np.sum(np.exp(x))


def soft(z, x, books, alpha):
    z, x = np.float64(z), np.float64(x)
    rows = []
    for row in x:
        parts = []
        for part, words in zip(np.split(row, books), np.split(z, books, axis=1), strict=True):
            weights = softmax(np.array([alpha * (part @ word - 1) for word in words]))
            parts.append(sum(weight * word for weight, word in zip(weights, words, strict=True)))
        rows.append(np.concatenate(parts))
    return intra(np.array(rows), books)


def n_pair(f, d, labels, books):
    total = 0.0
    for i in range(len(f)):
        p = softmax(np.array([books * (unit(f[i]) @ unit(other)) for other in d]))
        same = np.flatnonzero(labels == labels[i])
        total -= np.mean(np.log(p[same]))
    norms = np.mean([row @ row for row in f]) + np.mean([row @ row for row in d])
    return total / len(f) + 0.0005 * norms


def logits(f, p, books, beta):
    return np.array([[np.mean([(beta * a) @ (beta * b) for a, b in
                               zip(np.split(row, books), np.split(proto, books), strict=True)]) for proto in p]
                     for row in f])


def classification(values, labels):
    return -np.mean([np.log(softmax(row)[label]) for row, label in zip(values, labels, strict=True)])


def entropy(values):
    return np.mean([np.sum(softmax(row) * np.log(softmax(row) + 1e-5)) for row in values])


def total(features, target, z, prototypes, labels, books, alpha, beta):

    p = intra(prototypes, books)
    f, g = intra(features, books), intra(target, books)
    d = soft(soft(p, z, books, alpha), f, books, alpha)
    return (n_pair(f, d, labels, books) + 0.1 * classification(logits(f, p, books, beta), labels)
            + 0.1 * entropy(logits(g, p, books, beta)))


def codes(features, codebooks, books):
    return np.array([[np.argmax([part @ word for word in words]) for part, words in
                      zip(np.split(row, books), np.split(np.float64(codebooks), books, axis=1), strict=True)]
                     for row in np.float64(features)])


def distance(query, code, codebooks):
    books = len(code)
    return sum(1 - part @ words[word] for part, words, word in
               zip(np.split(np.float64(query), books), np.split(np.float64(codebooks), books, axis=1), code,
                   strict=True))


def average_precision(scores, relevant):
    order = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
    hits, precisions = 0, []
    for rank, n in enumerate(order, 1):
        if relevant[n]:
            hits += 1
            precisions.append(hits / rank)
    return np.mean(precisions) if precisions else 0.0


# Batch normalisation: `state` is a dict of the four moving values of one layer.


def batch_norm(x, gamma, beta):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(variance + 0.001) * gamma + beta


def update_averages(state, x):
    count = x[..., 0].size
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2)) * count / (count - 1)
    biased = 0.9 * state["biased"] + 0.1 * mean
    step = state["local_step"] + 1
    return {"biased": biased, "local_step": step, "moving_mean": biased / (1 - 0.9 ** step),
            "moving_variance": 0.9 * state["moving_variance"] + 0.1 * variance}
