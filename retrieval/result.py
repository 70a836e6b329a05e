"""A photo that was found, and how many are shown unless told otherwise. Light, so that `--help` answers at once."""
from dataclasses import dataclass

DEFAULT_TOPK = 20


@dataclass(frozen=True)
class Result:
    """A photo that was found. hit: whether it shares a label with the query, None where that is not known."""
    rank: int
    score: float
    path: str
    hit: bool | None
