"""A network of one layer, so that training steps are exact and quick."""
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import scipy.sparse

import net
import parity_inputs as parity
import train
from models.losses import adaptive_margin_loss
from models.session import tf
from models.states import States
from quantization import quantizer
from quantization.codebooks import random_codebooks
from util import stream

W, Y = parity.tags(parity.SEED + 1, 8, 20)
SIDE = 4
PIXELS = tf.uint8, (SIDE, SIDE, 3)


def _features(images, _variables, dropout):
    return dropout(tf.reshape(tf.cast(images, tf.float32) / 255, [-1, SIDE * SIDE * 3]), 0), {}


LINEAR = SimpleNamespace(LAYERS={"fc8": (SIDE * SIDE * 3, 300)}, INPUT=PIXELS, features=_features)


def linear_network(loss=adaptive_margin_loss, **options):
    settings = {"network": LINEAR, "dropout": 0.0, "trainable": ["fc8"], "device": "/cpu:0", **options}
    return net.TrainingNetwork(tag_embeddings=np.float32(W), factor=quantizer.semantic_factor(W), embedding_loss=loss,
                               **settings)


class Pixels:
    """Inputs of a training that are the images themselves."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def batch(self, rows, step):
        return self.images[rows]


@dataclass
class LinearTraining:
    """A training on random images of 4×4 pixels."""
    tags: scipy.sparse.csr_array
    inputs: Pixels
    schedule: train.Schedule
    network: net.TrainingNetwork
    alternation: net.AlternatingUpdate

    def take(self, steps, session):
        """Take the steps; the scalars of each, and the variables afterwards."""
        batches = train.load_batches(self.inputs, self.schedule, steps)
        taken = train.take_steps(batches, self.tags, self.schedule, self.network, self.alternation, session, 1e-3, 1e-4)
        return [scalars for _, scalars, _ in taken], session.run(self.network.variables)


def states_of(training, folder, settings):
    """The States of a LinearTraining, and functions that save and restore one in a session."""
    states = States(folder, settings, "variables", 8)

    def save(step, session):
        states.save(step, session, training.network, training.alternation.tables())
        states.keep_only(step)

    def restore(session):
        training.alternation.restore(states.restore(states.newest_step(), session, training.network))
    return states, save, restore


def linear_training(images, batch_size, codebooks=2, **options):
    rng = stream(0, "linear test")
    labels = (rng.random((images, 20)) < 0.2).astype(np.uint8)
    inputs = Pixels(rng.integers(0, 256, (images, SIDE, SIDE, 3), dtype=np.uint8))
    network = linear_network(**options)
    alternation = net.AlternatingUpdate(images, quantizer.semantic_factor(W), random_codebooks(codebooks, rng), seed=5)
    return LinearTraining(scipy.sparse.csr_array(labels), inputs, train.Schedule(images, batch_size, seed=5), network,
                          alternation)


def linear_weights():
    return {"fc8": [stream(0, "linear weights").normal(0, 0.1, (SIDE * SIDE * 3, 300)).astype(np.float32),
                    np.zeros(300, np.float32)]}
