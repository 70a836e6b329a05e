"""Seeded inputs of the parity cases in parity/wsdhq.npz; every array is a pure function of its seed.

The cases are what the authors' released program computed on these inputs, in float32 with TensorFlow 2.21 in
graph mode, with B = 8 images, T = 20 tags, base seed 1000 and λ = 1e-4. How closely to agree: losses 1e-5
relative, gradients 1e-5 of the largest entry, embeddings 1e-4, the three training steps 1e-3 relative, MAP and
curves 1e-6, codes exactly, codebook updates 5e-4 (the released program inverts in float32).
"""
from pathlib import Path

import numpy as np

SEED = 1000
CASES = np.load(Path(__file__).parent / "parity" / "wsdhq.npz")
KERNELS = {"conv1": (11, 11, 3, 96), "conv2": (5, 5, 48, 256), "conv3": (3, 3, 256, 384), "conv4": (3, 3, 192, 384),
               "conv5": (3, 3, 192, 256), "fc6": (9216, 4096), "fc7": (4096, 4096), "fc8": (4096, 300)}


def alexnet_weights(seed):
    """He-initialised parameters, `{layer: [kernel, bias]}`."""
    rng = np.random.RandomState(seed)
    weights = {}
    for layer, shape in KERNELS.items():
        scale = np.float32(np.sqrt(2.0 / int(np.prod(shape[:-1]))))
        kernel = rng.standard_normal(shape).astype(np.float32) * scale
        if layer == "conv1":
            kernel /= np.float32(60)
        if layer == "fc8":
            kernel *= np.float32(0.05)
        weights[layer] = [kernel, rng.uniform(-0.05, 0.05, shape[-1]).astype(np.float32)]
    return weights


def images(seed, n):
    """Blocks of colour under noise, BGR, uint8 (n, 256, 256, 3)."""
    rng = np.random.RandomState(seed)
    blocks = rng.randint(0, 256, (n, 8, 8, 3)).astype(np.float32)
    noise = rng.randint(-20, 21, (n, 256, 256, 3)).astype(np.float32)
    return np.clip(blocks.repeat(32, 1).repeat(32, 2) + noise, 0, 255).astype(np.uint8)


def tags(seed, n, t):
    """W, float64 (t, 300), rows not normalised, and 0/1 labels, float32 (n, t), at least one tag an image."""
    rng = np.random.RandomState(seed)
    embeddings = rng.standard_normal((t, 300)) * 0.2
    labels = (rng.rand(n, t) < 3.0 / t).astype(np.float32)
    labels[np.arange(n), rng.randint(0, t, n)] = 1
    return embeddings, labels


def features(seed, n):
    """Image embeddings, float32 (n, 300)."""
    rng = np.random.RandomState(seed)
    return np.tanh(rng.standard_normal((n, 300)) * 0.4).astype(np.float32)


def codebooks(seed, m):
    """Codebooks, float32 (m, 256, 300)."""
    rng = np.random.RandomState(seed)
    return (rng.standard_normal((m * 256, 300)) * 0.3 / m).astype(np.float32).reshape(m, 256, 300)


def codes(seed, n, m):
    """Codes, uint8 (n, m)."""
    return np.random.RandomState(seed).randint(0, 256, (n, m)).astype(np.uint8)
