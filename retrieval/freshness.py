"""Whether an index needs no building: told by its manifest and its photos' sizes and times, without TensorFlow."""
import os
from pathlib import Path

from retrieval import encoded, index
from retrieval.photo_files import are_untouched
from retrieval.sources import photo_source
from storage.safe_files import fingerprint
from util import PRECISIONS, note


def is_up_to_date(options, out):
    """Whether `search.py build` with these options would leave the index in `out` as it is; if so, tell of it.

    What it cannot tell, it leaves to `building.build`: an index of other settings, or any photo that is new, gone,
    touched or unreadable. Raises UserError.
    """
    if not index.has_index(out) or not options.checkpoint.is_file() or encoded.writes_to(Path(options.dataset)):
        return False
    content = index.load(out).content
    facts = content.facts
    wanted = {"crops": options.crops or facts.get("crops"), "seed": options.seed,
              "lists": facts["lists"] if options.lists is None else options.lists}
    if (any(facts.get(name) != value for name, value in wanted.items())
            or facts.get("precision", PRECISIONS[0]) != options.precision
            or (options.keep_embeddings and content.embeddings is None)
            or facts.get("checkpoint_sha256") != fingerprint(options.checkpoint)):
        return False
    notes = []
    source = photo_source(options.dataset, options.root, notes.append)
    if (facts["images"] != os.path.realpath(source.folder) or len(content.label_names) != len(source.label_names)
            or sorted(content.images) != sorted(source.names)
            or not are_untouched([source.folder / name for name in content.images], content.fingerprints)):
        return False
    for line in notes:  # otherwise `build` tells them
        note(line)
    print(f"{out}: {len(content.codes):,} photos, 0 of them new, {8 * len(content.codebooks)} bits each")
    return True
