"""Hostile and damaged files are refused in one line or read as plain data: nothing runs, crashes or swells.

What could crash or swell is read in a process of its own, which reports how much memory it took.
"""
import collections
import io
import pickle
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pickle_writer import called, group, named, plain
from storage.arrays import read_npy, read_pickle, read_weights, write_weights
from util import UserError

PROJECT = Path(__file__).resolve().parents[2]
MEGABYTE = 1 << 20
MOST_ADDRESSES = 8192 * MEGABYTE  # of a child
READ = """
import resource, sys
from storage import arrays
from util import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    try:
        print("read", type(getattr(arrays, sys.argv[1])(path)).__name__, flush=True)
    except UserError as error:
        print(error, flush=True)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def read_apart(reader, *paths):
    """What `arrays.<reader>` says of files in a process of its own, `read <type>` or the refusal. Checks its memory."""
    done = subprocess.run(
        [sys.executable, "-c", READ, reader, *map(str, paths)], cwd=PROJECT, capture_output=True, text=True,
        timeout=120, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES)))
    *said, grown = done.stdout.splitlines()
    assert done.returncode == 0, (paths[len(said)], done.returncode, done.stderr[-500:])
    assert len(said) == len(paths)  # one line each
    most = 4 * max(path.stat().st_size for path in paths) + 64 * MEGABYTE
    assert int(grown) <= most, f"{int(grown) / MEGABYTE:.0f} MB"
    return said


# ---------------------------------------------------------------- pickles made by hand

def text(value):
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def raw(value):
    return pickle.BINBYTES + struct.pack("<I", len(value)) + value


def dtype(name, order="<", fields=pickle.NONE, size=-1, names=pickle.NONE):
    return (called("numpy", "dtype", text(name), pickle.NEWFALSE, pickle.NEWTRUE)
            + group(plain(3), text(order), pickle.NONE, names, fields, plain(size), plain(-1), plain(0)) + pickle.BUILD)


def empty(shape, code):
    return called("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), shape, code)


def array(shape, kind, data, made=empty(plain((0,)), raw(b"b"))):  # noqa: B008 - bytes
    return made + group(plain(1), shape, kind, pickle.NEWFALSE, data) + pickle.BUILD


def scalar(kind, data):
    return called("numpy.core.multiarray", "scalar", kind, data)


def nested(opening, closing, depth=100_000):
    return opening * depth + closing * depth


def write(path, content, npy=False, shape=()):
    """A file of a pickle made by hand."""
    with open(path, "wb") as file:
        if npy:
            np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": shape})
        file.write(pickle.PROTO + b"\x05" + content + pickle.STOP)
    return path


FLOATS = dtype("f4")
OBJECTS = dtype("O8", "|")


# ---------------------------------------------------------------- nothing runs

COMMAND = text("touch called")
CODE = text("__import__('os').system('touch called')")
CALLS = {
    "a function": called("os", "system", COMMAND),
    "a function by its other name": called("posix", "system", COMMAND),
    "a function named on the stack": text("os") + text("system") + pickle.STACK_GLOBAL + group(COMMAND) + pickle.REDUCE,
    "eval": called("builtins", "eval", CODE),
    "eval as Python 2 names it": called("__builtin__", "eval", CODE),
    "an old instance": pickle.MARK + COMMAND + pickle.INST + b"os\nsystem\n",
    "an object": pickle.MARK + named("os", "system") + COMMAND + pickle.OBJ,
    "a default that is called": called("builtins", "getattr", called("collections", "defaultdict",
                                                                    named("os", "getcwd")), text("__missing__")),
    "an array's class": called("numpy.core.multiarray", "_reconstruct", named("subprocess", "Popen"),
                               plain((0,)), raw(b"b")),
    "a dotted name": text("util") + text("os.system") + pickle.STACK_GLOBAL + group(COMMAND) + pickle.REDUCE,
    "a new object": named("subprocess", "Popen") + group(group(text("touch"), text("called"))) + pickle.NEWOBJ,
    "a new object with names": (named("subprocess", "Popen") + group(group(text("touch"), text("called")))
                                + pickle.EMPTY_DICT + pickle.NEWOBJ_EX),
    "an admitted class as a function": called("builtins", "dict", group()),
    "a persistent object": COMMAND + pickle.BINPERSID,
    "a persistent object's name": pickle.PERSID + b"touch called\n",
    "an extension": pickle.EXT1 + b"\x01",
    "a wide extension": pickle.EXT4 + b"\x01\0\0\0",
    "a buffer from outside": pickle.NEXT_BUFFER,
    "a set": pickle.EMPTY_SET,
    "a text as a function": text("os.system") + group(COMMAND) + pickle.REDUCE,
    "a list as a function": pickle.EMPTY_LIST + group(COMMAND) + pickle.REDUCE,
    "a function on no tuple": named("numpy", "dtype") + pickle.EMPTY_LIST + pickle.REDUCE,
    "a state of a dict": pickle.EMPTY_DICT + plain({"a": 1}) + pickle.BUILD,
    "a state of a defaultdict": called("collections", "defaultdict", named("builtins", "list"))
                                + plain({"__class__": 1}) + pickle.BUILD,
    "a state of a name": named("numpy", "dtype") + plain({"__setstate__": 1}) + pickle.BUILD,
    "items of an array": array(plain((1,)), FLOATS, raw(b"1234")) + plain(0) + plain(1) + pickle.SETITEM,
    "items of a list": plain([1]) + plain(0) + plain(2) + pickle.SETITEM,
    "a dict under a key that is a list": pickle.EMPTY_DICT + pickle.EMPTY_LIST + pickle.NONE + pickle.SETITEM,
    "a dict of a key without a value": pickle.MARK + plain(1) + pickle.DICT,
}


@pytest.mark.parametrize("case", ["a function", "a function named on the stack", "eval", "an old instance",
                                  "an object"])
def test_the_calls_below_are_real_ones(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.PROTO + b"\x05" + CALLS[case] + pickle.STOP)
    assert (tmp_path / "called").exists()


@pytest.mark.parametrize("reader", [read_pickle, read_npy, read_weights])
@pytest.mark.parametrize("case", CALLS)
def test_what_a_pickle_wants_run_is_refused_in_one_line_and_not_run(tmp_path, monkeypatch, case, reader):
    monkeypatch.chdir(tmp_path)
    write("x.npy", CALLS[case], npy=reader is not read_pickle)
    with pytest.raises(UserError, match=r"^x\.npy: this pickle was not read: .+$") as caught:
        reader("x.npy")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "called").exists()


def test_a_name_with_line_breaks_is_reported_on_one_line(tmp_path):
    with pytest.raises(UserError, match="only NumPy arrays and plain containers") as caught:
        read_pickle(write(tmp_path / "x", text("os\n\r\n") + text("a\nb") + pickle.STACK_GLOBAL))
    assert len(str(caught.value).splitlines()) == 1


def test_reading_leaves_nothing_behind_that_changes_the_next_reading(tmp_path):
    changed = array(plain((2,)), FLOATS + pickle.PUT + b"0\n", raw(np.float32([1, 2]).tobytes()))
    again = pickle.GET + b"0\n" + group(*map(plain, (3, ">", None, None, None, -1, -1, 0))) + pickle.BUILD
    found, kind = read_pickle(write(tmp_path / "x", changed + again + pickle.TUPLE2))
    np.testing.assert_array_equal(found, [1, 2])
    assert kind == ">f4"
    assert np.dtype("f4").isnative


# ---------------------------------------------------------------- nothing crashes or swells

BIG = plain(10**10)
FALSE_ARRAYS = {
    "more values than there are": array(plain((10**10,)), FLOATS, raw(b"1234")),
    "fewer values than there are": array(plain((1,)), FLOATS, raw(b"12345678")),
    "a shape that overflows": array(plain((2**32, 2**32)), FLOATS, raw(b"")),
    "an empty one of vast length": array(plain((0, 10**11)), FLOATS, raw(b"")),
    "vast lengths of nothing": array(plain((10**11,)), dtype("S0", "|"), raw(b"")),
    "a negative length": array(plain((-1,)), FLOATS, raw(b"")),
    "two negative lengths": array(plain((-1, -1)), FLOATS, raw(b"1234")),
    "a length that is no number": array(plain(("1",)), FLOATS, raw(b"1234")),
    "a number as its shape": array(plain(1), FLOATS, raw(b"1234")),
    "a list as its shape": array(plain([1]), FLOATS, raw(b"1234")),
    "100 axes": array(plain((1,) * 100), FLOATS, raw(b"1234")),
    "100,000 axes of numbers without end": array(pickle.MARK + plain(2**4000) * 1000 + pickle.TUPLE, FLOATS, raw(b"")),
    "no type": array(plain((1,)), pickle.NONE, raw(b"1234")),
    "a name as its type": array(plain((1,)), text("f4"), raw(b"1234")),
    "no values": array(plain((1,)), FLOATS, pickle.NONE),
    "a list as its values": array(plain((1,)), FLOATS, plain([1.0])),
    "bytes as its objects": array(plain((1,)), OBJECTS, raw(b"12345678")),
    "a text as its objects": array(plain((8,)), OBJECTS, text("12345678")),
    "a short list as its objects": array(plain((3,)), OBJECTS, plain([1, 2])),
    "vast many objects": array(BIG.join([group()[:1], pickle.TUPLE]), OBJECTS, plain([])),
    "arrays as its objects": array(plain(()), OBJECTS, pickle.MARK + array(plain(()), FLOATS, raw(b"1234"))
                                   + pickle.LIST),
    "a vast start": array(plain((1,)), FLOATS, raw(b"1234"), made=empty(plain((10**10,)), raw(b"b"))),
    "another start": array(plain((1,)), FLOATS, raw(b"1234"), made=empty(plain((0,)), raw(b"V2000000000"))),
    "structured values": array(plain((1,)), dtype("V4", "|", size=4), raw(b"1234")),
    "fields of a plain type": array(plain((1,)), dtype("f4", names=plain(("a",)), fields=plain({"a": 1})),
                                    raw(b"1234")),
    "texts of impossible characters": array(plain((1,)), dtype("U1"), raw(b"\xff\xff\xff\xff")),
    "a vast type": dtype("V2000000000", "|"),
    "a vast text type": dtype("S2000000000", "|"),
    "a type of another kind": dtype("M8[ns]"),
    "a type of a list": called("numpy", "dtype", plain([("a", "f4")])),
    "a type of a type": called("numpy", "dtype", FLOATS),
    "an order that there is not": dtype("f4", order="?"),
    "an order that is no text": dtype("f4")[:-1] + group(plain(3), *[pickle.NONE] * 7) + pickle.BUILD,
    "a short state of a type": called("numpy", "dtype", text("f4")) + group(plain(3), text("<")) + pickle.BUILD,
    "a number as its state": empty(plain((0,)), raw(b"b")) + plain(7) + pickle.BUILD,
    "a vast scalar": scalar(dtype("V2000000000", "|"), raw(b"1")),
    "a scalar of too few bytes": scalar(dtype("f8"), raw(b"1")),
    "a scalar without bytes": scalar(dtype("f8"), pickle.NONE),
    "a scalar object": scalar(OBJECTS, plain(1)),
    "a buffer of too few bytes": called("numpy.core.numeric", "_frombuffer", raw(b"1"), FLOATS, BIG, text("C")),
    "a buffer in no order": called("numpy.core.numeric", "_frombuffer", raw(b"1234"), FLOATS, plain((1,)), text("K")),
    "a text encoded otherwise": called("_codecs", "encode", text("abc"), text("rot13")),
}


@pytest.mark.parametrize("case", FALSE_ARRAYS)
def test_arrays_that_numpy_would_take_unchecked_are_refused(tmp_path, case):
    with pytest.raises(UserError, match=r"x: this pickle was not read: .+") as caught:
        read_pickle(write(tmp_path / "x", FALSE_ARRAYS[case]))
    assert len(str(caught.value).splitlines()) == 1


def copies(content, how, number):
    """A pickle that keeps `content` and then does something to it many times."""
    return content + pickle.BINPUT + b"\0" + pickle.POP + pickle.MARK + how * number + pickle.LIST


KEPT = pickle.BINGET + b"\0"
SWELLING = {
    "lists without end": pickle.MARK + pickle.EMPTY_LIST * 3_000_000 + pickle.LIST,
    "dicts without end": pickle.MARK + pickle.EMPTY_DICT * 3_000_000 + pickle.LIST,
    "marks without end": pickle.MARK * 3_000_000,
    "notes without end": pickle.NONE + pickle.MEMOIZE * 3_000_000,
    "bytes of a vast length": pickle.BINBYTES8 + struct.pack("<Q", 10**12) + b"abc",
    "a text of a vast length": pickle.BINUNICODE8 + struct.pack("<Q", 10**12) + b"abc",
    "changeable bytes of a vast length": pickle.BYTEARRAY8 + struct.pack("<Q", 10**11) + b"abc",
    "a frame of a vast length": pickle.FRAME + struct.pack("<Q", 10**12) + b"abc",
    "a whole number of a vast length": pickle.LONG4 + struct.pack("<i", 2**31 - 1) + b"abc",
    "a whole number of many digits": pickle.LONG + b"9" * 1_000_000 + b"L\n",
    "bytes copied many times": copies(text("a" * MEGABYTE), called("_codecs", "encode", KEPT, text("latin1")), 10_000),
    "arrays copied many times": copies(text("a" * MEGABYTE), array(plain((MEGABYTE,)), dtype("u1", "|"), KEPT), 5_000),
    "objects copied many times": copies(pickle.MARK + pickle.NONE * 100_000 + pickle.LIST,
                                        array(plain((100_000,)), OBJECTS, KEPT), 5_000),
    "a list copied many times": copies(pickle.MARK + pickle.NONE * 100_000 + pickle.LIST,
                                       called("builtins", "list", KEPT), 5_000),
    "a dict under a deep key": pickle.EMPTY_DICT + nested(pickle.MARK, pickle.TUPLE) + pickle.NONE + pickle.SETITEM,
    "a dict under a key that doubles": pickle.EMPTY_DICT + group() + (pickle.DUP + pickle.TUPLE2) * 60 + pickle.NONE
                                       + pickle.SETITEM,
    "arrays in arrays": nested(
        empty(plain((0,)), raw(b"b")) + pickle.MARK + plain(1) + plain(()) + OBJECTS + pickle.NEWFALSE + pickle.MARK,
        pickle.LIST + pickle.TUPLE + pickle.BUILD, 9_000),
}


def test_pickles_that_swell_take_no_more_memory_than_four_times_their_size_and_64_mb(tmp_path):
    paths = [write(tmp_path / str(number), content) for number, content in enumerate(SWELLING.values())]
    for said in read_apart("read_pickle", *paths):
        assert ": this pickle was not read: " in said


DEEP = {
    "list": nested(pickle.MARK, pickle.LIST),
    "tuple": nested(pickle.MARK, pickle.TUPLE),
    "dict": (pickle.EMPTY_DICT + plain(1)) * 100_000 + pickle.NONE + pickle.SETITEM * 100_000,
    "defaultdict": (called("collections", "defaultdict") + plain(1)) * 30_000 + pickle.NONE + pickle.SETITEM * 30_000}


def test_what_is_100_000_levels_deep_is_read_and_freed(tmp_path):
    paths = [write(tmp_path / kind, content) for kind, content in DEEP.items()]
    assert read_apart("read_pickle", *paths) == ["read list", "read tuple", "read dict", "read dict"]
    paths = [write(tmp_path / kind, array(plain(()), OBJECTS, pickle.MARK + content + pickle.LIST), npy=True)
             for kind, content in DEEP.items()]
    for said in read_apart("read_weights", *paths):
        assert "expected [kernel, bias]" in said or "expected a dict of layers" in said


def test_one_array_under_many_names_is_not_many_arrays(tmp_path):
    one = np.zeros(MEGABYTE)
    weights = np.array({f"layer {number}": [one, one] for number in range(200)}, object)
    np.save(tmp_path / "x.npy", weights)
    assert read_apart("read_weights", tmp_path / "x.npy") == ["read dict"]


def test_a_note_under_a_vast_number_takes_no_memory(tmp_path):
    content = pickle.NONE + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f"
    assert read_apart("read_pickle", write(tmp_path / "x", content)) == ["read NoneType"]


# ---------------------------------------------------------------- headers of .npy files

def npy(header, content=b"", version=1):
    header = header.encode() if isinstance(header, str) else header
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + content


def header(descr="'<f4'", shape="(3,)", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


HEADERS = {
    "a shape far larger than the file": npy(header(shape="(1000000, 1000000)"), bytes(12)),
    "a shape that overflows": npy(header(shape="(4294967296, 4294967296)")),
    "a negative shape": npy(header(shape="(-3,)"), bytes(12)),
    "two negative lengths": npy(header(shape="(-3, -1)"), bytes(12)),
    "a length that is true": npy(header(shape="(True,)"), bytes(4)),
    "an empty shape that is vast": npy(header(shape="(0, 100000000000)")),
    "a length of many digits": npy(header(shape=f"(0x{'f' * 8000},)")),
    "a hundred axes": npy(header(shape=f"({'1, ' * 100})"), bytes(4)),
    "more values": npy(header(), bytes(16)),
    "fewer values": npy(header(), bytes(8)),
    "structured values": npy(header("[('a', '<f4'), ('b', '<i8')]"), bytes(36)),
    "structured objects": npy(header("[('a', '|O')]"), pickle.dumps([1, 2, 3])),
    "arrays as values": npy(header("('<f4', (2,))"), bytes(24)),
    "vast values": npy(header("'|V2000000000'", "(1,)"), bytes(4)),
    "values of no bytes": npy(header("'|S0'", "(1000000000,)")),
    "times": npy(header("'<M8[ns]'"), bytes(24)),
    "an impossible type": npy(header("'<q99'"), bytes(12)),
    "a type of a type": npy(header("()"), bytes(12)),
    "a header of calls": npy("__import__('os').system('touch called')"),
    "a deep header": npy("(" * 60_000),
    "a header of signs": npy("-" * 9_000 + "1"),
    "a header of deep operators": npy(header(shape="(" + "-" * 8_000 + "1,)")),
    "a long header": npy(header() + " " * 50_000, bytes(12)),
    "a header longer than the file": npy(b"", b"{}", 2)[:8] + b"\xff\xff\xff\xff{}",
    "a header of null bytes": npy(b"\0" * 50),
    "another version": npy(header(), bytes(12), 3)[:6] + b"\x03\0" + npy(header(), bytes(12), 2)[8:],
    "an open quote": npy("{'descr': '''"),
}


def test_a_header_that_lies_is_refused_before_anything_is_made(tmp_path):
    paths = [tmp_path / f"{case}.npy" for case in HEADERS]
    for path, content in zip(paths, HEADERS.values(), strict=True):
        path.write_bytes(content)
    for path, said in zip(paths, read_apart("read_npy", *paths), strict=True):
        assert said.startswith(f"{path}: expected ")
        assert len(said) < 1000
    assert not (PROJECT / "called").exists()


# ---------------------------------------------------------------- whatever is sound is read

def values():
    """Arrays and numbers of every admitted kind, in every order of axes and bytes."""
    floats = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    return [floats, np.asfortranarray(floats[0]), floats[:, ::2], floats.astype(">f4"), np.float32(7), floats[:0],
            *(np.ones(2, kind) for kind in ("?", "i1", "u2", "i4", "u8", "f2", "f8", "f16", "S3")), np.array(3.5),
            np.array(["a", "été"]), np.str_("ab"), np.bytes_(b""), np.bool_(True), np.int64(-1), np.arange(20000.0)]


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_numbers_of_every_plain_kind_are_read_and_are_numpy_s_own(tmp_path, protocol):
    for number, expected in enumerate(values()):
        (tmp_path / "x").write_bytes(pickle.dumps([expected], protocol))
        found, = read_pickle(tmp_path / "x")
        assert type(found) is type(expected), number
        assert found.dtype == expected.dtype.newbyteorder("="), number
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers_of_every_protocol_are_read(tmp_path, protocol):
    content = {"a": [1, -2, 10**30, 2.5, None, True], 3: ("x", b"y\xff", "é" * 300), b"k": {}, 1.5: [[]],
               np.int64(4): (), "o": collections.OrderedDict(b=1), "d": collections.defaultdict(list, {1: [2]})}
    (tmp_path / "x").write_bytes(pickle.dumps(content, protocol))
    found = read_pickle(tmp_path / "x")
    assert found == content
    assert list(found) == list(content)
    assert type(found["o"]) is type(found["d"]) is dict


def test_what_is_shared_and_what_holds_itself_is_read(tmp_path):
    content = [np.ones(3)] * 2
    content.append(content)
    (tmp_path / "x").write_bytes(pickle.dumps(content, 4))
    found = read_pickle(tmp_path / "x")
    assert found[0] is found[1]
    assert found[2] is found


def test_python_2_s_strings_are_read_as_latin_1(tmp_path):
    numbers = np.arange(-3, 3, dtype="<f4")
    kind = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
    content = (b"(dp0\nS'conv1'\np1\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(L6L\nt"
               + kind + b"I00\nS" + repr(numbers.tobytes())[1:].encode() + b"\ntbs.")
    (tmp_path / "x").write_bytes(content)
    found = read_pickle(tmp_path / "x")
    assert list(found) == ["conv1"]
    np.testing.assert_array_equal(found["conv1"], numbers)


def test_object_arrays_that_numpy_saves_are_read(tmp_path):
    for expected in (np.array([{"a": 1}, None, "x"], object), np.array([[1, 2], [3, 4]], object).T):
        np.save(tmp_path / "x.npy", expected)
        np.testing.assert_array_equal(read_npy(tmp_path / "x.npy"), expected)


def test_arrays_of_weights_are_read_without_a_copy(tmp_path):
    weights = {"fc6": [np.ones((3000, 3000), np.float32), np.ones(3000, np.float32)]}
    write_weights(tmp_path / "x.npy", weights)
    kernel, _ = read_weights(tmp_path / "x.npy")["fc6"]
    assert isinstance(kernel.base, bytes)
    assert kernel.flags.writeable


def test_a_pickle_that_goes_on_behind_its_end_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(pickle.dumps([1]) + b"more")
    with pytest.raises(UserError, match="expected its end, found 4 more bytes"):
        read_pickle(tmp_path / "x")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_file_that_ends_too_early_is_refused(tmp_path, share):
    content = io.BytesIO()
    np.save(content, np.array({"a": [np.ones(100), 1]}, object))
    (tmp_path / "x.npy").write_bytes(content.getvalue()[:int(share * len(content.getvalue()))])
    with pytest.raises(UserError, match=r"x\.npy: "):
        read_npy(tmp_path / "x.npy")


# ---------------------------------------------------------------- damage of every kind

KINDS = ("pickle", "npy", "checkpoint", "matrix", "image list", "tag list", "tag embeddings", "merge map", "image",
         "vectors .bin", "vectors .vec", "CIFAR batch", "index", "Caffe model", "PyTorch file")


def test_damaged_files_are_read_or_refused():
    done = subprocess.run([sys.executable, "tests/support/fuzz_readers.py", "--cases", "10",
                           *(word for kind in KINDS for word in ("--kind", kind))],
                          cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(KINDS) <= {line[:18].strip() for line in done.stdout.splitlines()}
