"""A network that threads share: it is loaded when the first photo comes, and photos that wait are embedded together."""
import threading
from collections import deque
from concurrent.futures import Future

import numpy as np

from util import DIMENSIONS

MOST_TOGETHER = 16  # photos a run: with ten crops each, as many as the network takes at once


class SharedNetwork:
    """A network and those who wait for it.

    Args:
        load: gives what has `embed`, of a list of paths or images → float32 (B, D), and `resize`, of an image: an
            encoder.Encoder.
    """

    def __init__(self, load):
        self._load = load
        self._network = None
        self._running = threading.Lock()
        self._waiting = deque()  # (image, Future)

    def resize(self, image):
        """A decoded image as the network resizes it, uint8 (256, 256, 3)."""
        if self._network is None:
            with self._running:
                self._loaded()
        return self._network.resize(image)

    def embed(self, photos):
        """The embeddings of a list of B photos, paths or images, float32 (B, D)."""
        with self._running:
            return self._run(photos)

    def embed_one(self, image):
        """The embedding of an image, uint8 (h, w, 3), float32 (D,).

        While the network runs for one thread, images of others gather; the next run takes them all.
        """
        embedding = Future()
        self._waiting.append((image, embedding))
        with self._running:
            while not embedding.done():  # a thread that ran before this one may have seen to it
                self._run_waiting()
        return embedding.result()

    def _run_waiting(self):
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_TOGETHER))]
        images, futures = zip(*taken, strict=True)
        try:
            embeddings = self._run(list(images))
        except Exception as error:
            for future in futures:
                future.set_exception(error)
        else:
            for future, embedding in zip(futures, embeddings, strict=True):
                future.set_result(embedding)

    def _run(self, photos):
        if not photos:
            return np.empty((0, DIMENSIONS), np.float32)
        return self._loaded().embed(photos)

    def _loaded(self):
        if self._network is None:
            self._network = self._load()
        return self._network
