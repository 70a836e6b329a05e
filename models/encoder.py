"""Image encoders in ONNX: the record of what one sees of a photo, and running it by ONNX Runtime.

An encoder is two files in one folder: the model `NAME.onnx` and its record `NAME.json`.
Letters: N images, B images a run, V crops an image, F features, D = 300.
"""
import contextlib
import math
import threading
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from threadpoolctl import ThreadpoolController

from storage.files import check_checksums, read_record
from storage.images import central_square, map_photos, resize_bilinearly, resize_evenly
from util import DIMENSIONS, UserError, cores, note, one_line, unit_length

try:
    import onnxruntime
except ImportError:  # optional: the extra `encoders`
    onnxruntime = None

MOST_SIDE = 4096  # pixels of a resized photo
CROPS_AT_ONCE, PHOTOS_AT_ONCE = 40, 8  # at most so many of each a run: on a CPU more of them gain nothing
EMBEDDED_AT_ONCE = 4096  # images whose features the last layer takes at once
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}  # of a model's input
OTHER_FILE = b"\x0a\x08location\x12"  # in protobuf, what precedes the name of another file that holds the weights
NEEDED = "image encoders need ONNX Runtime: pip install -e '.[encoders]'"

Pixels = Annotated[int, msgspec.Meta(ge=1, le=MOST_SIDE)]


class EncoderRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How photos are prepared for an encoder.

    The middle square of a photo, or with `stretch` the whole photo, is resized to `resize` × `resize` pixels, with
    `bilinear` as the release does it, else averaging over areas. The model sees `size` × `size` of them as
    (x / 255 − mean) / std, in the order red, green, blue or with `bgr` the reverse. A model whose input is uint8 sees
    the pixels as they are.

    layer: the output that is the features, None for the only one; crops: how many are seen of a photo unless asked
    otherwise (`crops_of`); source: SHA-256 of the checkpoint or the encoder that it was made from, if it was.
    """
    size: Pixels
    resize: Pixels
    stretch: bool = False
    bilinear: bool = False
    bgr: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    layer: str | None = None
    crops: Literal[1, 2, 5, 10] = 1
    source: str | None = None
    sha256: dict[str, str]

    def __post_init__(self):
        if self.size > self.resize:
            raise ValueError(f"expected a size of at most resize, {self.resize}, found {self.size}")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError("expected finite numbers as mean and std, and std above 0")


def read_encoder_record(path):
    """The record of the encoder in the file `path`, whose content is checked. Raises UserError."""
    record_file = path.with_suffix(".json")
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected an image encoder in ONNX")
    if not record_file.is_file():
        raise UserError(f"{record_file}: no such file: `python prepare/encoder.py {path.name} --size …` writes it")
    record = read_record(record_file, EncoderRecord)
    if path.name not in record.sha256:
        found = ", ".join(record.sha256) or "none"
        raise UserError(f"{record_file}: expected the SHA-256 of {path.name}, found {found}")
    check_checksums(record_file)
    return record


def was_made_from(source, target):
    """Whether the encoder in the file `target` is there and was made from the file of this SHA-256.

    A kill while it was written may have left it without its record; then it has to be written again. Its content is
    checked only when it is opened. Raises UserError for another kind of record.
    """
    record = target.with_suffix(".json")
    return target.is_file() and record.is_file() and read_record(record, EncoderRecord).source == source


def crops_of(count, size, resize):
    """The crops of a resized photo: (top and left in pixels, whether the photo is flipped first), `count` times.

    Ten: four near the corners and the centre, flipped and plain; five: the plain ones; two: the centre, plain and
    flipped; one: the plain centre. `size`, `resize`: pixels of a crop and of the photo.
    """
    middle = (resize - size) // 2
    far = 2 * middle  # for AlexNet 28, as in the release, though 29 would fit
    offsets = ((0, 0), (far, far), (far, 0), (0, far), (middle, middle))
    return {10: [(offset, flip) for flip in (True, False) for offset in offsets],
            5: [(offset, False) for offset in offsets],
            2: [(offsets[-1], False), (offsets[-1], True)],
            1: [(offsets[-1], False)]}[count]


# ---------------------------------------------------------------- running one

class ImageEncoder:
    """An encoder that is ready to give features of photos; several threads may use it.

    Attributes:
        path (Path), record (EncoderRecord): see below.
        sha256 (str): of the model's file.
        width (int): F.
        input_name (str): of the model's input.

    Args:
        path (Path): the ONNX file.
        gpu: number of the GPU, or None for the CPU.
        record: EncoderRecord, or None for the one next to the file.
    Raises UserError if ONNX Runtime is missing, or if the file is no image encoder as its record describes.
    """

    def __init__(self, path, gpu=None, record=None):
        self.path, self.record = path, record or read_encoder_record(path)
        self.sha256 = self.record.sha256[path.name]
        self._session = open_model(path, gpu)
        (self.input_name, self._type, self._channels_first, self._layer,
         self._most) = signature(path, self.record, self._session)
        std = np.array(self.record.std, np.float32)
        self._scale, self._shift = 1 / (255 * std), np.array(self.record.mean, np.float32) / std
        side = self.record.resize
        self.width = self.features(np.zeros((1, side, side, 3), np.uint8), 1).shape[2]

    def resize(self, image):
        """A decoded photo, uint8 (h, w, 3), as `features` takes it: uint8 (resize, resize, 3)."""
        image = image if self.record.stretch else central_square(image)
        return resize_bilinearly(image, self.record.resize) if self.record.bilinear else resize_evenly(
            image, self.record.resize)

    def features(self, images, crops):
        """Features of the crops of resized photos, BGR, uint8 (B, resize, resize, 3): float32 (B, V, F)."""
        inputs = self.inputs(images, crops)  # (B·V, …)
        most = self._most or len(inputs)
        outputs = [self._run(inputs[start:start + most]) for start in range(0, len(inputs), most)]
        return np.concatenate(outputs).reshape(len(images), crops, -1)

    def inputs(self, images, crops):
        """What the model sees of resized photos: their crops (B·V, …), of the model's type and order of axes."""
        record, seen = self.record, []
        for (top, left), flip in crops_of(crops, record.size, record.resize):
            flipped = images[:, :, ::-1] if flip else images
            seen.append(flipped[:, top:top + record.size, left:left + record.size])
        seen = np.stack(seen, 1).reshape(-1, record.size, record.size, 3)
        if not record.bgr:
            seen = seen[..., ::-1]
        if self._type != np.uint8:
            order = slice(None, None, -1) if record.bgr else slice(None)
            seen = seen * self._scale[order] - self._shift[order]
        if self._channels_first:
            seen = seen.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(seen, self._type)

    def photo_features(self, photos, what):
        """Features of the centres of N photos, paths or images, in blocks of float32 (B, F). Raises UserError.

        `what` is done, for the progress bar."""
        for _, features, _ in map_photos(lambda images: self.features(images, 1)[:, 0], photos, self.resize,
                                         self.at_once(1), cores(), what):
            yield features

    def at_once(self, crops):
        """How many photos a run takes."""
        return self._most or min(PHOTOS_AT_ONCE, CROPS_AT_ONCE // crops)

    def _run(self, inputs):
        try:
            outputs = self._session.run([self._layer], {self.input_name: inputs})[0]
        except Exception as error:  # ONNX Runtime's errors have no class in common
            raise cannot_run(self.path, error) from error
        return self._pooled(outputs, len(inputs))

    def _pooled(self, outputs, count):
        """The mean over height and width of what the model gave of `count` crops, float32 (count, F)."""
        if isinstance(outputs, np.ndarray) and outputs.dtype.kind == "f" and len(outputs) == count and outputs.size:
            outputs, shape = outputs.astype(np.float32, copy=False), outputs.shape
            if len(shape) == 2:
                return outputs
            if len(shape) == 4 and shape[2] == shape[3]:  # height and width, which are equal as those of the crops
                return outputs.mean((2, 3))
            if len(shape) == 4 and shape[1] == shape[2]:
                return outputs.mean((1, 2))
        found = f"{outputs.dtype} {outputs.shape}" if isinstance(outputs, np.ndarray) else type(outputs).__name__
        raise UserError(f"{self.path}: expected floats of {count} × features, or of {count} square maps of features, "
                        f"in the output {self._layer!r}, found {found}")


class OneThread:
    """Limits NumPy's matrix products to one thread while any thread of this process is within `hold()`.

    The limits belong to the process. Blocks that overlap and each restored what they had found could leave it at one
    thread for good, so the last block to end restores them.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._holders, self._limits = 0, None

    @contextlib.contextmanager
    def hold(self):
        with self._lock:
            if not self._holders:
                self._limits = ThreadpoolController().limit(limits=1)
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._limits.restore_original_limits()


ONE_THREAD = OneThread()


class PhotoEmbedder:
    """An encoder with a trained last layer: it gives embeddings of photos, float32 (N, D). Threads may share it.

    Args:
        encoder: ImageEncoder.
        last_layer: [kernel (F, D), bias (D,)].
        unit (bool): whether embeddings are scaled to length 1, as those of fitted codebooks are.
        crops (int): V, 10, 5, 2 or 1.
    Raises UserError if the encoder gives another number of features than the last layer takes.
    """

    def __init__(self, encoder, last_layer, unit, crops):
        self._encoder, self._last_layer, self._unit, self._crops = encoder, last_layer, unit, crops
        self.resize = encoder.resize
        if encoder.width != len(last_layer[0]):
            raise UserError(f"{encoder.path}: expected {len(last_layer[0]):,} features an image, as the last layer "
                            f"has, found {encoder.width:,}")

    def embed(self, photos, what="embedding"):
        """Embeddings of N photos, paths or images, float32 (N, D). Raises UserError. `what`: of the progress bar."""
        return np.concatenate([np.empty((0, DIMENSIONS), np.float32),
                               *(found for _, found, _ in self._blocks(photos, what))])

    def embed_sound(self, paths, advance):
        """Embeddings of the photos that can be decoded, float32 (n, D), and {row: what is wrong} of the others.

        `advance(n)` is called whenever n more photos are done."""
        parts, faults = [np.empty((0, DIMENSIONS), np.float32)], {}
        for rows, embeddings, bad in self._blocks(paths, None, skip_bad=True):
            if embeddings is not None:
                parts.append(embeddings)
            faults |= bad
            advance(len(rows))
        return np.concatenate(parts), faults

    def _blocks(self, photos, what, skip_bad=False):
        """Yield what `map_photos` yields, with embeddings of the sound photos, float32 (B, D)."""
        with ONE_THREAD.hold():  # those of NumPy's products would take the cores from ONNX Runtime
            yield from map_photos(self._embed_images, photos, self.resize, self._encoder.at_once(self._crops), cores(),
                                  what, skip_bad)

    def _embed_images(self, images):
        return embed(self._encoder.features(images, self._crops), self._last_layer, self._unit)


def embed(features, last_layer, unit):
    """Embeddings r of features: the mean of tanh(features @ kernel + bias) over the crops, float32 (N, D).

    Args:
        features: floats (N, V, F).
        last_layer: [kernel (F, D), bias (D,)].
        unit: whether they are scaled to length 1.
    """
    kernel, bias = last_layer
    embeddings = np.empty((len(features), DIMENSIONS), np.float32)
    for start in range(0, len(features), EMBEDDED_AT_ONCE):
        part = features[start:start + EMBEDDED_AT_ONCE].astype(np.float32, copy=False)
        embeddings[start:start + len(part)] = np.tanh(part @ kernel + bias).mean(1)
    return unit_length(embeddings) if unit else embeddings


# ---------------------------------------------------------------- the model's file

def open_model(path, gpu):
    """ONNX Runtime's session of a model. Raises UserError.

    A run uses one thread, because several runs are made at the same time.
    """
    if onnxruntime is None:
        raise UserError(NEEDED)
    content = path.read_bytes()
    if OTHER_FILE in content:
        raise UserError(f"{path} keeps its weights in another file: expected a model in one file, as "
                        "torch.onnx.export(…, external_data=False) writes it")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers(gpu))
    except Exception as error:  # ONNX Runtime's errors have no class in common
        raise cannot_run(path, error) from error


def providers(gpu):
    """What ONNX Runtime runs on, the first that it can."""
    if gpu is None:
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        note("this ONNX Runtime uses no GPU (the package onnxruntime-gpu does), so the encoder runs on the CPU")
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": gpu}), "CPUExecutionProvider"]


def signature(path, record, session):
    """A model's input, its type, whether channels come before height and width, the output that is taken, and how many
    crops a run takes: 1, or None for any number. Raises UserError."""
    try:
        inputs = [(value.name, value.type, value.shape) for value in session.get_inputs()]
        outputs = [value.name for value in session.get_outputs()]
    except UnicodeDecodeError as error:  # of a name that is not UTF-8
        raise cannot_run(path, error) from error
    if len(inputs) != 1:
        raise UserError(f"{path}: expected an image encoder, whose one input is images, found the inputs "
                        f"{listed(name for name, _, _ in inputs)}")
    name, kind, shape = inputs[0]
    size = record.size
    sizes = [axis if isinstance(axis, int) and axis > 0 else None for axis in shape]  # None: any
    channels_first = len(sizes) == 4 and sizes[3] != 3 and sizes[1] in (3, None)
    expected = (3, size, size) if channels_first else (size, size, 3)
    if kind not in TYPES or len(sizes) != 4 or sizes[0] not in (None, 1) or any(
            axis not in (None, right) for axis, right in zip(sizes[1:], expected, strict=True)):
        raise UserError(f"{path}: expected an input of floats or uint8, N×3×{size}×{size} or N×{size}×{size}×3, N any "
                        f"number or 1, found {kind} {one_line(shape)}")
    if record.layer is not None and record.layer not in outputs:
        raise UserError(f"{path}: expected an output {record.layer!r}, found {listed(outputs)}")
    if record.layer is None and len(outputs) != 1:
        raise UserError(f"{path} has the outputs {listed(outputs)}: --layer of prepare/encoder.py names the one that "
                        "is the features")
    return name, TYPES[kind], channels_first, record.layer or outputs[0], sizes[0]


def listed(names):
    """Names of a model's inputs or outputs in words."""
    return one_line(", ".join(map(repr, names)) or "none")


def cannot_run(path, error):
    """A UserError that says what ONNX Runtime raised."""
    return UserError(f"{path}: ONNX Runtime does not run this model ({one_line(error)})")


def encoder_next_to(checkpoint):
    """Where the encoder of a checkpoint is, `<experiment>_encoder.onnx`."""
    return Path(checkpoint).with_name(f"{Path(checkpoint).stem}_encoder.onnx")
