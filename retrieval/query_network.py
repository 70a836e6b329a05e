"""The network that embeds the photos of queries. It loads TensorFlow, which takes seconds."""
from functools import partial
from pathlib import Path

from models.checkpoint import read_checkpoint
from quantization.neighbourhoods import averages
from retrieval.photo_encoder import encoder_of
from retrieval.photo_searcher import Photos
from retrieval.searcher import load_index
from retrieval.shared_network import SharedNetwork
from retrieval.up_to_date import check_checkpoint


def load(folder, facts, checkpoint, gpu):
    """The QueryNetwork of the index in `folder`: the network that embedded its photos. Raises UserError.

    Args:
        facts: of the index.
        checkpoint (Path): where the checkpoint is now.
        gpu: number of the GPU that embeds photos, None for the CPU.
    """
    check_checkpoint(folder, facts, checkpoint)
    trained = read_checkpoint(checkpoint)
    return QueryNetwork(encoder_of(trained, facts["crops"], gpu), trained.neighbours)


class QueryNetwork:
    """What embeds the photos of queries, as shared_network.SharedNetwork asks: like codes, a query stands for a photo
    together with the training photos near it.

    Args:
        encoder: an encoder.PhotoNetwork.
        neighbours: as of `neighbourhoods.averages`.
    """

    def __init__(self, encoder, neighbours):
        self.resize = encoder.resize
        self._encoder, self._neighbours = encoder, neighbours

    def embed(self, photos):
        """Embeddings of B photos, paths or images, float32 (B, D)."""
        return averages(self._encoder.embed(photos), self._neighbours)


def open_index(folder, checkpoint=None, gpu=None, images=None):
    """The photos of an index, ready to be searched: see `search.open_index`."""
    loaded = load_index(folder, images)
    facts = loaded.content.facts
    return Photos(loaded, SharedNetwork(partial(load, folder, facts, Path(checkpoint or facts["checkpoint"]), gpu)))
