"""Opening HDF5 files of any origin for reading."""
import contextlib

import h5py

from storage.files import check_checksums
from util import UserError


@contextlib.contextmanager
def open_hdf5(path):
    """Give an h5py.File, open for reading, whose checksum was compared if the JSON file next to it has one.

    Raises UserError if the file is missing, was altered or cannot be read, also while the block reads from it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    check_checksums(path.with_suffix(".json"))
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: expected an HDF5 file, found one that cannot be read ({error})") from error
