"""experiments/compare_logs.py on drawn logs, and on two of the release's."""
from pathlib import Path

import cv2
import pytest

from experiments import compare_logs
from tiny import call

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "release_logs"


def write_log(path, losses):
    path.write_text("".join(
        f"2022-10-20 18:24:45,177 step [{step:4d}], lr [0.0003000], embedding loss [{a:7.4f}], quantization loss "
        f"[{b:7.4f}], 17.42 sec/batch.\n" for step, (a, b) in enumerate(losses, 1)))
    return path


def test_two_traces_are_printed_with_their_difference_and_drawn(tmp_path, monkeypatch, capsys):
    ours = write_log(tmp_path / "ours.log", [(0.9, 0), (0.85, 0), (0.8, 0.125)])
    release = write_log(tmp_path / "release.log", [(0.895, 0), (0.86, 0), (0.81, 0.1), (0.7, 0.1)])
    code, printed = call(monkeypatch, capsys, compare_logs, ours, release)
    assert code == 0, printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["1", "0.9000", "0.8950", "+0.0050", "0.0000", "0.0000", "+0.0000"] in rows
    assert ["3", "0.8000", "0.8100", "-0.0100", "0.1250", "0.1000", "+0.0250"] in rows  # the last that both have
    assert "3 steps in both; embedding loss: mean difference -0.0050, mean absolute difference 0.0083" in printed
    assert cv2.imread(str(tmp_path / "ours_compared.png")).std() > 5


def test_a_log_without_steps_is_one_sentence(tmp_path, monkeypatch, capsys):
    ours = write_log(tmp_path / "ours.log", [(0.9, 0)])
    (tmp_path / "other.log").write_text("no steps\n")
    code, printed = call(monkeypatch, capsys, compare_logs, ours, tmp_path / "other.log")
    assert (code, printed.count("\n")) == (2, 1)
    assert "other.log: expected the lines of a training" in printed


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared/data/release_logs next to the repository")
def test_two_logs_of_the_release_are_compared(tmp_path, monkeypatch, capsys):
    logs = [next(SHARED.glob(f"*_{number}.log")) for number in ("0002", "0004")]
    code, printed = call(monkeypatch, capsys, compare_logs, *logs, "--figure", tmp_path / "x.png")
    assert code == 0, printed
    assert "800 steps in both; embedding loss: mean difference -0.0008" in printed
