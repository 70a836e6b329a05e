"""Seeded inputs of the cases in parity/gpq.npz; every array is a pure function of its seed.

The cases are what the authors' released functions computed, in float32 with TensorFlow 2.21 in graph mode, on
`arrays(1000)` as labelled and unlabelled features, Z, prototypes and labels: 6 segments of 12 dimensions, 16
codewords, 5 classes, α = 20, β = 4. The distance and the mAP take the features and labels of `arrays(1001)` as
queries. How closely to agree: 1e-5, mAP 1e-9, codes exactly.
"""
from pathlib import Path

import numpy as np

SEED = 1000
CASES = np.load(Path(__file__).parent / "parity" / "gpq.npz")
BOOKS, WORDS, DIMENSIONS, CLASSES, ALPHA, BETA = 6, 16, 12, 5, 20, 4


def arrays(seed, images=10):
    """Features of labelled and of unlabelled images (B, M·D), Z (K, M·D), prototypes (L, M·D), labels (B,)."""
    rng = np.random.RandomState(seed)
    length = BOOKS * DIMENSIONS
    rows = {"features": images, "target_features": images, "Z": WORDS, "prototypes": CLASSES}
    drawn = {name: rng.standard_normal((n, length)).astype(np.float32) for name, n in rows.items()}
    return {**drawn, "labels": rng.randint(0, CLASSES, images)}


def cifar_batches(seed, images_per_file=60, classes=10):
    """`{file name: content}` of six small batch files and batches.meta, as Python 3 spells them; 36 images a class."""
    rng = np.random.RandomState(seed)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    labels = rng.permutation(np.arange(len(names) * images_per_file) % classes).reshape(len(names), -1)
    colours = rng.randint(0, 256, (classes, 3072))  # images of a class are alike
    files = {name: {b"labels": row.tolist(),
                    b"data": np.clip(colours[row] + rng.randint(-60, 61, (images_per_file, 3072)), 0, 255).astype("u1")}
             for name, row in zip(names, labels, strict=True)}
    return {**files, "batches.meta": {b"label_names": [f"class {number}".encode() for number in range(classes)]}}
