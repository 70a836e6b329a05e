"""States from which a training of WSDHQ or of GPQ can be resumed: folders such as `step_000120`.

The number counts the steps that the state follows, so the training goes on with the 0-based step of that number.
"""
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.session import save_variables
from storage.files import CHECKSUMS, check_checksums, check_settings, recover_folders, replacing_folder, write_json
from util import UserError

TABLES = "quantizer.npz"  # arrays that are not variables of the graph
SETTINGS = "settings.json"


def saved_settings(record, free):
    """What a run that resumes must share with the one that saved: `record` without the names in `free`."""
    return {name: value for name, value in record.items() if name not in free}


def step_of(path):
    """The number of a state's folder, or None for any other path."""
    number = path.name.removeprefix("step_")
    return int(number) if number.isdecimal() and path.name != number and path.is_dir() else None


@dataclass(frozen=True)
class States:
    """The states of one training in `folder`.

    Args:
        settings: of `saved_settings`, plain containers.
        variables: what the names of TensorFlow's files in a state begin with.
        digits: of the number in a folder's name.
    """
    folder: Path
    settings: dict
    variables: str
    digits: int

    def path(self, step):
        """The folder of the state after so many steps."""
        return self.folder / f"step_{step:0{self.digits}d}"

    def steps(self):
        """How many steps each saved state follows, ascending."""
        recover_folders(self.folder)
        found = map(step_of, self.folder.iterdir()) if self.folder.is_dir() else ()
        return sorted(step for step in found if step is not None)

    def newest_step(self):
        """How many steps the newest state follows. Raises UserError if there is no state."""
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.folder}: there is no saved state to resume; one is saved when a training is "
                            "interrupted, and every N steps with --save-every (GPQ: N epochs with --save-period)")
        return steps[-1]

    def save(self, step, session, graph, tables=None):
        """Save the state after so many steps, whole or not at all.

        Raises UserError if a variable is not finite, or if there is no room.

        Args:
            graph: a training graph with its `saver` and `check_finite`.
            tables: `{name: array}` of what the graph does not hold.
        """
        graph.check_finite(session, step)
        with replacing_folder(self.path(step)) as new:
            save_variables(graph.saver, session, new / self.variables)
            if tables is not None:
                np.savez(new / TABLES, **tables)
            write_json(new / SETTINGS, self.settings)

    def restore(self, step, session, graph):
        """Go back to the state after so many steps; its tables, `{name: array}`.

        Raises UserError if the state was altered, or is of a training with other settings.
        """
        path = self.path(step)
        check_checksums(path / CHECKSUMS)
        check_settings(path / SETTINGS, self.settings)
        graph.saver.restore(session, str(path / self.variables))
        if not (path / TABLES).is_file():
            return {}
        with np.load(path / TABLES, allow_pickle=False) as tables:
            return dict(tables)

    def keep_only(self, step):
        """Delete the other states, and what killed runs left of theirs; whatever else is in the folder stays."""
        for path in self.folder.iterdir():
            unfinished = path.name.startswith(".step_") and path.is_dir()
            if path != self.path(step) and (unfinished or step_of(path) is not None):
                shutil.rmtree(path)
