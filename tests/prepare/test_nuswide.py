"""prepare/nuswide.py on small files in exactly the official format.

Every written row is compared with a slow recomputation. Bad input is tried inside this process, which is faster.
"""
import shutil
import sys

import numpy as np
import pytest

import dataset
from dataset import find_dataset, load_retrieval, load_training
from prepare import nuswide as prepare_nuswide
from small_collections import (
    LISTS,
    accepted,
    check_report,
    check_rows,
    process_tags,
    snapshot,
    train_two_steps,
)
from tiny import call


def test_nuswide_from_its_files_to_a_training(nuswide, request):
    printed = accepted(nuswide)
    images = check_rows(nuswide)
    kept = [i for i in range(23) if i not in nuswide.rare]
    usable = [i for i in range(nuswide.count) if nuswide.labels[i, kept].any() and i not in nuswide.bad]
    assert sorted(images["test"] + images["database"]) == usable
    assert len(images["test"]) == 12
    assert len(images["train"]) == 40
    assert nuswide.tags[images["train"]].any(1).all()
    assert nuswide.lines("TagList1k.txt") == list(nuswide.tag_names)
    assert nuswide.lines("labels.txt") == [nuswide.concepts[i] for i in kept]
    assert nuswide.lines("left_out.txt") == [f"Flickr/{nuswide.names[10]} is missing",
                                             f"Flickr/{nuswide.names[11]} is empty"]
    assert f"left out: 2 of {len(usable) + 2} images cannot be used: {nuswide.names[10]} is missing; " in printed
    report = check_report(nuswide, printed)
    assert report["files"].keys() == LISTS | {"TagList1k.txt", "labels.txt", "left_out.txt"}
    assert report["images"]["left_out"] == 2
    assert report["database_images_of_each_label"]["concept0"] == nuswide.labels[images["database"], 0].sum()
    process_tags(nuswide, "nuswide")
    dataset = find_dataset("nuswide", nuswide.root)
    training_set = load_training(dataset)
    assert (training_set.tags.shape, training_set.untagged) == ((40, 5), 0)
    assert [load_retrieval(dataset, split).labels.shape for split in ("database", "test")] == [(len(usable) - 12, 21),
                                                                                               (12, 21)]
    if request.config.getoption("--slow"):
        train_two_steps(nuswide, "nuswide")


def test_queries_of_each_concept(nuswide, capsys, monkeypatch):
    code, printed = call(monkeypatch, capsys, prepare_nuswide, *nuswide.arguments("--per-concept", "2"))
    assert code == 0, printed
    test = check_rows(nuswide)["test"]
    assert len(test) == 2 * 21
    kept = [i for i in range(23) if i not in nuswide.rare]
    assert (nuswide.labels[np.ix_(test, kept)].sum(0) >= 2).all()
    monkeypatch.setattr(sys, "argv", ["nuswide.py", "ROOT", "--queries", "2100"])
    assert prepare_nuswide.parse_options().per_concept == 100


def test_lists_in_other_places_and_other_line_ends(nuswide, capsys, monkeypatch):
    assert call(monkeypatch, capsys, prepare_nuswide, *nuswide.arguments())[0] == 0
    before = snapshot(nuswide.splits)
    (nuswide.release / "ConceptsList/Concepts81.txt").rename(nuswide.release / "Concepts81.txt")
    (nuswide.release / "NUS_WID_Tags/TagList1k.txt").rename(nuswide.release / "TagList1k.txt")
    (nuswide.release / "Flickr").rename(nuswide.release / "images")
    nuswide.write("NUS_WID_Tags/AllTags1k.txt", "\n".join(" ".join(map(str, row)) for row in nuswide.tags) + "\n \n\n")
    nuswide.link.unlink()
    monkeypatch.setattr(dataset, "BLOCK", 64)  # many blocks, some end inside of a line
    images = nuswide.arguments("--images", str(nuswide.release / "images"))
    code, printed = call(monkeypatch, capsys, prepare_nuswide, *images)
    assert code == 0, printed
    assert "already holds exactly these split files" in printed
    assert snapshot(nuswide.splits) == before


def rewritten(name, change):
    return lambda nuswide: nuswide.write(name, change((nuswide.release / name).read_text()))


BAD_NUSWIDE = {
    "a row less": (rewritten("NUS_WID_Tags/AllTags1k.txt", lambda text: text[text.index("\n") + 1:]),
                   "AllTags1k.txt has 119 rows, but"),
    "two": (rewritten("NUS_WID_Tags/AllTags1k.txt", lambda text: text.replace("1", "2", 1)),
            "AllTags1k.txt: row 1: expected 0 or 1, found '2'"),
    "a tag less": (rewritten("NUS_WID_Tags/TagList1k.txt", lambda text: text[text.index("\n") + 1:]),
                   "row 1 has 5 numbers, expected 4 as "),
    "a longer label file": (rewritten("Groundtruth/AllLabels/Labels_concept7.txt", lambda text: text + "0\n"),
                            "Labels_concept7.txt has 121 rows, but"),
    "a label file not 0/1": (rewritten("Groundtruth/AllLabels/Labels_concept7.txt", lambda text: "-1" + text[1:]),
                             "Labels_concept7.txt: row 1: expected 0 or 1, found '-1'"),
    "no label file": (lambda n: (n.release / "Groundtruth/AllLabels/Labels_concept7.txt").unlink(),
                      "Labels_concept7.txt: no such file"),
    "no list of images": (lambda n: (n.release / "ImageList/Imagelist.txt").unlink(), "Imagelist.txt: no such file"),
    "a path that climbs": (rewritten("ImageList/Imagelist.txt", lambda text: "..\\" + text),
                           "Imagelist.txt: row 1: expected a path inside the folder of the images, found '../actor"),
    "few concepts": (rewritten("ConceptsList/Concepts81.txt", lambda text: text[:18]),
                     "Concepts81.txt: expected at least 21 concepts, found 2"),
    "no images": (lambda n: [path.unlink() for path in (n.release / "Flickr").rglob("*.jpg")],
                  "can be used: actor/0000_0.jpg is missing"),
    "no folder of images": (lambda n: shutil.rmtree(n.release / "Flickr"), "Flickr: no such folder"),
}


@pytest.mark.parametrize("case", BAD_NUSWIDE)
def test_bad_files_are_one_sentence(nuswide, refused, case):
    spoil, sentence = BAD_NUSWIDE[case]
    spoil(nuswide)
    assert sentence in refused(nuswide)
    assert not nuswide.link.exists()


def test_numbers_too_large_are_one_sentence(nuswide, refused):
    assert "expected at least 10,000 database images with a tag" in refused(nuswide, "--training", "10000")
    assert "to draw 5,000 queries from" in refused(nuswide, "--queries", "5000")
    assert "expected at least 100 images of concept" in refused(nuswide, "--per-concept", "100")


def test_another_link_stays(nuswide, refused):
    nuswide.link.mkdir(parents=True)
    assert f"{nuswide.link} is already there and is not {nuswide.release / 'Flickr'}" in refused(nuswide)
