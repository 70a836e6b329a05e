"""Links from datasets/ to images: a project that was moved or copied reads its own images, or says that it does not."""
import csv
import os
import shutil

import pytest

import dataset
from experiments import ablations
from prepare import check, photos
from tiny import call, make_tiny
from util import UserError


@pytest.fixture
def project(tmp_path, monkeypatch, capsys):
    """A project whose data set `mine` was imported from the folder `photos` inside it."""
    root = make_tiny(tmp_path / "project")
    shutil.move(root / "datasets" / "tiny", root / "photos")
    with open(tmp_path / "photos.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "tags", "split"], ["0.jpg", "a", "train"], ["1.jpg", "b", "train"]])
    code, printed = call(monkeypatch, capsys, photos, "mine", tmp_path / "photos.csv", "--images", root / "photos",
                         "--root", root)
    assert code == 0, printed
    shutil.copytree(root / "data" / "tiny" / "tags", root / "data" / "mine" / "tags")
    return root


def paths_of(root):
    return [path.resolve() for path in _names(root)]


def _names(root):
    found = dataset.find_dataset("mine", root)
    names, _ = dataset.read_split(found, "train")
    return [found.images / name for name in names]


@pytest.mark.parametrize("move", [shutil.move, lambda old, new: shutil.copytree(old, new, symlinks=True)])
def test_a_project_that_was_moved_or_copied_reads_its_own_images(project, tmp_path, move, capsys):
    move(project, tmp_path / "new")
    assert paths_of(tmp_path / "new") == [tmp_path / "new" / "photos" / name for name in ("0.jpg", "1.jpg")]
    assert capsys.readouterr().err == ""


def test_a_link_to_images_outside_the_project_is_absolute(project, tmp_path):
    photos_outside, link = tmp_path / "elsewhere", project / "datasets" / "other"
    photos_outside.mkdir()
    dataset.link_folder(link, photos_outside, project)
    assert os.readlink(link) == str(photos_outside)


def test_the_ablations_link_to_the_images_moves_with_the_project(project, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "program", lambda *_: None)
    for split in ("database", "test"):
        for source, copy in zip(dataset.find_dataset("tiny", project).split_files(split),
                                dataset.find_dataset("mine", project).split_files(split), strict=True):
            shutil.copy(source, copy)
    ablations.prepare_tags(project, "mine", "vectors.txt", "cpu", 0.75)
    shutil.move(project, tmp_path / "new")
    assert (tmp_path / "new" / "datasets" / "mine_no_graph").resolve() == tmp_path / "new" / "photos"


def test_a_link_to_nothing_is_one_sentence(project, monkeypatch, capsys):
    link = project / "datasets" / "mine"
    link.unlink()
    link.symlink_to("/gone/photos")
    sentence = f"{link} is a link to /gone/photos, and there is no such folder"
    with pytest.raises(UserError, match=sentence):
        dataset.load_training(dataset.find_dataset("mine", project), skip_bad=True)
    code, printed = call(monkeypatch, capsys, check, "mine", "--root", project)
    assert code == 1
    assert f"finding: {sentence}" in printed


def test_an_absolute_link_of_a_copied_project_is_noted(project, tmp_path, capsys):
    link = project / "datasets" / "mine"
    link.unlink()
    link.symlink_to(project / "photos")  # as before links were relative
    assert paths_of(project) == [project / "photos" / name for name in ("0.jpg", "1.jpg")]
    assert capsys.readouterr().err == ""
    shutil.copytree(project, tmp_path / "new", symlinks=True)
    paths_of(tmp_path / "new")
    assert f"note: {tmp_path}/new/datasets/mine is a link to {project}/photos, in another project, {project}" in (
        capsys.readouterr().err)
