"""The programs as people call them: real files, real TensorFlow, a dozen small photos."""
import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

import train as train_program
from models import alexnet
from storage.arrays import read_weights, write_weights
from tiny import (
    EXPERIMENT,
    PROJECT,
    QUERIES,
    STEPS,
    TRAINING,
    command,
    make_tiny,
    start,
    train,
    training,
    validate,
    wait_for,
    write_pickle,
)

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small):
    """A tiny data set and what training showed on a terminal."""
    root = make_tiny(tmp_path_factory.mktemp("trained"))
    code, output = run_in_terminal(*training(root, "--save-every", 5))
    assert code == 0, output
    return root, output


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path)


# ---------------------------------------------------------------- training

def test_training_writes_a_checkpoint_in_the_released_format_and_records_what_it_was_made_of(trained):
    root, _ = trained
    weights = read_weights(root / "checkpoints" / f"{EXPERIMENT}.npy")
    assert set(weights) == {*alexnet.LAYERS, "C"}
    assert weights["fc8"][0].shape == (32, 300)
    assert weights["C"].shape == (512, 300)
    record = json.loads((root / "checkpoints" / f"{EXPERIMENT}.json").read_text())
    assert record["options"]["batch_size"] == 4
    assert record["seed"] == 0
    assert set(record["fingerprints"]) == {"train_img.txt", "train_tag.txt", "FinalTagEmbs.txt", "TagIdMergeMap.pkl",
                                           "alexnet.npy"}
    assert record["versions"]["numpy"] == np.__version__


def test_log_lines_are_the_released_ones(trained):
    log = (trained[0] / "logs" / f"{EXPERIMENT}.log").read_text()
    lines = re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} step \[ {3}\d\], lr \[0\.0000300\], embedding loss "
                       r"\[ \d\.\d{4}\], quantization loss \[ ?\d+\.\d{4}\], +\d+\.\d\d sec/batch\.$", log, re.M)
    assert len(lines) == STEPS
    assert all("quantization loss [ 0.0000]" in line for line in lines[:7])
    assert "quantization loss [ 0.0000]" not in lines[7]


@pytest.mark.slow
def test_two_stages_learn_codebooks_only_after_the_network(tiny, run_here):
    code, output = train(tiny, "--two-stage", iterations=9, run=run_here)
    assert code == 0, output
    assert output.count("quantization loss [ 0.0000]") == 9
    code, _ = validate(tiny, run=run_here)
    assert code == 0
    with h5py.File(tiny / "checkpoints" / f"{EXPERIMENT}_retrieval.h5") as file:
        error = np.square(file["db_features"][()] - file["db_reconstr"][()]).sum()
        assert error < 0.5 * np.square(file["db_features"][()]).sum()


def test_images_without_a_usable_tag_are_kept_and_counted(trained):
    assert "10 training images, 5 merged tags" in trained[1]
    assert "1 images have none" in trained[1]


def test_tensorboard_finds_the_scalars(trained):
    events = list((trained[0] / "logs" / EXPERIMENT).glob("events*"))
    assert len(events) == 1
    assert b"loss/embedding" in events[0].read_bytes()


def test_sigterm_and_ctrl_c_save_the_state_and_a_resumed_run_ends_as_an_undisturbed_one(
        trained, tmp_path, run_here, monkeypatch):
    root, _ = trained
    expected = (root / "checkpoints" / f"{EXPERIMENT}.npy").read_bytes()
    shutil.copytree(root / "data", tmp_path / "data")
    shutil.copytree(root / "datasets", tmp_path / "datasets")
    process = start(tmp_path)
    wait_for("step [   2]", process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate()[0]
    saved_after(signal.SIGTERM, process.returncode, output)
    log = (tmp_path / "logs" / f"{EXPERIMENT}.log").read_text()
    assert all(line in log for line in output.splitlines())
    with monkeypatch.context() as patch:
        interrupt_at(6, patch)
        saved = saved_after(signal.SIGINT, *train(tmp_path, "--resume", run=run_here))
    states = tmp_path / "checkpoints" / f"{EXPERIMENT}_state"
    assert [path.name for path in states.iterdir()] == [f"step_{saved:08d}"]
    code, output = train(tmp_path, "--resume", run=run_here)
    assert code == 0, output
    assert f"resumed before step {saved + 1}" in output
    assert (tmp_path / "checkpoints" / f"{EXPERIMENT}.npy").read_bytes() == expected
    code, output = train(tmp_path, "--resume", iterations=4, run=run_here)
    assert code == 2
    assert f"the saved state follows step {saved}, beyond the 4 ITERATIONS" in output
    code, output = train(tmp_path, "--resume", "--seed", 1, run=run_here)
    assert code == 2
    assert "seed was 0, now 1" in output


def saved_after(number, code, output):
    """The step whose state a training saved, checked, when a signal came."""
    assert code == 128 + number, output
    assert "Traceback" not in output
    saved, = re.findall(rf"{number.name}: saved the state after step (\d+); --resume goes on from it", output)
    return int(saved)


def interrupt_at(last, patch):
    """Send Ctrl-C's signal to this process while it takes the step of a 1-based number."""
    learning_rate = train_program.learning_rate

    def interrupted(initial, step):
        if step + 1 == last:
            os.kill(os.getpid(), signal.SIGINT)
        return learning_rate(initial, step)
    patch.setattr(train_program, "learning_rate", interrupted)


def test_a_checkpoint_starts_another_training_with_its_embedding_and_codebooks(trained, run_here):
    root, _ = trained
    code, output = run_here("train.py", "tiny", 0.00003, 0, 0.0001, 2, "WSDHQ", "again", "cpu", "--root", root,
                       "--weights", root / "checkpoints" / f"{EXPERIMENT}.npy")
    assert code == 0, output
    again = root / "checkpoints" / EXPERIMENT.replace("_t", "_again")
    for layer, arrays in read_weights(f"{again}.npy").items():
        expected = read_weights(root / "checkpoints" / f"{EXPERIMENT}.npy")[layer]
        for found, before in zip(arrays, expected, strict=True):
            np.testing.assert_array_equal(found, before)


def test_a_run_too_short_for_codebooks_and_a_gpu_that_is_not_there_are_warned_of(tiny, run_here):
    code, output = train(tiny, iterations=0, gpu="7", run=run_here)
    assert code == 0, output
    assert "the checkpoint will hold random codebooks" in output
    assert output.count("GPU 7 was not found") == 1


# ---------------------------------------------------------------- scripts, terminals and full disks

def test_run_sh_validates_what_it_trained_with_other_options_in_another_root(tiny):
    older = tiny / "checkpoints" / f"{EXPERIMENT}.npy"
    older.parent.mkdir()
    older.write_text("of an earlier training")
    root = tiny.rename(tiny.with_name("a root with spaces"))
    scripts, python = tiny.with_name("scripts"), tiny.with_name(".venv") / "bin/python"
    shutil.copytree(PROJECT / "scripts", scripts)
    python.parent.mkdir(parents=True)  # the environment that run.sh finds has the small network
    python.write_text(f'#!/bin/sh\ncd "{PROJECT}"\n'
                      'case $* in *--print-path) ;; *) set -- tests/support/small_network.py "$@" ;; esac\n'
                      f'exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", scripts / "run.sh", "tiny", "0.00003", "1", "0.0001", "2", "t", "cpu", "--gamma", "2",
         f"--root={root}", "--batch-size", "4", "--backbone-init", "lsuv"],
        capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics, = (root / "checkpoints").glob("*_metrics.json")
    assert metrics.name == EXPERIMENT.replace("gamma=1", "gamma=2") + "_metrics.json"


def test_a_terminal_shows_a_bar_with_the_loss_and_the_log_keeps_the_lines(trained):
    root, shown = trained
    assert re.search(r"training:.*8/8.*loss=\d\.\d{4}", shown), shown
    assert "step [" not in shown
    assert "saved" in shown
    assert (root / "logs" / f"{EXPERIMENT}.log").read_text().count("step [") == STEPS


def run_in_terminal(*arguments):
    """Exit code and output of a program that a person watches."""
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (40, 150))
    process = subprocess.Popen(command(*arguments), cwd=PROJECT, stdout=end, stderr=end)
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # what Linux raises at the end
        while part := os.read(terminal, 10_000):
            shown += part
    os.close(terminal)
    return process.wait(), shown.decode()


def test_a_checkpoint_that_cannot_be_written_leaves_a_state_from_which_resume_writes_it(trained, tiny, run_here):
    expected = (trained[0] / "checkpoints" / f"{EXPERIMENT}.npy").read_bytes()
    path = tiny / "checkpoints" / f"{EXPERIMENT}.npy"
    path.mkdir(parents=True)  # a folder is where the file goes
    code, output = train(tiny, run=run_here)
    assert code == 2, output
    assert re.search(rf"error: {path} could not be written \(.*\); the state after the last step is saved: --resume",
                     output), output
    path.rmdir()
    code, output = train(tiny, "--resume", run=run_here)
    assert code == 0, output
    assert "step [" not in output.split("resumed before")[1]
    assert path.read_bytes() == expected


def test_a_disk_without_room_for_the_checkpoint_is_reported_before_the_first_step(tiny, monkeypatch, run_here):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**5))
    code, output = train(tiny, run=run_here)
    assert code == 2, output
    assert re.search(r"error: .*checkpoints: .* takes \d+ MB, and the disk has 0 MB free", output), output
    assert "step [" not in output
    assert not list((tiny / "checkpoints").iterdir())


# ---------------------------------------------------------------- validation

def test_validation_reports_map_next_to_the_random_one_and_does_not_embed_twice(trained, run_here):
    root, _ = trained
    path = root / "checkpoints" / f"{EXPERIMENT}_retrieval.h5"
    code, output = validate(root, run=run_here)
    assert code == 0, output
    assert "is not there yet" in output
    log = (root / "logs" / f"{EXPERIMENT}.log").read_text()
    for metric in ("AQD", "SQD", "feats", "random"):
        assert re.search(rf"{metric} mAP@10 = \[\d\.\d{{4}}\], duration: \d+\.\d\d sec\.$", log, re.M)
    assert "counts the first 10 results, not 5000" in output
    with h5py.File(path) as file:
        assert file["db_features"].shape == (TRAINING, 300)
        assert file["qry_codes"].shape == (QUERIES, 2)
    first = json.loads((root / "checkpoints" / f"{EXPERIMENT}_metrics.json").read_text())
    assert first["bits"] == 16
    code, output = validate(root, run=run_here)
    assert "the files match" in output
    second = json.loads((root / "checkpoints" / f"{EXPERIMENT}_metrics.json").read_text())
    assert [first[name]["map"] for name in ("AQD", "SQD", "feats")] == [
        second[name]["map"] for name in ("AQD", "SQD", "feats")]


def test_new_labels_are_read_and_a_new_checkpoint_is_embedded_though_its_name_is_the_same(trained, tmp_path, run_here):
    root = tmp_path / "copy"
    shutil.copytree(trained[0], root, ignore=shutil.ignore_patterns("*_state"))
    assert validate(root, run=run_here)[0] == 0
    with h5py.File(root / "checkpoints" / f"{EXPERIMENT}_retrieval.h5") as file:
        features = file["db_features"][()]
    labels = root / "data" / "tiny" / "test_label.txt"
    labels.write_text("0 1\n" * QUERIES)
    code, output = validate(root, run=run_here)
    assert code == 0, output
    assert "with new labels" in output
    with h5py.File(root / "checkpoints" / f"{EXPERIMENT}_retrieval.h5") as file:
        np.testing.assert_array_equal(file["qry_label"][()], [[0, 1]] * QUERIES)
    path = root / "checkpoints" / f"{EXPERIMENT}.npy"
    weights = read_weights(path)
    weights["fc8"][0] *= 2
    write_weights(path, weights)
    code, output = validate(root, run=run_here)
    assert code == 0, output
    assert "made with another checkpoint" in output
    with h5py.File(root / "checkpoints" / f"{EXPERIMENT}_retrieval.h5") as file:
        assert not np.array_equal(file["db_features"][()], features)


# ---------------------------------------------------------------- bad input

def _write(path, text):
    return lambda root: (root / path).write_text(text)


def _rewrite(path, change):
    def apply(root):
        (root / path).write_text(change((root / path).read_text()))
    return apply


def _halve(path):
    def apply(root):
        (root / path).write_bytes((root / path).read_bytes()[:500])
    return apply


BAD_TRAINING = {
    "missing file": (lambda root: (root / "data/tiny/train_tag.txt").unlink(), r"train_tag\.txt: no such file"),
    "lengths": (_rewrite("data/tiny/train_img.txt", lambda text: text + "x.jpg\n"),
                r"train_tag\.txt has 10 rows, but .*train_img\.txt lists 11 images"),
    "not 0/1": (_rewrite("data/tiny/train_tag.txt", lambda text: text.replace("1", "7", 1)),
                r"train_tag\.txt: row 1: expected 0 or 1, found '7'"),
    "image missing": (lambda root: (root / "datasets/tiny/3.jpg").unlink(), r"3\.jpg \(row 4\) is missing"),
    "image empty": (_write("datasets/tiny/3.jpg", ""), r"3\.jpg \(row 4\) is empty"),
    "image truncated": (_halve("datasets/tiny/3.jpg"), r"3\.jpg \(row 4\) is truncated"),
    "no image": (_write("datasets/tiny/3.jpg", "hello"), r"3\.jpg \(row 4\) is not an image"),
    "sizes": (lambda root: write_pickle(root / "data/tiny/tags/TagIdMergeMap.pkl", {0: [0], 1: [1]}),
              r"holds 2 merged tags, but .*FinalTagEmbs\.txt has 5 rows"),
    "NaN": (_rewrite("data/tiny/tags/FinalTagEmbs.txt", lambda text: text.replace(text.split()[0], "nan", 1)),
            r"FinalTagEmbs\.txt: row 1 holds NaN"),
    "no tags": (_write("data/tiny/train_tag.txt", "0 0 0 0 0 1\n" * TRAINING), "no image has a usable tag"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_training_input_is_one_sentence_and_exit_code_2(tiny, case, run_here):
    spoil, sentence = BAD_TRAINING[case]
    spoil(tiny)
    code, output = train(tiny, run=run_here)
    assert code == 2, output
    assert "Traceback" not in output
    assert re.search(sentence, output), output
    assert not (tiny / "checkpoints").exists()


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["nope", 0.1, 1, 0, 1, "WSDQH", "t", "cpu"], "unknown data set 'nope'.*known here: tiny"),
    (["tiny", 0.1, 1, 0, 9, "WSDQH", "t", "cpu"], "SUBSPACE_NUM: expected a whole number from 1 to 8, found '9'"),
    (["tiny", "fast", 1, 0, 1, "WSDQH", "t", "cpu"], "LR: expected a number of at least 0, found 'fast'"),
    (["tiny", 0.1, 1, 0, 1, "HASH", "t", "cpu"], "LOSS: invalid choice"),
    (["tiny", 0.1, 1, 0, 1, "WDHT", "t", "cpu", "--negative-sampling"], "--negative-sampling is an option of WSDQH"),
    (["tiny", 0.1, 1, 0, 1, "WDHT", "t", "cpu", "--pairs", 1], "--pairs is an option of SOFTMAX and MILNCE, not of WD"),
    (["tiny", 0.1, 1, 0, 1, "PCA", "t", "cpu"], r"PCA reduces the features .* expected --encoder FILE\.onnx"),
    (["tiny", 0.1, 1, 0, 1, "WSDQH", "t", "cpu", "--encoder", "a.onnx", "--features", "b.h5"], "exclude each other"),
    (["tiny", 0.1, 1, 0, 1, "WSDQH", "t", "cpu", "--two-stage", "--final-fit"], "exclude each other"),
    (["tiny", 0.1, 1, 0, 1, "WSDQH", "t", "cpu", "--weights", "a", "--backbone-init", "lsuv"], "exclude each other"),
    (["tiny", 0.1, 1, 0, 1, "WSDQH", "a/b", "cpu"], "NOTES: expected no slash, found 'a/b'"),
    (["tiny", 0.1, 1, 0, 1, "WSDQH", "t", "0,1"], "expected a GPU number such as 0, or -1 or cpu, found '0,1'"),
    (["tiny", 0.1, 1, 0, 1, "MILNCE", "t", "cpu", "--encoder", "gone.onnx"], r"gone\.onnx: no such file"),
    (["tiny", 0.1, 1, 0, 1, "MILNCE", "t", "cpu", "--features", "gone.h5"], r"gone\.h5: no such file"),
    (["tiny", 0.1, 1, 0, 1, "WSDQH", "t", "cpu"],
     r"alexnet\.npy: no such file.*--backbone-init lsuv, which learn with LR 1e-5 to 3e-5 and --dropout 0"),
    (["tiny", 0.1, 1, 0, 1, "WSDQH", "t", "cpu", "--resume", "--backbone-init", "lsuv"],
     r"no saved state to resume; one is saved when a training is interrupted, and every N steps with --save-every"),
])
def test_bad_arguments_are_one_sentence_and_exit_code_2(tiny, arguments, sentence, run_here):
    code, output = run_here("train.py", *arguments, "--root", tiny)
    assert code == 2, output
    assert "Traceback" not in output
    assert re.search(sentence, output, re.S), output


def test_skip_bad_leaves_out_image_and_row_together_and_counts_them(tiny, run_here):
    (tiny / "datasets/tiny/0.jpg").unlink()
    _halve("datasets/tiny/11.jpg")(tiny)
    code, output = train(tiny, "--skip-bad", iterations=0, run=run_here)
    assert code == 0, output
    assert "9 training images" in output
    assert "1 bad images were left out" in output
    code, output = validate(tiny, run=run_here)
    assert code == 2
    assert re.search(r"0\.jpg \(row 1\) is missing", output), output
    code, output = validate(tiny, "--skip-bad", run=run_here)
    assert code == 0, output
    with h5py.File(tiny / "checkpoints" / f"{EXPERIMENT}_retrieval.h5") as file:
        labels = np.loadtxt(tiny / "data/tiny/database_label.txt")
        np.testing.assert_array_equal(file["db_label"][()], labels[1:])
        assert file["qry_label"].shape == (QUERIES - 1, 2)
    shutil.copy(tiny / "datasets/tiny/1.jpg", tiny / "datasets/tiny/0.jpg")
    code, output = validate(tiny, "--skip-bad", run=run_here)
    assert code == 0, output
    assert "was made with another choice of database images" in output
    with h5py.File(tiny / "checkpoints" / f"{EXPERIMENT}_retrieval.h5") as file:
        assert len(file["db_features"]) == len(file["db_label"]) == len(labels)


def test_validation_refuses_label_files_of_different_widths(tiny, run_here):
    write_weights(tiny / "x.npy", {"fc8": [np.zeros((7, 300)), np.zeros(300)], "C": np.zeros((256, 300))})
    (tiny / "data/tiny/test_label.txt").write_text("0 1 1\n" * QUERIES)
    code, output = validate(tiny, checkpoint=tiny / "x.npy", run=run_here)
    assert code == 2
    assert "must have the same columns, found 2 and 3" in output


def test_no_pickle_of_the_project_is_read_without_care():
    for path in [*PROJECT.glob("*.py"), *PROJECT.glob("[!t.]*/*.py")]:
        text = path.read_text()
        assert "allow_pickle=True" not in text, path
        assert not re.search(r"(?<!plain_)pickle\.loads?\(", text), path
