"""The last layer alone, as a network whose inputs are fixed features."""
from models.layers import LAST
from models.session import tf
from util import DIMENSIONS


class Head:
    """A network as backbones are, of `width` features an image.

    Attributes:
        LAYERS, INPUT: as of a backbone.
    """

    def __init__(self, width):
        self.LAYERS = {LAST: (width, DIMENSIONS)}
        self.INPUT = tf.float32, (width,)

    def features(self, inputs, _variables, dropout=lambda x, index: x):
        """The inputs themselves, after the dropout that is the last before this layer."""
        return dropout(inputs, 0), {}
