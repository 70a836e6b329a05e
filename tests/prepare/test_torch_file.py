"""prepare/torch_file.py: tensors are read with their strides, and hostile files are refused in one line."""
import pickle
import struct

import numpy as np
import pytest

from prepare.torch_file import read_tensors
from torch_writer import (
    MAGIC_NUMBER,
    called,
    dictionary,
    file_of,
    group,
    named,
    plain,
    state_dict,
    storage,
    tensor,
    whole,
)
from util import UserError


def arrays():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((2, 3, 5, 4), np.float32)
    return {"contiguous": kernel, "transposed": kernel.transpose(3, 2, 0, 1), "fortran": np.asfortranarray(kernel[0]),
            "vector": kernel[0, 0, 0], "steps": np.array(7), "counts": np.arange(5)}


def test_tensors_are_read_with_their_strides(tmp_path):
    (tmp_path / "x.pth").write_bytes(state_dict(arrays()))
    found = read_tensors(tmp_path / "x.pth")
    assert list(found) == list(arrays())
    for name, expected in arrays().items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected, strict=True)


def test_tensors_may_share_a_storage_and_begin_inside_it(tmp_path):
    values = np.arange(10, dtype=np.float32)
    shared = storage("a", 10)
    items = {"all": tensor(shared, 0, (10,), (1,)), "even": tensor(shared, 2, (4,), (2,)),
             "columns": tensor(shared, 1, (3, 2), (1, 4))}
    (tmp_path / "x").write_bytes(file_of(dictionary(items), ["a"], [(10, values.tobytes())]))
    found = read_tensors(tmp_path / "x")
    np.testing.assert_array_equal(found["even"], [2, 4, 6, 8])
    np.testing.assert_array_equal(found["columns"], [[1, 5], [2, 6], [3, 7]])
    assert not found["all"].flags.writeable


# ---------------------------------------------------------------- files that are refused

FOUR = np.ones(4, np.float32).tobytes()
COMMAND = plain("touch called")


def one(made=None, described=None, keys=("a",), storages=((4, FOUR),), **start):
    """A file of a single tensor, of four values unless `made` is another one."""
    made = made or tensor(described or storage("a", 4), 0, (4,), (1,))
    return file_of(dictionary({"x": made}), list(keys), storages, **start)


def view(first=0, shape=(4,), strides=(1,)):
    return one(tensor(storage("a", 4), first, shape, strides))


def first_pickle(content):
    return whole(content) + one()


FILES = {
    "nothing": b"",
    "a text": b"tensors\n",
    "PyTorch's newer format, which is a zip file": b"PK\x03\x04" + bytes(100),
    "a pickle of its own": pickle.dumps({"x": 1}),
    "another magic number": one(magic=MAGIC_NUMBER + 1),
    "a magic number of many digits": one(magic=10**5000),
    "another version": one(version=1002),
    "a big-endian machine": one(machine={"little_endian": False}),
    "no machine": one(machine=None),
    "a call in place of the magic number": first_pickle(called("os", "system", COMMAND)),
    "a call by its name on the stack": first_pickle(plain("os") + plain("system") + pickle.STACK_GLOBAL
                                                    + group(COMMAND) + pickle.REDUCE),
    "a call in place of a tensor": one(called("os", "system", COMMAND)),
    "another function of PyTorch": one(called("torch._utils", "_rebuild_parameter", plain(1))),
    "a storage that is called": one(called("torch", "FloatStorage", plain(10**12))),
    "an array of NumPy": one(called("numpy.core.multiarray", "_reconstruct", plain(1))),
    "an old instance": one(pickle.MARK + COMMAND + pickle.INST + b"os\nsystem\n"),
    "another type of storage": one(described=storage("a", 4, "HalfStorage")),
    "a type of storage that is a text": one(
        described=group(*map(plain, ("storage", "torch.FloatStorag", "a", "cpu", 4, None))) + pickle.BINPERSID),
    "a storage of a storage": one(described=storage("a", 4, view=("b", 0, 4))),
    "a storage of a negative length": one(described=storage("a", -4)),
    "a storage of a vast length": one(described=storage("a", 10**12), storages=[(10**12, FOUR)]),
    "a storage of length true": one(described=storage("a", True)),
    "a storage without a key": one(described=storage(None, 4)),
    "a description that is a number": one(described=plain(1) + pickle.BINPERSID),
    "a description of too few parts": one(described=group(plain("storage")) + pickle.BINPERSID),
    "a storage described in two ways": one(described=storage("a", 5) + pickle.POP + storage("a", 4)),
    "a storage that is a text": one(tensor(plain("b"), 0, (4,), (1,))),
    "a storage that is a list": one(tensor(plain([]), 0, (4,), (1,))),
    "a tensor beyond its storage": view(first=1),
    "a tensor before its storage": view(first=-1),
    "strides beyond the storage": view(shape=(2, 2), strides=(3, 1)),
    "strides that go back": view(first=3, strides=(-1,)),
    "a vast stride": view(strides=(2**62,)),
    "a vast tensor of one value": view(shape=(10**9, 10**9), strides=(0, 0)),
    "a tensor of more values than there are": view(shape=(8,), strides=(0,)),
    "a tensor of nothing": view(shape=(0, 10**11), strides=(0, 0)),
    "a shape that is a list": view(shape=[4]),
    "a shape of texts": view(shape=("4",)),
    "a shape of true": view(shape=(True,)),
    "fewer strides than lengths": view(shape=(2, 2)),
    "a hundred axes": view(shape=(1,) * 100, strides=(1,) * 100),
    "a tensor without strides": one(called("torch._utils", "_rebuild_tensor_v2", storage("a", 4), plain(0))),
    "a number in place of a tensor": one(plain(1)),
    "a tensor under a number": file_of(pickle.EMPTY_DICT + plain(1) + tensor(storage("a", 4), 0, (4,), (1,))
                                       + pickle.SETITEM, ["a"], [(4, FOUR)]),
    "a list of tensors": file_of(pickle.EMPTY_LIST, [], []),
    "a state of a list": file_of(pickle.EMPTY_LIST + plain({}) + pickle.BUILD, [], []),
    "a state of a tensor": one(tensor(storage("a", 4), 0, (4,), (1,)) + plain({"key": "b"}) + pickle.BUILD),
    "no list of storages": one(keys=()),
    "a storage that no tensor has": one(keys=("a", "b"), storages=[(4, FOUR)] * 2),
    "a storage listed twice": one(keys=("a", "a"), storages=[(4, FOUR)] * 2),
    "a list of numbers": one(keys=(1,)),
    "another number of values": one(storages=[(3, FOUR)]),
    "fewer bytes than values": one(storages=[(4, FOUR[:-1])]),
    "bytes behind the end": one() + b"\0",
    "a file cut in the keys": one()[:-40],
    "marks without end": whole(pickle.MARK * 2_000_000),
    "a text of a vast length": whole(pickle.BINUNICODE8 + struct.pack("<Q", 10**12)),
}


@pytest.mark.parametrize("case", FILES)
def test_other_files_are_refused_in_one_line_and_nothing_runs(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pth").write_bytes(FILES[case])
    with pytest.raises(UserError, match=r"^x\.pth: expected tensors in PyTorch's old format") as caught:
        read_tensors("x.pth")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500
    assert not (tmp_path / "called").exists()


def test_the_file_that_these_cases_alter_is_read(tmp_path):
    (tmp_path / "x.pth").write_bytes(one())
    np.testing.assert_array_equal(read_tensors(tmp_path / "x.pth")["x"], np.ones(4, np.float32))


def test_a_file_that_ends_anywhere_too_early_is_refused(tmp_path):
    content = state_dict(arrays())
    for end in range(0, len(content), 7):
        (tmp_path / "x.pth").write_bytes(content[:end])
        with pytest.raises(UserError, match=r"x\.pth: expected tensors in PyTorch's old format"):
            read_tensors(tmp_path / "x.pth")


def test_what_pickles_of_arrays_may_name_is_not_admitted_here(tmp_path):
    (tmp_path / "x.pth").write_bytes(first_pickle(named("numpy", "ndarray")))
    with pytest.raises(UserError, match="only tensors of float32 and int64 are admitted"):
        read_tensors(tmp_path / "x.pth")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match=r"x\.pth: no such file"):
        read_tensors(tmp_path / "x.pth")
