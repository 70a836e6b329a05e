"""Faults that are really injected: SIGKILL at every step of a save, full disks, flipped bytes, signals, two runs.

tests/README.md's table of faults names the test of each.
"""
import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from dataset import find_dataset, read_tags
from desk import PHOTOS, Desk
from faults import files_of_at_most, flip, killed_at
from indexes import make_content
from linear import linear_training, linear_weights, states_of
from prepare import photos
from retrieval import index
from retrieval.retrieval_file import read_retrieval, write_retrieval
from small_retrieval import small_retrieval
from storage.arrays import read_weights, write_weights
from storage.files import (
    CHECKSUMS,
    check_checksums,
    read_json,
    recover_folders,
    replacing_folder,
    with_checksums,
    write_json,
)
from storage.log import open_log
from tag_processing import write_tags
from tiny import EXPERIMENT, PROJECT, backbone, make_tiny, start, train, wait_for
from util import UserError, stream

# ---------------------------------------------------------------- SIGKILL while something is saved

def save_weights(folder, version):
    write_weights(folder / "model.npy", {"C": np.full((4, 3), version, np.float32)}, {"version": version})


def load_weights(folder):
    path = folder / "model.npy"
    if check_checksums(path.with_suffix(".json")):
        assert json.loads(path.with_suffix(".json").read_text())["version"] == read_weights(path)["C"][0, 0]
    return int(read_weights(path)["C"][0, 0])


def save_state(folder, version):
    with replacing_folder(folder / f"step_{version:08d}") as new:
        (new / "variables").write_bytes(bytes([version]) * 100_000)
        write_json(new / "settings.json", {"version": version})
    for other in folder.iterdir():  # as States.save does
        if other.name != f"step_{version:08d}":
            shutil.rmtree(other)


def save_same_folder(folder, version):
    with replacing_folder(folder / "step_1") as new:
        write_json(new / "settings.json", {"version": version})


def load_same_folder(folder):
    recover_folders(folder)
    assert check_checksums(folder / "step_1" / CHECKSUMS)
    assert not list(folder.glob(".*.old"))
    return read_json(folder / "step_1" / "settings.json")["version"]


def load_state(folder):
    newest = max(folder.glob("step_*"))
    assert check_checksums(newest / CHECKSUMS)
    assert (newest / "variables").read_bytes() == bytes([int(newest.name[5:])]) * 100_000
    return int(newest.name[5:])


def save_retrieval(folder, version):
    content = small_retrieval(stream(version, "h5 fault"))
    write_retrieval(folder / "x_retrieval.h5", content, {"version": version})


def load_retrieval(folder):
    for version in (1, 2):
        found, _, why = read_retrieval(folder / "x_retrieval.h5", {"version": version}, {})
        if found is not None:
            np.testing.assert_array_equal(found.db_features, small_retrieval(stream(version, "h5 fault")).db_features)
            return version
        assert "another version" in why, why
    return None


def save_index(folder, version):
    index.save(folder / "index", make_content(seed=version, images=300))


def load_index(folder):
    found = index.load(folder / "index").content
    np.testing.assert_array_equal(found.codes, make_content(seed=found.facts["seed"], images=300).codes)
    return found.facts["seed"]


def save_tags(folder, version):
    (folder / "data/x/tags").mkdir(parents=True, exist_ok=True)
    write_tags(find_dataset("x", folder), np.full((version, 300), version), {row: [row] for row in range(version)},
               {"version": version})


def load_tags(folder):
    with contextlib.suppress(UserError):  # embeddings of one version and map of the other, whose lengths differ
        groups, embeddings = read_tags(find_dataset("x", folder), 5)
        assert len(groups) == embeddings[0, 0]
        return len(groups)
    return "refused"


SAVED = {"checkpoint": (save_weights, load_weights), "state": (save_state, load_state),
         "same folder": (save_same_folder, load_same_folder),
         "retrieval file": (save_retrieval, load_retrieval), "index": (save_index, load_index),
         "tags": (save_tags, load_tags)}


@pytest.mark.parametrize("kind", SAVED)
def test_a_kill_at_any_moment_of_a_save_leaves_the_old_one_or_the_new_one_whole(tmp_path, kind):
    save, load = SAVED[kind]
    before = tmp_path / "before"
    before.mkdir()
    save(before, 1)
    found, call = [], 1
    while True:
        folder = shutil.copytree(before, tmp_path / str(call))
        killed = killed_at(call, save, folder)
        found.append(load(folder))
        shutil.rmtree(folder)
        if not killed:
            break
        call += 1
    assert call > 4  # so many moments were tried
    assert found[0] == 1
    assert found[-1] == 2
    switch = found.index(2)
    assert set(found[:switch]) <= {1, "refused"}
    assert set(found[switch:]) == {2}


def test_a_folder_left_by_a_killed_process_of_the_same_number_is_no_obstacle(tmp_path):
    (tmp_path / f".step_1.{os.getpid()}.tmp").mkdir()  # in a container every process may have the number 1
    save_same_folder(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]


def test_a_save_after_a_kill_removes_nothing_that_counts_and_works(tmp_path):
    save_index(tmp_path, 1)
    assert killed_at(6, save_index, tmp_path)
    save_index(tmp_path, 2)
    assert load_index(tmp_path) == 2


def test_a_kill_at_any_moment_of_an_import_leaves_no_half_data_set_and_it_can_be_repeated(
        tmp_path, monkeypatch, capsys):
    desk = Desk(tmp_path, monkeypatch, capsys)
    desk.csv.write_text(PHOTOS)

    def run_import(root, _=None):
        arguments = ["mine", desk.csv, "--images", desk.images, "--root", root]
        monkeypatch.setattr(sys, "argv", ["photos.py", *map(str, arguments)])
        photos.main()

    def files(root):
        return {path.name: path.read_bytes() for path in (root / "data/mine").glob("*")}

    run_import(desk.root)
    call, killed = 1, True
    while killed:
        root = tmp_path / f"root {call}"
        root.mkdir()
        killed = killed_at(call, run_import, root)
        assert files(root) in ({}, files(desk.root))
        run_import(root)
        assert files(root) == files(desk.root)
        call += 1
    assert call > 10  # so many moments were tried


@pytest.mark.slow
def test_a_training_that_is_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path):
    """Real SIGKILLs at moments drawn by a seed, most of them while half a gigabyte of state is written."""
    assert train(make_tiny(tmp_path / "whole"))[0] == 0
    root, rng = make_tiny(tmp_path / "killed"), stream(0, "kills")
    states = root / "checkpoints" / f"{EXPERIMENT}_state"
    for _ in range(40):
        resume = ["--resume"] if list(states.glob("step_*")) else []
        process = start(root, "--save-every", 1, *resume)
        wait_for("training images", process)  # which a busy machine comes to later
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=float(rng.uniform(2, 15)))
        process.kill()
        output = process.communicate()[0]
        assert not re.search(r"\berror\b", output), output  # TensorFlow notes round-off errors
        if process.returncode == 0:
            break
    assert process.returncode == 0
    checkpoint = f"checkpoints/{EXPERIMENT}.npy"
    assert (root / checkpoint).read_bytes() == (tmp_path / "whole" / checkpoint).read_bytes()


# ---------------------------------------------------------------- two runs at once

@pytest.mark.slow
def test_a_second_run_of_one_experiment_is_refused_and_the_first_goes_on(tmp_path):
    root = make_tiny(tmp_path)
    first = start(root)
    wait_for("training images", first)
    code, output = train(root)
    assert code == 2
    assert re.search(r"error: .*\.log: another run of this experiment is in progress; give this one other NOTES\n",
                     output)
    assert first.wait() == 0
    assert check_checksums(root / "checkpoints" / f"{EXPERIMENT}.json")


# ---------------------------------------------------------------- a full disk

@pytest.mark.parametrize("kind", SAVED)
def test_a_full_disk_leaves_the_old_file_whole(tmp_path, kind):
    save, load = SAVED[kind]
    save(tmp_path, 1)
    before = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with files_of_at_most(30), pytest.raises((OSError, UserError)):
        save(tmp_path, 2)
    assert {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert load(tmp_path) == 1


def test_a_disk_that_is_full_while_tensorflow_writes_a_state_is_one_sentence(tmp_path):
    training = linear_training(8, 8)
    _, save, restore = states_of(training, tmp_path, {})
    with training.network.open_session() as session:
        training.network.initialize(session, linear_weights())
        save(1, session)
        with files_of_at_most(10_000), pytest.raises(UserError, match="this checkpoint could not be written") as error:
            save(2, session)
        assert "\n" not in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
        restore(session)


@pytest.mark.parametrize(("size", "options"), [
    (100, ()), (100_000, ()), (100_000, ("--save-every", 1))], ids=["log", "checkpoint", "state"])
def test_training_on_a_full_disk_ends_in_one_sentence_and_code_2(tmp_path, small, run_here, size, options):
    root, _ = make_tiny(tmp_path), backbone()
    with files_of_at_most(size):
        code, output = train(root, *options, iterations=1, run=run_here)
    assert code == 2, output
    assert len(re.findall(r"^error: ", output, re.M)) == 1
    assert "Traceback" not in output
    assert not [path for path in (root / "checkpoints").rglob("*") if path.is_file()]


# ---------------------------------------------------------------- flipped bytes

@pytest.mark.parametrize(("kind", "name"), [("checkpoint", "model.npy"), ("state", "step_00000001/variables")])
def test_a_flipped_byte_is_found_and_the_file_named(tmp_path, kind, name):
    save, load = SAVED[kind]
    save(tmp_path, 1)
    flip(tmp_path / name)
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path / name))} was altered since it was written"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["FinalTagEmbs.txt", "TagIdMergeMap.pkl"])
def test_a_flipped_byte_in_the_tags_is_found_and_the_file_named(tmp_path, name):
    save_tags(tmp_path, 3)
    flip(tmp_path / "data/x/tags" / name)
    with pytest.raises(UserError, match=f"{name} was altered since it was written"):
        read_tags(find_dataset("x", tmp_path), 5)


def test_a_flipped_byte_in_a_retrieval_file_is_reported_and_the_file_is_not_used(tmp_path):
    save_retrieval(tmp_path, 1)
    flip(tmp_path / "x_retrieval.h5")
    found, _, why = read_retrieval(tmp_path / "x_retrieval.h5", {"version": 1}, {})
    assert found is None
    assert f"{tmp_path / 'x_retrieval.h5'} was altered since it was written" in why


def test_a_file_without_a_checksum_as_the_release_writes_it_loads_with_a_note(tmp_path, capsys):
    save_tags(tmp_path, 3)
    (tmp_path / "data/x/tags/report.json").unlink()
    assert len(read_tags(find_dataset("x", tmp_path), 5)[0]) == 3
    assert "holds no checksums, so damage" in capsys.readouterr().err


def test_a_seal_that_is_no_json_is_refused_by_name(tmp_path):
    save_weights(tmp_path, 1)
    for content in ("{", "[]", '{"sha256": {"model.npy": 3}}', '{"sha256": {"../../etc/passwd": "0"}}', "[" * 100_000):
        (tmp_path / "model.json").write_text(content)
        with pytest.raises(UserError, match=r"model\.json"):
            load_weights(tmp_path)


def test_sealed_files_replace_each_other_together(tmp_path):
    for version in (b"old", b"new"):
        with with_checksums(tmp_path / "seal.json", {"version": str(version)}, tmp_path / "a", tmp_path / "b") as paths:
            for path in paths:
                path.write_bytes(version)
    assert check_checksums(tmp_path / "seal.json")
    with contextlib.suppress(KeyError), with_checksums(tmp_path / "seal.json", {}, tmp_path / "a") as (path,):
        path.write_bytes(b"half")
        raise KeyError
    assert (tmp_path / "a").read_bytes() == b"new"
    assert check_checksums(tmp_path / "seal.json")
    assert len(list(tmp_path.iterdir())) == 3


# ---------------------------------------------------------------- training that diverges

def test_a_training_that_diverges_stops_with_step_and_quantity_and_keeps_the_last_good_state(tmp_path):
    training = linear_training(40, 16)
    network = training.network
    _, save, restore = states_of(training, tmp_path, {})
    with network.open_session() as session:
        network.initialize(session, linear_weights())
        save(1, session)
        kernel = network.variables["fc8"][0]
        kernel.load(np.full(kernel.shape, np.nan, np.float32), session)
        with pytest.raises(UserError, match=r"step 2: \S+ holds NaN or infinite values, so the training has diverged"):
            save(2, session)
        assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
        with pytest.raises(UserError, match="step 5: embedding loss holds NaN"):
            training.take([4], session)
        restore(session)
        training.take([4], session)


def test_codebooks_that_are_no_longer_finite_stop_the_training(tmp_path, monkeypatch):
    training = linear_training(40, 16)
    alternation = training.alternation

    def spoil(_):
        alternation.codebooks = np.full_like(alternation.codebooks, np.inf)
    monkeypatch.setattr(alternation, "update", spoil)
    with training.network.open_session() as session:
        training.network.initialize(session, linear_weights())
        with pytest.raises(UserError, match="step 7: codebooks holds NaN or infinite values"):
            training.take([6], session)


def test_a_log_that_another_run_holds_is_refused_until_that_run_ends(tmp_path):
    path = tmp_path / "x.log"
    holder = subprocess.Popen([sys.executable, "-c", "import pathlib, time\nfrom storage.log import open_log\n"
                               f"open_log(pathlib.Path({str(path)!r}))\n"
                               "print('held', flush=True); time.sleep(60)"],
                              stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another run of this experiment is in progress"):
        open_log(path)
    holder.kill()
    holder.wait()
    time.sleep(0.1)
    open_log(path).info("mine")
    assert path.read_text().endswith("mine\n")


# ---------------------------------------------------------------- a poor environment

@pytest.mark.slow
def test_programs_run_with_6_gb_one_cpu_no_home_locale_c_few_descriptors_and_an_odd_folder(tmp_path):
    root = make_tiny(tmp_path / "ma\u0308rz & 写真 $HOME")
    splits = root / "data/tiny"
    for name in ("train_img.txt", "train_tag.txt"):  # 70 rows, for batches of 64
        (splits / name).write_text(7 * (splits / name).read_text())

    def poor():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        os.sched_setaffinity(0, {0})

    def run_poorly(*arguments):
        done = subprocess.run([sys.executable, *map(str, arguments), "--root", str(root)], cwd=PROJECT, text=True,
                              env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"}, preexec_fn=poor, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run_poorly("train.py", "tiny", 0.00003, 1, 0.0001, 2, "WSDQH", "t", "cpu", "--batch-size", 64, "--backbone-init",
               "lsuv")
    assert "random mAP@10" in run_poorly("validation.py", "tiny", root / "checkpoints" / f"{EXPERIMENT}.npy", "cpu",
                                         "--crops", 1)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 6 * 2**20  # KiB, of the largest child so far


@pytest.mark.parametrize("kind", ["a file", "missing and not to be made"])
def test_an_output_folder_that_cannot_be_written_ends_in_one_sentence(tmp_path, small, run_here, kind):
    root = make_tiny(tmp_path)
    (root / "logs").write_text("") if kind == "a file" else (root / "logs").symlink_to("/proc/none")
    code, output = train(root, iterations=0, run=run_here)
    assert code == 2
    assert re.search(r"^error: .*logs", output, re.M)
    assert "Traceback" not in output
