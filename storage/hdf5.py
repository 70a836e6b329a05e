"""Reading HDF5 files of any origin."""
import contextlib

import h5py

from storage.files import check_checksums
from util import UserError


@contextlib.contextmanager
def reading(path):
    """Give an HDF5 file, opened; its checksum is compared where there is one. Raises UserError if it cannot be read."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    check_checksums(path.with_suffix(".json"))
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: expected an HDF5 file, found one that cannot be read ({error})") from error
