"""Word vectors of tags, trained by gensim on the tag lists of the training images."""
import math

import numpy as np
from gensim.models import Word2Vec

from util import DIMENSIONS, UserError

# Skip-gram goes over the tag lists until the median tag has been seen this often. Values from 250 to beyond 700 were
# tried on lists of 56 to 1,000 tags: below this most vectors point one way, above it tags that belong together drift
# apart.
MEDIAN_SIGHTINGS = 400
MOST_SIGHTINGS = 3_000_000  # of all tags together: under a minute, where a list of mostly rare tags would take hours


def train_vectors(tags, matrix, seed):
    """Vectors learned from which tags occur together: skip-gram Word2Vec over the images' tag lists, then centred.

    Args:
        tags: R tags, all different.
        matrix: 0/1 CSR (N, R) that stores ones only, the tags of each training image.
        seed (int): the same seed gives the same vectors.

    Returns:
        vectors, spelled: as returned by `word_vectors.find_vectors`; a tag that no image has gets none.

    Raises:
        UserError: no image has a tag.
    """
    lists = [[tags[column] for column in columns] for columns in np.split(matrix.indices, matrix.indptr[1:-1])]
    used, counts = np.unique(matrix.indices, return_counts=True)  # columns that an image has, and how many images do
    if not len(used):
        raise UserError("no training image has a tag, so there is nothing to train word vectors on")
    model = Word2Vec(
        lists, vector_size=DIMENSIONS, min_count=1, sg=1, seed=seed,
        epochs=math.ceil(min(MEDIAN_SIGHTINGS / np.median(counts), MOST_SIGHTINGS / matrix.nnz)),
        window=max(map(len, lists)), shrink_windows=False,  # tags have no order: each is in the context of all others
        sample=0,  # frequent tags are subjects, not stop words
        workers=1,  # since two threads would finish in another order each time
    )
    vectors = np.zeros((len(tags), DIMENSIONS), np.float32)
    vectors[used] = model.wv[[tags[column] for column in used]]
    # With few tags, all vectors share one large component (any two have cosines of 0.5 and more) that means nothing.
    vectors[used] -= vectors[used].mean(0)
    return vectors, [tag if vector.any() else None for tag, vector in zip(tags, vectors, strict=True)]
