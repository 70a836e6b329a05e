"""GPQ's network with few channels."""
from gpq import network

CHANNELS = {3: 3, 64: 4, 128: 4, 256: 4, 512: 6}
NARROW = tuple((convolution, norm, CHANNELS[inputs], CHANNELS[outputs])
               for convolution, norm, inputs, outputs in network.CONVOLUTIONS)
