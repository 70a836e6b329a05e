"""The ablations' program, on a dozen small photos."""
import re

import pytest

from tiny import make_tiny, run
from util import stream


@pytest.mark.slow
def test_all_variants_run_once_and_end_in_a_table(tmp_path):
    root = make_tiny(tmp_path)
    rng = stream(0, "vectors")
    vectors = root / "vectors.txt"
    vectors.write_text("".join(f"{word} {' '.join(map(str, rng.normal(size=300)))}\n" for word in "abcdef"))
    weights = root / "alexnet.npy"
    code, output = run("train.py", "tiny", 0.00003, 0, 0.0001, 1, "WSDQH", "start", "cpu", "--root", root,
                       "--backbone-init", "lsuv")
    assert code == 0, output
    next((root / "checkpoints").glob("*_start.npy")).rename(weights)
    arguments = ("experiments/ablations.py", "tiny", vectors, "cpu", "--root", root, "--steps", 2, "--batch-size", 4,
                 "--seeds", 1, "--codebooks", 1)
    code, output = run(*arguments)
    assert code == 0, output
    table = re.findall(r"^.+ [01]\.\d{4} ±nan.*$", output, re.M)
    assert len(table) == 6
    assert output.count("running train.py") == 6
    code, again = run(*arguments)
    assert code == 0, again
    assert "running train.py" not in again
    assert re.findall(r"^.+ [01]\.\d{4} ±nan.*$", again, re.M) == table
