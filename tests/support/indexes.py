"""An index's content, drawn, that tests write and ask."""
import numpy as np

from retrieval import index
from util import stream, unit_length

N, D, T = 700, 300, 12


def make_content(codebooks=2, images=N, seed=0):
    rng = stream(seed, "index test")
    return index.Content(
        codes=rng.integers(0, 256, (images, codebooks), dtype=np.uint8),
        codebooks=rng.normal(size=(codebooks, 256, D)).astype(np.float32),
        images=[f"some folder/{i}.jpg" for i in range(images)],
        tag_names=[[f"tag{i}", f"tags{i}"] for i in range(T)],
        tag_embeddings=rng.normal(size=(T, D)).astype(np.float32),
        labels=rng.integers(0, 2, (images, 3), dtype=np.uint8), label_names=["a", "b", "c"],
        facts={"seed": seed, "images": "/photos", "vectors": {"path": "/none.txt", "bytes": 9}},
        fingerprints=rng.integers(0, 2**40, (images, 7)),
        embeddings=unit_length(rng.normal(size=(images, D))).astype(np.float16),
        vocabulary=np.sort(rng.integers(0, 2**60, (2, 9), dtype=np.uint64)))
