"""Safe files, seeds, names and command-line types."""
import collections
import io
import os
import pickle
import pickletools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from storage.arrays import read_npy, read_pickle, read_weights, write_weights
from storage.files import replacing
from storage.log import experiment_name
from tiny import write_pickle
from util import UserError, cores, gpu_number, gpu_numbers, number, prefetch, stream


class _Calls:
    """A pickle of it runs a command when it is loaded without care."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def _weights():
    rng = stream(0, "weights test")
    return {"conv1": [rng.normal(size=(2, 2, 3, 4)).astype(np.float32), np.zeros(4, np.float32)],
            "C": rng.normal(size=(256, 300)).astype(np.float32)}


def test_weights_come_back_as_they_were_written(tmp_path):
    weights = _weights()
    write_weights(tmp_path / "x.npy", weights)
    back = read_weights(tmp_path / "x.npy")
    assert list(back) == ["conv1", "C"]
    for found, expected in zip([*back["conv1"], back["C"]], [*weights["conv1"], weights["C"]], strict=True):
        np.testing.assert_array_equal(found, expected)
    plain = np.load(tmp_path / "x.npy", allow_pickle=True, encoding="latin1").item()  # how the release reads it
    np.testing.assert_array_equal(plain["C"], weights["C"])


def test_a_written_checkpoint_names_what_numpy_1_19_knows_in_a_protocol_it_reads(tmp_path):
    write_weights(tmp_path / "x.npy", _weights())
    with open(tmp_path / "x.npy", "rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == ((), False, np.dtype(object))
        content = file.read()
    strings = {argument for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)}
    assert "numpy.core.multiarray" in strings
    assert not any("_core" in text for text in strings)
    protocol = next(argument for opcode, argument, _ in pickletools.genops(content) if opcode.name == "PROTO")
    assert protocol <= 4


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_files_of_old_and_new_numpy_are_read(tmp_path, protocol, core):
    content = io.BytesIO()
    weights = {"conv1": (np.ones((2, 3), np.float32), np.float32([1, 2, 3])), "C": np.ones((2, 300))}
    pickle.Pickler(content, protocol).dump(np.array(weights, dtype=object))
    found = content.getvalue()
    if core == "numpy.core":
        for old, new in ((b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"),
                         (b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")):
            found = found.replace(old, new)
        found = found if protocol < 4 else b"\x80\x04" + found[11:]  # without the frame, whose length is off by one
        assert b"_core" not in found
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(found)
    np.testing.assert_array_equal(read_weights(tmp_path / "x.npy")["conv1"][0], np.ones((2, 3)))


def test_plain_containers_are_read(tmp_path):
    content = collections.OrderedDict({0: [1, 2], 1: (3,)})
    write_pickle(tmp_path / "x.pkl", content)
    assert read_pickle(tmp_path / "x.pkl") == content
    counts = collections.defaultdict(list, {0: [np.int64(4)]})
    write_pickle(tmp_path / "x.pkl", counts)
    assert read_pickle(tmp_path / "x.pkl") == counts


@pytest.mark.parametrize("reader", [read_pickle, read_weights])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(tmp_path, reader):
    marker = tmp_path / "called"
    path = tmp_path / "x.npy"
    with open(path, "wb") as file:
        if reader is read_weights:
            np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump({"C": _Calls(f"touch {marker}")}, file)
    with pytest.raises(UserError, match="only NumPy arrays and plain containers"):
        reader(path)
    assert not marker.exists()


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "missing", "list", "nan"])
def test_a_damaged_checkpoint_is_told_by_name(tmp_path, damage):
    path = tmp_path / "x.npy"
    weights = _weights()
    if damage == "nan":
        weights["C"][3, 4] = np.nan
    write_weights(path, weights)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "text":
        path.write_text("not a checkpoint")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "missing":
        path.unlink()
    elif damage == "list":
        write_weights(path, {"conv1": 3})
    with pytest.raises(UserError, match=r"x\.npy"):
        read_weights(path)


def test_arrays_without_objects_are_read_without_unpickling(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(read_npy(tmp_path / "x.npy"), [[0, 1, 2], [3, 4, 5]])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_experiment_names_are_the_released_ones():
    assert experiment_name("flickr", "WSDQH", 1, False, 0.7, 1.0, 0.0001, "0001") == (
        "flickr_WSDQH_nbits=8_adaMargin_gamma=1_lambda=0.0001_0001")
    assert experiment_name("nuswide", "WSDQH", 4, True, 0.7, 1.0, 1e-5, "x") == (
        "nuswide_WSDQH_nbits=32_fixMargin_margin=0.7_lambda=1e-05_x")
    assert "gamma=0.5_lambda=0.0_" in experiment_name("a", "WDHT", 2, False, 0.7, 0.5, 0, "x")


def test_streams_depend_on_seed_purpose_and_step_alone():
    draw = stream(1, "crops", 7).random()
    assert stream(1, "crops", 7).random() == draw
    others = [stream(2, "crops", 7), stream(1, "flips", 7), stream(1, "crops", 8), stream(1, "crops")]
    assert draw not in [other.random() for other in others]


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("3", 3), ("-1", None), ("cpu", None)])
def test_gpu_numbers(text, expected):
    assert gpu_number(text) is expected
    assert gpu_numbers(text) is expected


def test_several_gpus_are_a_list():
    assert gpu_numbers("0,2") == [0, 2]


@pytest.mark.parametrize(("parse", "text"), [
    (gpu_number, "gpu"), (gpu_number, "1.5"), (gpu_number, "0,1"), (gpu_numbers, "0,0"), (gpu_numbers, "0,cpu"),
    (gpu_numbers, "0,"), (gpu_numbers, "1.5"), (number(int, 1, 8), "0"), (number(int, 1, 8), "9"),
    (number(int, 1, 8), "two"), (number(float, 0), "-1"), (number(float, 0), "nan"), (number(float, 0), "inf")])
def test_a_value_out_of_range_is_refused_with_what_was_expected(parse, text):
    with pytest.raises(Exception, match=r"expected .* found") as caught:
        parse(text)
    assert type(caught.value).__name__ == "ArgumentTypeError"


def test_importing_util_does_not_import_tensorflow():
    done = subprocess.run([sys.executable, "-c", "import sys, util, dataset; sys.exit('tensorflow' in sys.modules)"])
    assert done.returncode == 0


# ---------------------------------------------------------------- cores

@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux limits a process to some cores")
def test_cores_are_those_that_this_process_may_use_not_all_of_the_machine():
    code = "import os, util; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]); print(util.cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"


def test_cores_are_counted_where_the_system_tells_nothing_of_the_process(monkeypatch):
    for name in ("sched_getaffinity", "process_cpu_count"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


# ---------------------------------------------------------------- batches made ahead

def test_the_next_batch_is_made_while_this_one_is_used():
    made = []

    def wait_for(count):
        deadline = time.monotonic() + 5
        while len(made) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return made

    batches = prefetch(lambda key: made.append(key) or key, range(6))
    assert wait_for(2) == [0, 1]  # before anyone asks
    assert next(batches) == 0
    assert wait_for(3) == [0, 1, 2]
    assert list(batches) == [1, 2, 3, 4, 5]


def test_several_workers_make_batches_side_by_side_and_they_come_in_order():
    side_by_side = threading.Barrier(3, timeout=5)

    def make(key):
        side_by_side.wait()  # raises where there are fewer workers
        time.sleep(0.02 * (2 - key % 3))  # the first of three is made last
        return key
    assert list(prefetch(make, range(9), ahead=4, workers=3)) == list(range(9))


def test_an_error_while_a_batch_is_made_reaches_the_one_who_waits_for_it():
    def make(key):
        if key == 2:
            raise UserError("bad")
        return key
    batches = prefetch(make, range(6))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(UserError, match="bad"):
        next(batches)
