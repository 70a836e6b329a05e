"""AlexNet up to fc7 in plain NumPy, from weights in the layouts of their file: what the conversion is checked with."""
import numpy as np

from prepare.weights_layout import network


def plain_fc7(source, x, normalises_first):
    """fc7 before its ReLU, float32 (4096,), in the source's own layouts.

    Args:
        x: float32 (227, 227, 3), channels as conv1 of the source reads them.
    """
    channels_first = source.format != "npy"
    for name, kind, settings in network(normalises_first):
        if kind == "pooling":
            x = windows(x, settings["size"], settings["stride"]).max((3, 4))
        elif kind == "normalisation":
            x = plain_normalisation(x, **settings)
        elif kind == "convolution":
            x = np.maximum(plain_convolution(x, *source.weights[name], settings, channels_first), 0)
        else:
            kernel, bias = source.weights[name]
            x = x.transpose(2, 0, 1) if x.ndim == 3 and channels_first else x
            x = x.reshape(-1) @ (kernel.T if channels_first else kernel) + bias
            x = np.maximum(x, 0) if name == "fc6" else x
    return x


def windows(x, size, stride):
    """Views of all size×size windows of a map (H, W, C): (rows, columns, C, size, size)."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))[::stride, ::stride]


def plain_normalisation(x, across, size, alpha, beta, bias):
    """Local response normalisation across channels of a map (H, W, C)."""
    squares = np.pad(np.square(x), ((0, 0), (0, 0), (size // 2, size // 2)))
    sums = np.lib.stride_tricks.sliding_window_view(squares, size, 2).sum(3)
    return x / (bias + alpha / size * sums) ** np.float32(beta)


def plain_convolution(x, kernel, bias, settings, channels_first):
    """A convolution of a map (H, W, C) with a kernel (O, I, H, W) if `channels_first`, else (H, W, I, O)."""
    pad, groups = settings["pad"], settings["groups"]
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    parts = []
    for part, filters in zip(np.split(x, groups, 2), np.split(kernel, groups, 0 if channels_first else 3), strict=True):
        size = filters.shape[-1] if channels_first else filters.shape[0]
        patches = windows(part, size, settings["stride"])  # (rows, columns, I, H, W)
        if not channels_first:
            patches = patches.transpose(0, 1, 3, 4, 2)
        flat = patches.reshape(*patches.shape[:2], -1)
        parts.append(flat @ (filters.reshape(len(filters), -1).T if channels_first else
                             filters.reshape(-1, filters.shape[-1])))
    return np.concatenate(parts, 2) + bias
