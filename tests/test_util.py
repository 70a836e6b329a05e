"""Seeds, command-line types, cores, and batches made ahead."""
import os
import subprocess
import sys
import threading
import time

import pytest

from util import UserError, cores, gpu_number, number, prefetch, stream


def test_streams_depend_on_seed_purpose_and_step_alone():
    draw = stream(1, "crops", 7).random()
    assert stream(1, "crops", 7).random() == draw
    others = [stream(2, "crops", 7), stream(1, "flips", 7), stream(1, "crops", 8), stream(1, "crops")]
    assert draw not in [other.random() for other in others]


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("3", 3), ("-1", None), ("cpu", None)])
def test_gpu_numbers(text, expected):
    assert gpu_number(text) is expected


@pytest.mark.parametrize(("parse", "text"), [
    (gpu_number, "gpu"), (gpu_number, "1.5"), (gpu_number, "0,1"), (number(int, 1, 8), "0"), (number(int, 1, 8), "9"),
    (number(int, 1, 8), "two"), (number(float, 0), "-1"), (number(float, 0), "nan"), (number(float, 0), "inf")])
def test_a_value_out_of_range_is_refused_with_what_was_expected(parse, text):
    with pytest.raises(Exception, match=r"expected .* found") as caught:
        parse(text)
    assert type(caught.value).__name__ == "ArgumentTypeError"


# ---------------------------------------------------------------- cores

@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux limits a process to some cores")
def test_cores_are_those_that_this_process_may_use_not_all_of_the_machine():
    code = "import os, util; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]); print(util.cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"


def test_cores_are_counted_where_the_system_does_not_say_which_a_process_may_use(monkeypatch):
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
