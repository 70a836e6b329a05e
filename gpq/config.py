"""Every option of GPQ with its default and what it is for; each is `--name-with-dashes` on the command line."""
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, get_type_hints

from util import add_shared_options, number

A_COUNT, A_NUMBER = number(int, 1), number(float, 0)


@dataclass(frozen=True)
class Config:
    """The release's options with the release's defaults; 48 bits an image."""
    # data and paths; relative ones are in --root
    data: Annotated[Path, Path, "folder of CIFAR-10's python-format batches"] = Path("cifar10")
    images: Annotated[int, A_COUNT, "use so many of the images, drawn by the seed; all if there are fewer"] = 60_000
    labelled_per_class: Annotated[int, A_COUNT, "images of each class whose labels are used"] = 500
    pretrained: Annotated[Path | None, Path, ".mat or .npz to start the network from; without it, Xavier"] = None
    checkpoints: Annotated[Path, Path, "folder of the checkpoints that training writes"] = Path("checkpoints/gpq")
    logs: Annotated[Path, Path, "folder of the log and TensorBoard's events"] = Path("logs/gpq")
    # codebooks: M of them with K = 2^bn_word codewords of len_code dimensions
    n_book: Annotated[int, A_COUNT, "codebooks, M"] = 12
    bn_word: Annotated[int, number(int, 1, 8), "bits a codebook: it has 2^bn_word codewords"] = 4
    len_code: Annotated[int, A_COUNT, "dimensions of a codeword"] = 12
    # method
    alpha: Annotated[float, A_NUMBER, "α, how hard features are assigned to codewords"] = 20.0
    beta: Annotated[float, A_NUMBER, "β, scale of the cosines that classify"] = 4.0
    lambda_1: Annotated[float, A_NUMBER, "λ₁, weight of the subspace entropy of unlabelled images"] = 0.1
    lambda_2: Annotated[float, A_NUMBER, "λ₂, weight of the classification loss"] = 0.1
    # training
    epochs: Annotated[int, number(int, 0), "epochs of steps_per_epoch steps"] = 300
    steps_per_epoch: Annotated[int, A_COUNT, "steps of an epoch; each has a line in the log"] = 10
    batch_size: Annotated[int, A_COUNT, "labelled images a step"] = 500
    batch_size_unlabelled: Annotated[int, A_COUNT, "unlabelled images a step"] = 500
    learning_rate: Annotated[float, A_NUMBER, "of the first 100 steps; then 0.95 of it, and so on"] = 0.0002
    save_period: Annotated[int, A_COUNT, "epochs between two checkpoints"] = 20

    @property
    def steps(self):
        """Steps of the whole training."""
        return self.epochs * self.steps_per_epoch

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


def add_options(parser):
    """Every field of Config, --seed and --root as options."""
    hints = get_type_hints(Config, include_extras=True)
    for option in fields(Config):
        kind, comment = hints[option.name].__metadata__
        parser.add_argument(f"--{option.name.replace('_', '-')}", type=kind, default=option.default, metavar="X",
                            help=f"{comment} (default {option.default})")
    add_shared_options(parser)


def from_options(options):
    """The Config of parsed options; paths that are not absolute are in --root."""
    values = {option.name: getattr(options, option.name) for option in fields(Config)}
    return Config(**{name: options.root / value if isinstance(value, Path) else value
                     for name, value in values.items()})
