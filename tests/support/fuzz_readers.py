"""Damages small sound files of every kind that is read, and reads them: `python tests/support/fuzz_readers.py`.

A reader may return a value or raise UserError. Anything else is a finding: another exception, a crash, more than 20
seconds, more than 300 MB. Case N of a kind depends only on the seed, so `--kind NAME --case N` repeats one. The readers
run in child processes that do many cases each; after a crash the next child goes on with the following case.
"""
import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import random
import re
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT)]

import numpy as np  # noqa: E402

SECONDS = 20  # of a case
MEGABYTES = 300  # that a child may grow by
MOST_ADDRESSES = 1500  # megabytes that a child may allocate beyond what it has before the first case
TURN = 200  # cases of a kind before the next kind has its turn


# ---------------------------------------------------------------- damage

NUMBERS = [b"0", b"-1", b"1", b"2", b"255", b"65536", b"2147483648", b"-9223372036854775809", b"1e999", b"nan", b"0.5",
           b"9" * 5000, b"0x" + b"f" * 5000, b"1_0", "١".encode()]
WORDS = [struct.pack(form, value) for form in ("<i", ">i", "<q")
         for value in (0, 1, -1, 255, 65536, 2**31 - 1, -2**31, 10**9)]
BYTES = [0, 1, 9, 10, 13, 32, 127, 128, 194, 255]


def damage(data, rng):
    """The bytes after one to four kinds of damage."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(DAMAGES)(data, rng)
    return bytes(data)


def flip(data, rng):
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def put_bytes(data, rng):
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        data[rng.randrange(len(data))] = rng.choice(BYTES)


def truncate(data, rng):
    del data[rng.randint(0, len(data)):]


def insert(data, rng):
    at = rng.randint(0, len(data))
    data[at:at] = rng.choice((rng.randbytes(rng.randint(1, 20)),
                              bytes([rng.choice(BYTES)]) * rng.choice((1, 20, 3000))))


def repeat(data, rng):
    start = rng.randint(0, len(data))
    block = data[start:start + rng.choice((1, 4, 30, 500))]
    at = rng.choice((start, rng.randint(0, len(data))))
    data[at:at] = block * rng.choice((1, 1, 2, 200))


def remove(data, rng):
    start = rng.randint(0, len(data))
    del data[start:start + rng.choice((1, 4, 30, 500))]


def put_number(data, rng):
    found = list(re.finditer(rb"[0-9]+", data))
    if found:
        data[slice(*rng.choice(found).span())] = rng.choice(NUMBERS)


def put_word(data, rng):
    word = rng.choice(WORDS)
    at = rng.randint(0, len(data))
    data[at:at + len(word)] = word


DAMAGES = (flip, put_bytes, truncate, insert, repeat, remove, put_number, put_word)


# ---------------------------------------------------------------- kinds of files

@dataclass(frozen=True)
class Kind:
    """Sound files, `{name: bytes}`, of which one is damaged, and the function of a path that reads it.

    together: whether the files belong together and `read` takes their folder. pack: what may be done with the damaged
    bytes, a function of them, or of all the files where they belong together.
    """
    files: dict
    read: Any
    together: bool = False
    pack: Any = None

    def case(self, rng):
        """`{name: bytes}` of a damaged example."""
        name = rng.choice(sorted(self.files))
        pack = self.pack if rng.random() < 0.7 else None
        if self.together:
            files = {**self.files, name: damage(self.files[name], rng)}
            return pack(files) if pack else files
        if pack:
            return {name: pack(damage(self.files[name], rng))}
        return {name: damage(self.pack(self.files[name]) if self.pack else self.files[name], rng)}


def made_by(write, suffix=""):
    """The bytes that `write(path)` puts into a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        write(path)
        return path.read_bytes()


def weights():
    return {"conv1": [np.ones((2, 2, 3, 4), np.float32), np.zeros(4, np.float32)],
            "fc8": [np.ones((5, 3)), np.ones(3, np.float16)], "C": np.ones((20, 30), np.float32)}


def npy(array, protocol=4):
    file = io.BytesIO()
    if array.dtype != object:
        np.save(file, array)
    else:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(pickle.dumps(array, protocol).replace(b"numpy._core", b"numpy.core") if protocol < 3 else
                   pickle.dumps(array, protocol))
    return file.getvalue()


def pickles():
    from storage import arrays
    content = {"a": [1, 2.5, None, True, "é", b"\xff"], 3: (np.arange(5), np.float32(1), np.array(["ab"])), "o": {}}
    return Kind({f"p{protocol}": pickle.dumps(content, protocol) for protocol in range(6)}, arrays.read_pickle)


def arrays():
    from storage import arrays
    return Kind({"f": npy(np.ones((3, 4), np.float32)), "u": npy(np.zeros((7, 2), np.uint8)),
                 "o": npy(np.array([[1, "a"], [None, {}]], object)), "t": npy(np.asfortranarray(np.ones((2, 3))))},
                arrays.read_npy)


def checkpoints():
    from storage import arrays
    whole = np.array(weights(), object)
    return Kind({"ours": made_by(lambda path: arrays.write_weights(path, weights())),
                 **{f"p{protocol}": npy(whole, protocol) for protocol in (0, 2, 4, 5)}}, arrays.read_weights)


def matrices():
    import dataset
    return Kind({"plain": b"0 1 0 1\n1 1 0 0\n0 0 0 1\n", "spelled": b"0.0 1.0 0 1e0\r\n1 1 0 0\r\n",
                 "tabs": b"0\t1\n1\t0\n\n"}, dataset.read_binary_matrix)


def image_lists():
    import dataset
    return Kind({"list": "a/im1.jpg\nim 2.png\nfotos/ü.jpg\n".encode()}, dataset.read_image_list)


def tag_lists():
    import dataset
    return Kind({"counts": "sky 845\nblue 12\nmünchen 3\n".encode(), "names": b"sky\r\n2007\r\n"},
                dataset.read_tag_names)


def tag_embeddings():
    import dataset
    rows = np.linspace(-1, 1, 900).reshape(3, 300)
    return Kind({"long": made_by(lambda path: np.savetxt(path, rows)),
                 "short": made_by(lambda path: np.savetxt(path, rows, "%g"))}, dataset.read_tag_embeddings)


def merge_maps():
    import dataset
    content = {0: [1, 2], np.int64(1): np.array([3]), 2: (4,), 3: 0, -1: [5, 6, 7]}
    return Kind({f"p{protocol}": pickle.dumps(content, protocol) for protocol in (0, 2, 4)},
                lambda path: dataset.read_merge_map(path, 8))


def images():
    import cv2

    from storage import images
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    files = {f"x.{suffix}": cv2.imencode(f".{suffix}", pixels)[1].tobytes()
             for suffix in ("jpg", "png", "bmp", "webp", "gif", "tiff")}
    files["p.jpg"] = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    files["g.png"] = cv2.imencode(".png", pixels[..., 0])[1].tobytes()

    def read(path):
        fault = images.image_fault(path)
        return fault or images.read_image(path)
    return Kind(files, read)


def word_vectors(suffix, packed=False):
    from tags import word_vectors
    rows = np.linspace(-1, 1, 900, dtype="<f4").reshape(3, 300)
    words = zip(["sky", "new_york", "blau"], rows, strict=True)
    if suffix == "bin":
        content = b"3 300\n" + b"".join(f"{word} ".encode() + row.tobytes() for word, row in words)
    else:
        lines = [f"{word} {' '.join(f'{number:.3f}' for number in row)}\n" for word, row in words]
        content = "".join(["3 300\n"] * (suffix == "vec") + lines).encode()
    return Kind({f"x.{suffix}{'.gz' if packed else ''}": content},
                lambda path: word_vectors.read_vectors(path, {"sky", "blau"}), pack=gzip.compress if packed else None)


def cifar_batches():
    from gpq import data
    content = {b"labels": [0, 1, 2], b"data": np.zeros((3, 3072), np.uint8), b"filenames": [b"a", b"b", b"c"]}
    return Kind({f"p{protocol}": pickle.dumps(content, protocol) for protocol in (0, 2, 4)},
                lambda path: data.read_batch(path, 10))


def cifar_names():
    from gpq import data
    files = {data.META: pickle.dumps({"label_names": ["cat", "dog"], "num_vis": 3072}, 2)}
    return Kind(files, data.read_class_names, together=True)


def pretrained():
    import scipy.io

    from gpq import network
    shapes = {f"{network.SCOPE}/conv2d/kernel": (3, 3, 3, 4), f"{network.SCOPE}/conv2d/bias": (4,)}
    content = {f"{name}:0": np.ones(shape, np.float32) for name, shape in shapes.items()}
    files = {"x.npz": made_by(lambda path: np.savez(path, **content), ".npz"),
             "c.npz": made_by(lambda path: np.savez_compressed(path, **content), ".npz"),
             "x.mat": made_by(lambda path: scipy.io.savemat(path, content), ".mat"),
             "c.mat": made_by(lambda path: scipy.io.savemat(path, content, do_compression=True), ".mat"),
             "4.mat": made_by(lambda path: scipy.io.savemat(path, {"a": np.ones((3, 4))}, format="4"), ".mat")}
    return Kind(files, lambda path: network.read_pretrained(path, shapes))


def indexes(engine):
    from retrieval import faiss_index, index
    if engine and not faiss_index.faiss:
        return None
    if not engine:
        faiss_index.faiss = None
    rng = np.random.default_rng(0)
    content = index.Content(
        codes=rng.integers(0, 4, (20, 2), dtype=np.uint8), codebooks=np.ones((2, 4, 5), np.float32),
        images=[f"folder/{i}.jpg" for i in range(20)], tag_names=[["sky", "skies"], ["sea"]],
        tag_embeddings=np.ones((2, 5), np.float32), labels=np.ones((20, 2), np.uint8), label_names=["a", "b"],
        facts={"seed": 0, "images": "/photos", "vectors": {"path": "/none.txt", "bytes": 9}},
        fingerprints=np.ones((20, 7), np.int64),
        embeddings=np.ones((20, 5), np.float16), vocabulary=np.ones((2, 3), np.uint64))
    with tempfile.TemporaryDirectory() as folder:
        index.save(folder, content)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return Kind(files, index.load, together=True, pack=None if engine else seal_index)  # FAISS itself is not hardened


def seal_index(files):
    """The files of an index with checksums that agree, as someone would write them who means harm."""
    try:
        manifest = json.loads(files["manifest.json"])
        manifest.pop("sha256")
        for file in manifest["files"].values():
            file["sha256"] = hashlib.sha256(files[file["name"]]).hexdigest()
        manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return files
    return {**files, "manifest.json": json.dumps(manifest).encode()}


def retrievals():
    from retrieval import retrieval_file
    content = retrieval_file.Retrieval(
        np.ones((4, 300), np.float32), np.ones((4, 2), np.uint8), np.ones((4, 3), np.uint8),
        np.ones((2, 300), np.float32), np.ones((2, 2), np.uint8), np.ones((2, 3), np.uint8),
        np.ones((2, 256, 300), np.float32))
    facts = {"crops": 10, "sha256 of x": "abc"}
    return Kind({"x.h5": made_by(lambda path: retrieval_file.write_retrieval(path, content, facts), ".h5")},
                lambda path: retrieval_file.read_retrieval(path, facts, {}))


def caffe_models():
    from prepare import alexnet_sources
    net = alexnet_sources.caffe_message("Net")()
    for number in (4, 14):
        layer = net.layers.add(name=b"conv1", type=number)
        for shape in ((1, 4, 3, 2), (1, 1, 1, 4)):
            blob = layer.blobs.add(num=shape[0], channels=shape[1], height=shape[2], width=shape[3])
            blob.data.append(np.ones(np.prod(shape), "<f4").tobytes())
    return Kind({"x.caffemodel": net.SerializeToString()}, lambda path: list(alexnet_sources.caffe_layers(path)))


def onnx_models():
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return None
    from prepare import alexnet_sources
    stored = [numpy_helper.from_array(np.ones((4, 3, 2, 2), np.float32), "w"),
              numpy_helper.from_array(np.ones(4, np.float32), "b")]
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 0, 0]),
             helper.make_node("Relu", ["y"], ["z"])]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 9, 9])
    result = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph(nodes, "g", [image], [result], stored))
    return Kind({"x.onnx": model.SerializeToString()}, alexnet_sources.read_source)


def image_encoders():
    try:
        import onnx_writer
    except ImportError:
        return None
    from models.encoder import ImageEncoder

    def read(path):
        ImageEncoder(onnx_writer.describe(path))
    return Kind({"x.onnx": made_by(onnx_writer.write_tiny)}, read)


def torch_files():
    import torch_writer
    from prepare import torch_file
    arrays = {"_conv_stem.weight": np.ones((3, 3, 4, 5), np.float32).transpose(3, 2, 0, 1),
              "_bn0.weight": np.ones(5, np.float32), "_bn0.num_batches_tracked": np.array(7)}
    return Kind({"x.pth": torch_writer.state_dict(arrays)}, torch_file.read_tensors)


KINDS = {
    "pickle": pickles, "npy": arrays, "checkpoint": checkpoints, "matrix": matrices, "image list": image_lists,
    "tag list": tag_lists, "tag embeddings": tag_embeddings, "merge map": merge_maps, "image": images,
    "vectors .bin": lambda: word_vectors("bin"), "vectors .bin.gz": lambda: word_vectors("bin", packed=True),
    "vectors .txt": lambda: word_vectors("txt"), "vectors .vec": lambda: word_vectors("vec"),
    "CIFAR batch": cifar_batches, "CIFAR names": cifar_names, "pretrained GPQ": pretrained,
    "index": lambda: indexes(engine=False), "index of FAISS": lambda: indexes(engine=True),
    "retrieval file": retrievals, "Caffe model": caffe_models, "ONNX model": onnx_models,
    "image encoder in ONNX": image_encoders, "PyTorch file": torch_files,
}


# ---------------------------------------------------------------- the child: many cases of one kind

def make_case(kind, name, seed, number):
    return kind.case(random.Random(f"{seed} {name} {number}"))


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_cases(name, seed, first, count):
    """Read `count` cases, and report each one's number before and its outcome after."""
    report = os.fdopen(os.dup(1), "w", buffering=1)
    with open(os.devnull, "w") as nowhere:  # what libraries print is of no interest
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    kind = KINDS[name]()
    if kind is None:
        return
    from util import UserError
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        put_files(folder, kind.files)
        for path in [folder] if kind.together else [folder / file for file in kind.files if kind.pack is None]:
            with contextlib.suppress(UserError):  # a model need not be AlexNet
                kind.read(path)  # which also loads what reading needs
        addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (addresses + (MOST_ADDRESSES << 20),) * 2)
        before = memory()
        for number in range(first, first + count):
            files = make_case(kind, name, seed, number)
            for path in folder.iterdir():
                path.unlink()
            put_files(folder, files)
            report.write(f"{number}\n")
            try:
                kind.read(folder if kind.together else folder / next(iter(files)))
                outcome = "read"
            except UserError as error:
                outcome = "refused" if len(str(error).splitlines()) == 1 and len(str(error)) < 2000 else (
                    f"a refusal of many lines or characters: {str(error)[:200]!r}")
            except BaseException as error:
                outcome = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if memory() > before + MEGABYTES:
                report.write(f"{memory() - before:.0f} MB ({outcome})\n")
                return
            report.write(f"{outcome}\n")


def put_files(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)


# ---------------------------------------------------------------- the parent

@dataclass
class Tally:
    """What became of the cases of a kind. findings: `{case: what happened}`."""
    cases: int = 0
    refused: int = 0
    findings: Any = None


def run_child(name, seed, first, count, until):
    """Yield (case, outcome) of the cases that one child does before it ends by itself, by a crash or by the clock."""
    child = subprocess.Popen([sys.executable, __file__, "--child", name, str(seed), str(first), str(count)],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=PROJECT)
    number, data = None, b""
    try:
        while True:
            ready, _, _ = select.select([child.stdout], [], [], SECONDS + (60 if number is None else 0))
            if not ready:
                yield number, f"more than {SECONDS} seconds"
                return
            more = os.read(child.stdout.fileno(), 1 << 16)
            *lines, data = (data + more).split(b"\n")
            for line in lines:
                line = line.decode()
                if line.isdecimal():
                    number = int(line)
                else:
                    yield number, line
                    number = None
            if not more:
                break
            if time.monotonic() > until:
                return
        if child.wait() != 0:
            yield number, f"exit code {child.returncode}"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def fuzz(name, seed, first, count, tally, until):
    """Do `count` cases of a kind from `first` on, through as many children as it takes; returns the next case."""
    end = first + count
    while first < end and time.monotonic() < until:
        begun = first
        for number, outcome in run_child(name, seed, first, end - first, until):
            first = first if number is None else number + 1
            tally.cases += 1
            if outcome == "refused":
                tally.refused += 1
            elif outcome != "read":
                tally.findings[number] = outcome
                print(f"{name}, case {number}: {outcome}\n    again: --kind {name!r} --seed {seed} --case {number}",
                      flush=True)
        if first == begun:
            return end
    return first


def print_table(tallies):
    print(f"{'kind':<18}{'cases':>9}{'refused':>9}{'read':>9}{'findings':>10}")
    for name, tally in tallies.items():
        read = tally.cases - tally.refused - len(tally.findings)
        print(f"{name:<18}{tally.cases:>9,}{tally.refused:>9,}{read:>9,}{len(tally.findings):>10,}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be given more than once")
    parser.add_argument("--cases", type=int, help="how many of each kind, in place of --minutes")
    parser.add_argument("--case", type=int, help="only this case of --kind")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_cases(options.child[0], *map(int, options.child[1:]))
        return
    names = options.kind or list(KINDS)
    tallies = {name: Tally(findings={}) for name in names}
    following = dict.fromkeys(names, options.case or 0)
    limited = options.cases is not None or options.case is not None
    until = float("inf") if limited else time.monotonic() + 60 * options.minutes
    count = 1 if options.case is not None else options.cases or TURN
    while time.monotonic() < until:
        for name in names:
            following[name] = fuzz(name, options.seed, following[name], count, tallies[name], until)
        if limited:
            break
    print_table(tallies)
    sys.exit(1 if any(tally.findings for tally in tallies.values()) else 0)


if __name__ == "__main__":
    main()
