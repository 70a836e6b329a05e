"""experiments/distances.py: held-out photos judge by their tags; what does not fit is refused."""
import math
import re

import numpy as np

from experiments import held_out_tags
from test_baselines import write
from tiny import TRAINING, make_tiny
from util import stream


def arrays(images):
    rng = stream(0, "distances test")
    return {"db_features": rng.normal(size=(images, 300)).astype(np.float32),
            "db_codes": np.zeros((images, 2), np.uint8), "db_label": np.ones((images, 6), np.uint8)}


def test_every_distance_is_measured_by_tags_of_photos_that_were_held_out(tmp_path, run_here, monkeypatch):
    monkeypatch.setattr(held_out_tags, "FEWEST", 1)
    root = make_tiny(tmp_path)
    path = write(tmp_path / "x_retrieval.h5", **arrays(TRAINING))
    code, output = run_here("experiments.distances", "tiny", path, "--queries", 3, "--root", root)
    assert code == 0, output
    maps = [float(number) for number in re.findall(r" (\d\.\d{4}|nan)\n", output)]
    assert len(maps) == 1 + len(held_out_tags.POWERS) * len(held_out_tags.CODEBOOKS)
    assert all(0 < number <= 1 and math.isfinite(number) for number in maps)


def test_embeddings_of_other_photos_are_refused(tmp_path, run_here):
    path = write(tmp_path / "x_retrieval.h5", **arrays(TRAINING + 1))
    code, output = run_here("experiments.distances", "tiny", path, "--queries", 3, "--root", make_tiny(tmp_path))
    assert code == 2
    assert "expected the embeddings of the 10 training photos, more than 3, found 11" in output
