"""A network that threads share: loaded once and late, photos that wait go together, errors reach whom they concern."""
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from retrieval.shared_network import MOST_TOGETHER, SharedNetwork
from util import UserError


class Mean:
    """A network whose embedding of an image is its mean; the first run waits until it may go on."""

    def __init__(self):
        self.runs = []
        self.began, self.may_go_on = threading.Event(), threading.Event()

    def embed(self, images):
        self.runs.append(len(images))
        self.began.set()
        assert self.may_go_on.wait(30)
        return np.array([[image.mean()] for image in images], np.float32)


def image(number):
    return np.full((2, 2, 3), number, np.uint8)


def test_photos_that_wait_while_the_network_runs_are_embedded_together():
    network, loaded = Mean(), []
    shared = SharedNetwork(lambda: loaded.append(1) or network)
    assert not loaded
    with ThreadPoolExecutor(2 * MOST_TOGETHER) as pool:
        first = pool.submit(shared.embed_one, image(0))
        assert network.began.wait(30)
        rest = [pool.submit(shared.embed_one, image(number)) for number in range(1, MOST_TOGETHER + 4)]
        while len(shared._waiting) < len(rest):
            threading.Event().wait(0.01)
        network.may_go_on.set()
        assert [future.result()[0] for future in [first, *rest]] == list(range(MOST_TOGETHER + 4))
    assert network.runs == [1, MOST_TOGETHER, 3]
    assert loaded == [1]


def test_a_network_that_cannot_be_loaded_is_told_to_all_who_wait_and_tried_again():
    tries = []

    def load():
        tries.append(1)
        if len(tries) < 3:
            raise UserError("no such file")
        return Mean()
    shared = SharedNetwork(load)
    for _ in range(2):
        with pytest.raises(UserError, match="no such file"):
            shared.embed_one(image(1))
    assert shared.embed([]).shape == (0, 300)
    assert len(tries) == 2
