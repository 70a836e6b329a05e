"""Word vectors, files of them, and tags of images, made for tests."""
import gzip

import numpy as np
import scipy.sparse


def random_vectors(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 300)).astype(np.float32)


def clustered(count, dimensions, seed=0):
    """Vectors of which many are near each other, at all distances, of different lengths."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count // 4 + 1, dimensions))[rng.integers(0, count // 4 + 1, count)]
    spread = rng.uniform(0.02, 0.6, (count, 1))
    return (centres + spread * rng.normal(size=centres.shape)) * rng.uniform(0.5, 5, (count, 1))


def write_binary(path, words, vectors, count=None, behind=b""):
    body = b"".join(word.encode() + b" " + vector.astype("<f4").tobytes() + behind
                    for word, vector in zip(words, vectors, strict=True))
    data = f"{len(words) if count is None else count} {vectors.shape[1]}\n".encode() + body
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def text_rows(words, vectors):
    return "".join(f"{word} {' '.join(map(str, vector.tolist()))}\n"
                   for word, vector in zip(words, vectors, strict=True))


def topical_tags(images=300, seed=0):
    """Tags of three topics, four tags each, and one tag that no image has; each image has two or more of a topic."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((images, 13), np.uint8)
    for image in labels:
        topic = rng.integers(3)
        image[4 * topic + rng.permutation(4)[:rng.integers(2, 5)]] = 1
    return [f"topic{i // 4}{'abcd'[i % 4]}" for i in range(12)] + ["unused"], scipy.sparse.csr_array(labels)
