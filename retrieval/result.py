"""A photo that was found, and how many are shown unless told otherwise. Light, so that `--help` answers at once."""
from dataclasses import dataclass

DEFAULT_TOPK = 20


@dataclass(frozen=True)
class Result:
    """A photo that was found.

    rank: from 1 on; row: in the index; score: q · its reconstruction, by which results are ranked; cosine: of the query
    and the reconstruction, −1 to 1; path; hit: whether it shares a label with the query, None where that is not known.
    """
    rank: int
    row: int
    score: float
    cosine: float
    path: str
    hit: bool | None
