"""Weights in the release's format, and arrays: written, and read from files of any NumPy. See test_hostile_files.py."""
import io
import pickle
import pickletools

import numpy as np
import pytest

from storage.arrays import read_npy, read_weights, write_weights
from util import UserError, stream


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


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "missing", "list", "nan"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, damage):
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
