"""The options that training and demo share, with the release's defaults, and those that define the codes and losses."""
from dataclasses import dataclass, fields
from pathlib import Path

from util import add_shared_options, number


@dataclass(frozen=True)
class Config:
    """What defines the codes and the losses; 48 bits an image by default."""
    n_book: int = 12  # M, codebooks
    bn_word: int = 4  # bits a codebook
    len_code: int = 12  # D, dimensions of a codeword
    alpha: float = 20.0  # α
    beta: float = 4.0  # β
    lambda_1: float = 0.1  # λ₁
    lambda_2: float = 0.1  # λ₂

    @property
    def codewords(self):
        """K, codewords of a codebook."""
        return 2 ** self.bn_word

    @property
    def length(self):
        """M·D, dimensions of a feature."""
        return self.n_book * self.len_code

    @property
    def bits(self):
        """Bits of an image's code."""
        return self.n_book * self.bn_word


COUNT, AMOUNT = number(int, 1), number(float, 0)
OPTIONS = {  # group: name, type, default and help of each option
    "images": (
        ("data", Path, Path("cifar10"), "folder of CIFAR-10's batches in the Python format, relative to --root"),
        ("images", COUNT, 60_000, "number of images to use, drawn by the seed; all if there are fewer"),
        ("labelled-per-class", COUNT, 500, "images of each class whose labels are used"),
    ),
    "method": (
        ("n-book", COUNT, Config.n_book, "codebooks, M"),
        ("bn-word", number(int, 1, 8), Config.bn_word, "bits a codebook, which has 2^bn-word codewords"),
        ("len-code", COUNT, Config.len_code, "dimensions of a codeword"),
        ("alpha", AMOUNT, Config.alpha, "α, how hard features are assigned to codewords"),
        ("beta", AMOUNT, Config.beta, "β, scale of the cosines that classify"),
        ("lambda-1", AMOUNT, Config.lambda_1, "λ₁, weight of the subspace entropy of unlabelled images"),
        ("lambda-2", AMOUNT, Config.lambda_2, "λ₂, weight of the classification loss"),
    ),
    "training (the demo accepts these options and ignores them)": (
        ("epochs", number(int, 0), 300, "epochs of steps-per-epoch steps"),
        ("steps-per-epoch", COUNT, 10, "steps of an epoch; the log has a line for each epoch"),
        ("batch-size", COUNT, 500, "labelled images a step"),
        ("batch-size-unlabelled", COUNT, 500, "unlabelled images a step"),
        ("learning-rate", AMOUNT, 0.0002, "learning rate of the first 100 steps; every 100 steps it falls by 5 %%"),
        ("pretrained", Path, None, ".mat or .npz file to initialise the network from, relative to --root (default: "
                                   "Xavier initialisation)"),
        ("save-period", COUNT, 20, "epochs between two checkpoints"),
        ("checkpoints", Path, Path("checkpoints/gpq"), "folder for the checkpoints, relative to --root"),
        ("logs", Path, Path("logs/gpq"), "folder for the log and TensorBoard's events, relative to --root"),
    ),
}


def add_options(parser):
    """Add OPTIONS, --seed and --root. Both programs take all of them, so that both can be given the same."""
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for name, kind, default, text in options:
            shown = "" if default is None else f" (default {default})"
            group.add_argument(f"--{name}", type=kind, default=default, metavar="X", help=f"{text}{shown}")
    add_shared_options(parser)


def config_of(options):
    """The Config in parsed options."""
    return Config(**{field.name: getattr(options, field.name) for field in fields(Config)})
