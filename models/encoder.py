"""A model in ONNX that turns photos into features, and with a trained last layer into embeddings.

What belongs here: making photos ready for such a model, and running it. ONNX Runtime is an optional dependency.
Letters: N images, B images a run, F features, D = 300; `resize` and `size` are those of an ImageModel.
"""
import hashlib
from pathlib import Path

import numpy as np

from models.features import embed
from models.tf_encoder import PhotoNetwork
from storage.images import central_square, resize_evenly
from util import UserError, cores, note, one_line

try:
    import onnxruntime
except ImportError:  # optional: requirements-features.txt
    onnxruntime = None

AT_ONCE = 16  # images a run
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}  # of a model's input
OTHER_FILE = b"\x0a\x08location\x12"  # how a model in protobuf begins to name another file, which holds its weights


class OnnxFeatures(PhotoNetwork):
    """A model that stands ready to give features of photos, float32 (N, F).

    Attributes:
        width: F.

    Args:
        model: storage.image_model.ImageModel.
        gpu: number of the GPU, or a list of which the first is taken, or None for the CPU.
        at_once: images a run; one, if the model takes no more.
    Raises UserError if ONNX Runtime is missing, if the file is another model, or if it is no image encoder.
    """

    def __init__(self, model, gpu=None, at_once=AT_ONCE):
        self._model = model
        self._session = open_model(model, gpu)
        self._input, self._type, self._channels_first, self._layer, fixed = signature(model, self._session)
        std = np.array(model.std, np.float32)
        self._scale, self._shift = 1 / (255 * std), np.array(model.mean, np.float32) / std
        super().__init__(self._resized, fixed or at_once)
        self.width = self.features(np.zeros((1, model.resize, model.resize, 3), np.uint8)).shape[1]

    def _resized(self, image):
        """A decoded image, uint8 (h, w, 3), as uint8 (resize, resize, 3); one of this size stays as it is."""
        return resize_evenly(image if self._model.stretch else central_square(image), self._model.resize)

    def outputs(self, images):
        """What `embed` gives of images, BGR, uint8 (B, resize, resize, 3)."""
        return self.features(images)

    def features(self, images):
        """Features of such images, float32 (B, F). Raises UserError."""
        return self._pooled(self._run_model(self._inputs(images)), len(images))

    def _inputs(self, images):
        """What the model sees of them, (B, 3, size, size) or (B, size, size, 3)."""
        model = self._model
        edge = (model.resize - model.size) // 2
        inputs = images[:, edge:edge + model.size, edge:edge + model.size, ::-1] * self._scale - self._shift  # RGB
        if model.bgr:
            inputs = inputs[..., ::-1]
        if self._channels_first:
            inputs = inputs.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(inputs, self._type)

    def _run_model(self, inputs):
        try:
            return self._session.run([self._layer], {self._input: inputs})[0]
        except Exception as error:  # ONNX Runtime's errors have no class in common
            raise cannot_run(self._model, error) from error

    def _pooled(self, outputs, count):
        """The mean over space of what the model gave of `count` images."""
        if isinstance(outputs, np.ndarray) and outputs.dtype.kind == "f" and len(outputs) == count and outputs.size:
            outputs, shape = outputs.astype(np.float32), outputs.shape
            if len(shape) == 2:
                return outputs
            if len(shape) == 4 and shape[2] == shape[3]:  # height and width, which are equal as those of the images
                return outputs.mean((2, 3))
            if len(shape) == 4 and shape[1] == shape[2]:
                return outputs.mean((1, 2))
        found = f"{outputs.dtype} {outputs.shape}" if isinstance(outputs, np.ndarray) else type(outputs).__name__
        raise UserError(f"{self._model.path}: expected floats of {count} × features, or of {count} square maps of "
                        f"features, in the output {self._layer!r}, found {found}")


class OnnxEncoder(OnnxFeatures):
    """The same with a trained last layer on top: embeddings, float32 (N, D).

    Args:
        last_layer: [kernel (F, D), bias (D,)].
        unit: whether embeddings are scaled to length 1.
    """

    def __init__(self, model, last_layer, unit, gpu=None):
        super().__init__(model, gpu)
        self._last_layer, self._unit = last_layer, unit
        if self.width != len(last_layer[0]):
            raise UserError(f"{model.path}: expected {len(last_layer[0]):,} features an image, as the last layer has, "
                            f"found {self.width:,}")

    def outputs(self, images):
        """Embeddings of images, BGR, uint8 (B, resize, resize, 3): float32 (B, D)."""
        return embed(self.features(images)[:, None], self._last_layer, self._unit)


# ---------------------------------------------------------------- the file

def open_model(model, gpu):
    """ONNX Runtime's session of a model's file. Raises UserError."""
    if onnxruntime is None:
        raise UserError("models in ONNX need ONNX Runtime: pip install -r requirements-features.txt")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is told in a sentence
    options.intra_op_num_threads = cores()
    try:
        return onnxruntime.InferenceSession(read_model(model), options, providers=providers(gpu))
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no class in common
        raise cannot_run(model, error) from error


def read_model(model):
    """The content of a model's file. Raises UserError if it is not the one that is described."""
    path = Path(model.path)
    if not path.is_file():
        raise UserError(f"{path}: no such file: the model in ONNX that gave the features is needed there to embed "
                        "photos")
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != model.sha256:
        raise UserError(f"{path} is not the model that gave the features: its SHA-256 is {found[:12]}…, expected "
                        f"{model.sha256[:12]}…")
    if OTHER_FILE in content:
        raise UserError(f"{path} keeps its weights in another file: expected a model in one file, as "
                        "torch.onnx.export(…, external_data=False) writes it")
    return content


def providers(gpu):
    """What ONNX Runtime runs on, the first that it can."""
    if gpu is None:
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        note("this ONNX Runtime uses no GPU (the package onnxruntime-gpu does), so the model runs on the CPU")
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": gpu[0] if isinstance(gpu, list) else gpu}), "CPUExecutionProvider"]


def signature(model, session):
    """A model's input, its type, whether channels come before height and width, the output that is taken, and how many
    images a run takes: 1, or None for any number. Raises UserError."""
    path, inputs, outputs = model.path, session.get_inputs(), [output.name for output in session.get_outputs()]
    if len(inputs) != 1:
        raise UserError(f"{path}: expected an image encoder, whose one input are images, found the inputs "
                        f"{listed(value.name for value in inputs)}")
    name, kind, shape = inputs[0].name, inputs[0].type, inputs[0].shape
    wanted = f"floats of N×3×{model.size}×{model.size} or N×{model.size}×{model.size}×3, N any number or 1"
    sizes = [axis if isinstance(axis, int) and axis > 0 else None for axis in shape]  # None: any
    channels_first = len(sizes) == 4 and sizes[3] != 3 and sizes[1] in (3, None)
    expected = (3, model.size, model.size) if channels_first else (model.size, model.size, 3)
    if kind not in TYPES or len(sizes) != 4 or sizes[0] not in (None, 1) or any(
            size not in (None, right) for size, right in zip(sizes[1:], expected, strict=True)):
        raise UserError(f"{path}: expected {wanted} as the input, found {kind} {one_line(shape)}")
    if model.layer is not None and model.layer not in outputs:
        raise UserError(f"{path}: expected an output {model.layer!r}, found {listed(outputs)}")
    if model.layer is None and len(outputs) != 1:
        raise UserError(f"{path} has the outputs {listed(outputs)}: --layer names the one that is the features")
    return name, TYPES[kind], channels_first, model.layer or outputs[0], sizes[0]


def listed(names):
    """Names of a model's inputs or outputs in words."""
    return one_line(", ".join(map(repr, names))) if names else "none"


def cannot_run(model, error):
    """The UserError that tells what ONNX Runtime raised."""
    return UserError(f"{model.path}: ONNX Runtime does not run this model ({one_line(error)})")
