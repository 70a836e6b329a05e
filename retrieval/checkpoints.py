"""What a checkpoint belongs to: the data set whose tags it learned, and the index that was made with it."""
import dataset
from storage.checkpoint import check_trained_with, read_record
from storage.safe_files import fingerprint
from util import UserError


def training_dataset(checkpoint, source, root, name):
    """The data set whose tags the checkpoint learned: `name`, or what its record says, or else the source's.

    None if its record tells that it learned no tags. Raises UserError if there is no such data set, or if its tags were
    processed anew since.
    """
    record = read_record(checkpoint)
    if record.get("no_words"):
        return None
    name = name or record.get("options", {}).get("dataset") or (source.dataset and source.dataset.name)
    if name is None:
        raise UserError(f"{checkpoint.with_suffix('.json')}: no such file: say with --trained-on which data set "
                        f"{checkpoint.name} learned")
    found = dataset.find_dataset(name, root)
    check_trained_with(checkpoint, found.tag_embeddings)
    return found


def check_checkpoint(folder, facts, checkpoint):
    """Raise UserError if the index in `folder` was made with another checkpoint, or this one is not there."""
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such file, but {folder} was made with it; --checkpoint names it if it moved")
    if fingerprint(checkpoint) != facts["checkpoint_sha256"]:
        raise UserError(f"{folder} is an index of another checkpoint ({facts['experiment']}), not of {checkpoint}")
