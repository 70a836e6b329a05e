"""What embeds photos as a checkpoint does: its own network, or the model in ONNX whose features it was trained on."""
from models.backbones import LAST
from models.tf_encoder import Encoder

from models.encoder import OnnxEncoder
from models.session import device_name
from util import PRECISIONS, UserError, note


def encoder_of(checkpoint, crops, gpu, precision=PRECISIONS[0]):
    """An encoder.PhotoNetwork that gives embeddings, float32 (N, D). Raises UserError.

    Args:
        checkpoint: storage.checkpoint.Checkpoint.
        crops: as of `encoder.EncodingGraph`; a model in ONNX sees one, the middle.
        gpu: number of the GPU, a list of them, or None for the CPU.
    """
    if checkpoint.model is None:
        return Encoder(checkpoint.weights, crops, device_name(gpu, note, precision), precision, unit=checkpoint.fitted)
    if (crops, precision) != (1, PRECISIONS[0]):
        raise UserError(f"{checkpoint.model.path} embeds the photos of this checkpoint, by one crop and in its own "
                        f"precision: expected --crops 1 and --precision {PRECISIONS[0]}")
    return OnnxEncoder(checkpoint.model, checkpoint.weights[LAST], checkpoint.fitted, gpu)
