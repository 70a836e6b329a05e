"""The programs of ablations and of losses, on a dozen small photos."""
import re

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx_writer import describe, write_tiny
from tiny import make_tiny, run
from util import stream


def write_vectors(path):
    rng = stream(0, "vectors")
    path.write_text("".join(f"{word} {' '.join(map(str, rng.normal(size=300)))}\n" for word in "abcdef"))
    return path


@pytest.mark.slow
def test_all_variants_run_once_and_end_in_a_table(tmp_path):
    root = make_tiny(tmp_path)
    vectors = write_vectors(root / "vectors.txt")
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


@pytest.mark.slow
def test_losses_are_measured_on_features_of_an_encoder_and_a_finished_training_is_not_repeated(tmp_path):
    root = make_tiny(tmp_path)
    arguments = ("experiments/losses.py", "tiny", write_vectors(root / "vectors.txt"), "cpu", "--encoder",
                 describe(write_tiny(root / "m.onnx")), "--root", root, "--seeds", 2, "--only", "MILNCE", "--also",
                 "tiny")
    code, output = run(*arguments)
    assert code == 0, output
    assert len(re.findall(r"^  tiny: (?:floats|\d+ bits) +[01]\.\d{4} ±\d\.\d{4}$", output, re.M)) == 5
    assert output.count("running train.py") == 2
    code, again = run(*arguments)
    assert code == 0, again
    assert "running train.py" not in again
    assert again.split("MILNCE")[-1] == output.split("MILNCE")[-1]
    code, output = run(*arguments, "--only", "nothing")
    assert code == 2
    assert "argument --only: invalid choice: 'nothing'" in output
