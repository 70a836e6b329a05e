"""Short names of indexes: `demo` for indexes/demo_WSDQH_nbits=16_… Light, so that programs may import it first."""
from pathlib import Path

from retrieval.manifest import MANIFEST
from util import ROOT, UserError, first_few

FOLDER = "indexes"  # of a project, in which its indexes lie


def find_index(name, root=ROOT):
    """The folder of the index that is meant by a path or by the beginning of a name in `root`/indexes.

    A path that holds an index comes first, then the whole name of one, then the only one whose name begins with `name`,
    those in which `_` follows before the others. Raises UserError where several are meant alike, or none.
    """
    path = Path(name)
    if _is_index(path):
        return path
    known = sorted(folder.name for folder in (Path(root) / FOLDER).glob("[!.]*") if _is_index(folder))
    fitting = [other for other in known if other.startswith(str(name))]
    for meant in ([other for other in fitting if other == str(name)],
                  [other for other in fitting if other.startswith(f"{name}_")], fitting):
        if len(meant) == 1:
            return Path(root) / FOLDER / meant[0]
        if meant:
            raise UserError(f"{name} may be one of {len(meant)} indexes: {first_few(meant)}")
    raise UserError(f"{name}: expected an index, or how the name of one begins, found neither; "
                    f"{Path(root) / FOLDER} has {first_few(known) or 'none yet'}; `python search.py build` makes one")


def named_folder(name, root):
    """Where `build` writes the index that is to be called `name`. Raises UserError for what is no name of a folder."""
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"--name: expected a name without slashes that does not begin with a dot, found {name!r}")
    return Path(root) / FOLDER / name


def _is_index(folder):
    return (folder / MANIFEST).is_file()
