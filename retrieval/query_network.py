"""The network that embeds the photos of queries. It loads TensorFlow, which takes seconds."""
from functools import partial
from pathlib import Path

from retrieval.photo_encoder import encoder_of
from retrieval.photo_searcher import Photos
from retrieval.searcher import load_index
from retrieval.shared_network import SharedNetwork
from retrieval.up_to_date import check_checkpoint
from storage.checkpoint import read_checkpoint


def load(folder, facts, checkpoint, gpu):
    """The network that embedded the photos of the index in `folder`: an encoder.PhotoNetwork. Raises UserError.

    Args:
        facts: of the index.
        checkpoint (Path): where the checkpoint is now.
        gpu: number of the GPU that embeds photos, None for the CPU.
    """
    check_checkpoint(folder, facts, checkpoint)
    return encoder_of(read_checkpoint(checkpoint), facts["crops"], gpu)


def open_index(folder, checkpoint=None, gpu=None, images=None):
    """The photos of an index, ready to be searched: see `search.open_index`."""
    loaded = load_index(folder, images)
    facts = loaded.content.facts
    return Photos(loaded, SharedNetwork(partial(load, folder, facts, Path(checkpoint or facts["checkpoint"]), gpu)))
