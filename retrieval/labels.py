"""The labels of photos that a data set has, by which the results of a query are hits or not."""
import contextlib
import filecmp
import os
from functools import cached_property
from pathlib import Path

import dataset
from util import UserError


class KnownLabels:
    """The labels of the queries and the database of a data set, which are read when the first photo is asked for.

    Args:
        facts: of an index, see `index.Content`.
        count (int): L, labels of the index.
    """

    def __init__(self, facts, count):
        self._facts, self._count = facts, count

    @cached_property
    def _splits(self):
        """Of queries and database, if they are still there: paths of N photos, and labels, CSR (N, L)."""
        splits = []
        if self._facts["dataset"] is None:
            return splits
        with contextlib.suppress(UserError):  # the data set is not there any more
            found = dataset.find_dataset(self._facts["dataset"], Path(self._facts["root"]))
            for split in ("test", "database"):
                names, labels = dataset.read_split(found, split)
                if labels.shape[1] == self._count:  # otherwise it has other labels by now
                    splits.append(([str(found.images / name) for name in names], labels))
        return splits

    def of(self, photo, name=None):
        """The labels of the photo at a path, uint8 (L,), or None if no photo of the data set has its name and content.

        `name`: what the file is called, if not by its path.
        """
        name = Path(name or photo).name
        for paths, labels in self._splits:
            for row, path in enumerate(paths):
                if path.endswith(f"/{name}") and os.path.isfile(path) and filecmp.cmp(path, photo, shallow=False):
                    return labels[[row]].toarray()[0]
        return None
