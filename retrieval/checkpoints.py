"""The data set whose tags a checkpoint learned."""
import dataset
from models.checkpoint import check_trained_with, read_record
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
