"""A narrow network of GPQ."""
from gpq import network

# GPQ's network with few channels
NARROW = tuple((convolution, norm, 3 if inputs == 3 else 4, 6 if norm.startswith("batch3") else 4)
               for convolution, norm, inputs, _ in network.CONVOLUTIONS)
NARROW = tuple((row[0], row[1], NARROW[n - 1][3] if n else 3, row[3]) for n, row in enumerate(NARROW))
