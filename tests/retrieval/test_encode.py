"""Encoding photos in shards: what OUT holds, bad photos, going on after an interruption, Ray, the index of it."""
import fcntl
import json
import logging
import shutil

import numpy as np
import pyarrow.parquet
import pytest

import search
from dataset import read_tag_embeddings
from encoding import files, make_root
from faults import files_of_at_most, flip
from models.checkpoint import embedder_of, fit_entries, read_checkpoint
from retrieval import build, encode, encoded, index, ray_cluster
from storage.arrays import write_weights
from storage.files import fingerprint
from tiny import EXPERIMENT, TRAINING, call, export_encoder
from util import UserError, stream

SHARD = 4
OPTIONS = {"crops": 1, "seed": 0}  # of a plan
BAD = {"00 half.jpg": "is truncated", "03 text.jpg": "is not an image that OpenCV reads",
       "07 hollow.png": "is not an image that OpenCV reads", "10 gone.jpg": "is missing", "11 empty.jpg": "is empty",
       "12 \\xff.jpg": "has a name that is not UTF-8", "13 two\nlines.jpg": "has a line break in its name"}


pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def root(tmp_path_factory, small):
    return make_root(tmp_path_factory.mktemp("encode"))


@pytest.fixture
def folder(root, tmp_path):
    """Six photos of which 2.jpg is missing, 3.jpg truncated and 4.jpg a text."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(6):
        shutil.copy(root / f"datasets/tiny/{number}.jpg", folder)
    whole = (folder / "3.jpg").read_bytes()
    (folder / "3.jpg").write_bytes(whole[:len(whole) // 2])
    (folder / "2.jpg").unlink()
    (folder / "2.jpg").symlink_to("nowhere.jpg")
    (folder / "4.jpg").write_text("no photo")
    return folder


@pytest.fixture(scope="module")
def checkpoint(root):
    return root / "checkpoints" / f"{EXPERIMENT}.npy"


@pytest.fixture(scope="module")
def done(root, checkpoint):
    """What encoding photos/ gave."""
    encode.encode(checkpoint, root / "photos", root / "done", crops=1, shard=SHARD, root=root)
    return root / "done"


@pytest.fixture
def out(done, tmp_path):
    """A copy of it."""
    return shutil.copytree(done, tmp_path / "out")


def again(root, checkpoint, out, **changed):
    encode.encode(**{"checkpoint": checkpoint, "images": root / "photos", "out": out, "crops": 1, "shard": SHARD,
                     "root": root, **changed})


# ---------------------------------------------------------------- what OUT holds

def test_bad_photos_are_left_out_with_their_reasons_and_the_others_are_all_there(root, done):
    found = encoded.read_encoded(done)
    left_out = pyarrow.parquet.read_table(done / "left_out.parquet").to_pylist()
    assert {row["path"]: row["reason"] for row in left_out} == BAD
    assert found.names == sorted(f"{'sub/' if number % 2 else ''}{number:02} é.jpg" for number in range(TRAINING + 3))
    manifest = json.loads((done / "manifest.json").read_text())
    assert (manifest["photos"], manifest["count"], manifest["left_out"]) == (20, 13, 7)
    assert manifest["images"] == str(root / "photos")
    assert len(list(done.glob("shard-*.parquet"))) == 5


def test_a_shards_codes_depend_on_its_photos_its_number_and_the_seed_alone(root, checkpoint, done):
    trained = read_checkpoint(checkpoint)
    factor = trained.factor(read_tag_embeddings(root / "data/tiny/tags/FinalTagEmbs.txt"))
    embedder = embedder_of(checkpoint, trained, 1)
    for shard, path in enumerate(sorted(done.glob("shard-*.parquet"))):
        table = pyarrow.parquet.read_table(path)
        assert str(table["code"].type) == "fixed_size_list<element: uint8>[2]"
        embeddings = embedder.embed([root / "photos" / name for name in table["path"].to_pylist()])
        expected = trained.encode(embeddings, factor, stream(0, "encode shard", shard))
        assert table["code"].to_pylist() == expected.tolist()


def test_a_list_of_photos_may_have_a_mark_crlf_and_names_that_are_not_utf_8(root, checkpoint, tmp_path):
    names = b"datasets/tiny/3.jpg", b"photos/12 \xff.jpg", b"datasets/tiny/99.jpg"
    (root / "list.txt").write_bytes(b"\xef\xbb\xbf" + b"".join(name + b"\r\n" for name in names))
    again(root, checkpoint, tmp_path, images=root / "list.txt")
    assert encoded.read_encoded(tmp_path).names == ["datasets/tiny/3.jpg"]
    left_out = pyarrow.parquet.read_table(tmp_path / "left_out.parquet").to_pylist()
    assert [row["reason"] for row in left_out] == ["has a name that is not UTF-8", "is missing"]


@pytest.mark.parametrize(("images", "sentence"), [
    ("../x.jpg\n", r"list\.txt: row 1: expected a path inside the image folder"), ("", "found none"),
    (None, "expected a folder of photos or a list of them, found neither")])
def test_a_list_that_cannot_be_used_is_refused(root, checkpoint, tmp_path, images, sentence):
    if images is not None:
        (tmp_path / "list.txt").write_text(images)
    with pytest.raises(UserError, match=sentence):
        again(root, checkpoint, tmp_path / "out", images=tmp_path / "list.txt")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_learned_no_tags_encodes_too(root, checkpoint, tmp_path):
    trained = read_checkpoint(checkpoint)
    fit = fit_entries(trained.codebooks, np.eye(300, dtype=np.float32), [np.zeros((1, 300), np.float32),
                                                                         np.ones(1, np.float32)])
    write_weights(tmp_path / "u.npy", {**trained.weights, **fit}, {"no_words": "The photos had no tags."})
    export_encoder(tmp_path / "u.npy")
    again(root, tmp_path / "u.npy", tmp_path / "out")
    assert len(encoded.read_encoded(tmp_path / "out").names) == TRAINING + 3


def test_photos_whose_folder_went_away_are_no_bad_photos(root, checkpoint, tmp_path):
    encoder = encode.ShardEncoder(checkpoint, None, OPTIONS, tmp_path, f"{tmp_path}/seen before.jpg", None)
    with pytest.raises(UserError, match=r"does not see the photos: .*seen before\.jpg: no such file there"):
        encoder.encode(0, ["1.jpg", "2.jpg"])


# ---------------------------------------------------------------- again

def test_a_second_run_says_that_it_is_finished_and_changes_nothing(root, checkpoint, out, monkeypatch, capsys):
    before = files(out)
    code, output = call(monkeypatch, capsys, search, "encode", checkpoint, root / "photos", out, "--crops", 1,
                        "--shard", SHARD, "--root", root)
    assert code == 0, output
    assert "is finished: 13 photos in 5 shards; 7 were left out, see left_out.parquet" in output
    assert files(out) == before


def test_only_what_is_missing_is_made_again(root, checkpoint, done, out):
    (out / "shard-00001.parquet").unlink()
    (out / "shard-00003.json").unlink()  # as an interruption between the two leaves it
    (out / "shard-00003.parquet").write_bytes(b"half")
    kept = {path: path.stat().st_mtime_ns for path in out.glob("shard-0000[024].*")}
    again(root, checkpoint, out)
    assert files(out) == files(done)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize(("changed", "sentence"), [
    ({"crops": 5}, "crops was 1, now 5"), ({"seed": 3}, "seed was 0, now 3"), ({"shard": 5}, "shard was 4, now 5"),
    ({"images": "datasets/tiny"}, "images was .*/photos, now .*/datasets/tiny")])
def test_other_settings_are_refused_by_name(root, checkpoint, out, changed, sentence):
    if "images" in changed:
        changed = {"images": root / changed["images"]}
    with pytest.raises(UserError, match=f"was saved with other settings: {sentence}"):
        again(root, checkpoint, out, **changed)


# ---------------------------------------------------------------- a folder that changes

def bring_back(root, folder):
    """A photo is new, one that was missing is back, and one that was truncated is whole."""
    (folder / "2.jpg").unlink()
    for number, name in ((2, "2.jpg"), (3, "3.jpg"), (7, "0 new.jpg")):
        shutil.copy(root / f"datasets/tiny/{number}.jpg", folder / name)


def reasons(out):
    return {row["path"]: row["reason"] for row in pyarrow.parquet.read_table(out / "left_out.parquet").to_pylist()}


def test_new_photos_and_those_that_are_back_go_into_further_shards(root, checkpoint, folder, tmp_path, capsys):
    out = tmp_path / "out"
    again(root, checkpoint, out, images=folder)
    assert reasons(out) == {"2.jpg": "is missing", "3.jpg": "is truncated", "4.jpg": BAD["03 text.jpg"]}
    search_index = tmp_path / "index"
    build.build(checkpoint, out, out=search_index, root=root, crops=1)
    before = {name: content for name, content in files(out).items() if name.startswith(("shard", "plan", "list"))}
    bring_back(root, folder)
    (folder / "5.jpg").unlink()
    again(root, checkpoint, out, images=folder)
    after = files(out)
    assert {name: after[name] for name in before} == before
    found = encoded.read_encoded(out)
    assert found.names == ["0.jpg", "1.jpg", "5.jpg", "0 new.jpg", "2.jpg", "3.jpg"]
    assert reasons(out) == {"4.jpg": BAD["03 text.jpg"]}
    assert (found.manifest.count, found.manifest.left_out) == (6, 1)
    assert "1 photos of" in (noted := capsys.readouterr().err)
    assert "5.jpg; their codes stay" in noted
    made = build.build(checkpoint, out, out=search_index, root=root, crops=1)
    assert "6 photos, 3 of them new" in capsys.readouterr().out
    np.testing.assert_array_equal(made.content.codes, found.codes)


def test_photos_that_are_still_bad_are_tried_and_change_nothing(root, checkpoint, folder, tmp_path, capsys):
    again(root, checkpoint, tmp_path / "out", images=folder)
    before = files(tmp_path / "out")
    again(root, checkpoint, tmp_path / "out", images=folder)
    assert "is finished: 3 photos in 2 shards; 3 were left out" in capsys.readouterr().out
    assert files(tmp_path / "out") == before


def test_a_growth_that_was_interrupted_ends_as_an_undisturbed_one(root, checkpoint, folder, tmp_path):
    out = tmp_path / "out"
    again(root, checkpoint, out, images=folder)
    bring_back(root, folder)
    disturbed = shutil.copytree(out, tmp_path / "disturbed")
    again(root, checkpoint, out, images=folder, shard=SHARD)
    shutil.copy(out / "list-00001.parquet", disturbed)  # as an interruption leaves it before the first shard
    shutil.copy(out / "list-00001.json", disturbed)
    (disturbed / "manifest.json").unlink()
    again(root, checkpoint, disturbed, images=folder)
    assert files(disturbed) == files(out)
    shutil.copy(root / "datasets/tiny/8.jpg", folder / "1 newer.jpg")
    (disturbed / "shard-00002.json").unlink()
    for folder_of_codes in (out, disturbed):
        again(root, checkpoint, folder_of_codes, images=folder)
    assert files(disturbed) == files(out)
    assert encoded.read_encoded(out).names[-1] == "1 newer.jpg"


def test_a_list_that_was_altered_is_named(root, checkpoint, out):
    flip(out / "list-00000.parquet")
    with pytest.raises(UserError, match=r"list-00000\.parquet was altered since it was written"):
        again(root, checkpoint, out)


@pytest.fixture(scope="module")
def other(root, checkpoint):
    """Another checkpoint, as one number of it is another."""
    other = root / "other.npy"
    shutil.copy(checkpoint, other)
    flip(other)
    return other


def test_another_checkpoint_is_refused(root, other, out):
    with pytest.raises(UserError, match="checkpoint_sha256 was"):
        again(root, other, out, trained_on="tiny")


def test_an_altered_shard_is_named(root, checkpoint, out):
    flip(out / "shard-00002.parquet")
    for use in (lambda: again(root, checkpoint, out), lambda: encoded.read_encoded(out)):
        with pytest.raises(UserError, match=r"shard-00002\.parquet was altered since it was written"):
            use()


def test_a_second_run_at_the_same_time_is_refused(root, checkpoint, out):
    with open(out / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is at work there"):
            again(root, checkpoint, out)


def test_a_full_disk_ends_in_one_sentence_and_the_same_command_goes_on(root, checkpoint, done, tmp_path, monkeypatch,
                                                                       capsys):
    arguments = (checkpoint, root / "photos", tmp_path / "out", "--crops", 1, "--shard", SHARD, "--root", root)
    with files_of_at_most(600):  # enough for the plan
        code, output = call(monkeypatch, capsys, search, "encode", *arguments)
    assert code == 2, output
    assert "File too large" in output
    assert sorted(files(tmp_path / "out")) == [".lock", "plan.json"]
    assert call(monkeypatch, capsys, search, "encode", *arguments)[0] == 0
    assert files(tmp_path / "out") == files(done)


# ---------------------------------------------------------------- the index

def test_an_index_is_made_of_the_codes_without_looking_at_a_photo(root, checkpoint, done, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "encode_photos", None)
    made = build.build(checkpoint, done, out=tmp_path, root=root, crops=1)
    found = encoded.read_encoded(done)
    np.testing.assert_array_equal(made.content.codes, found.codes)
    assert list(index.load(tmp_path).content.images) == found.names
    assert made.content.facts["images"] == str(root / "photos")
    with pytest.raises(UserError, match=r"holds only codes, and .* is to keep embeddings: give the folder"):
        build.build(checkpoint, done, out=tmp_path / "kept", root=root, crops=1, keep_embeddings=True)
    assert search.open_index(tmp_path).by_words("a", topk=1)[0].path.startswith(str(root / "photos"))


def test_codes_that_do_not_fit_are_not_made_an_index_of(root, checkpoint, other, out, tmp_path):
    with pytest.raises(UserError, match="holds codes of another checkpoint"):
        build.build(other, out, out=tmp_path / "index", root=root, crops=1, trained_on="tiny")
    with pytest.raises(UserError, match="holds codes of --crops 1, not 10"):
        build.build(checkpoint, out, out=tmp_path / "index", root=root)
    (out / "manifest.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        build.build(checkpoint, out, out=tmp_path / "index", root=root, crops=1)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(("change", "sentence"), [
    ({"codebooks": 9}, r"manifest\.json: Expected `int` <= 8 - at `\$\.codebooks`"),
    ({"codebooks": 1}, r"shard-00000\.parquet: expected the names and codes of photos, found something else"),
    ({"crops": None}, r"manifest\.json: .* at `\$\.crops`"), ({"images": 7}, r"manifest\.json: .* at `\$\.images`"),
    ({"sha256": []}, r"manifest\.json: .* at `\$\.sha256`")])
def test_a_manifest_of_codes_that_does_not_fit_is_one_sentence(out, change, sentence):
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(UserError, match=sentence):
        encoded.read_encoded(out)


@pytest.mark.parametrize("table", [{"path": ["a.jpg"]}, {"path": ["a.jpg"], "code": ["text"]},
                                   {"path": [7], "code": [[1, 300]]}, {"path": [None], "code": [[1, 2]]},
                                   {"path": ["a.jpg"], "code": [None]}, {"path": ["a.jpg"], "code": [[1, None]]}, None])
def test_a_shard_that_is_none_is_one_sentence(out, table):
    path = out / "shard-00001.parquet"
    if table:
        pyarrow.parquet.write_table(pyarrow.table(table), path)
    else:
        path.write_text("no shard")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["sha256"][path.name] = fingerprint(path)
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"shard-00001\.parquet: expected the names and codes of photos, found"):
        encoded.read_encoded(out)


# ---------------------------------------------------------------- Ray

@pytest.mark.parametrize(("address", "sentence"), [
    ("127.0.0.1:1", "error: there is no Ray cluster at 127.0.0.1:1: [Errno 111] Connection refused\n"),
    ("there", "expected local, auto or HOST:PORT, found 'there'")])
def test_an_address_without_ray_is_one_sentence(root, checkpoint, tmp_path, monkeypatch, capsys, address, sentence):
    code, output = call(monkeypatch, capsys, search, "encode", checkpoint, root / "photos", tmp_path / "out", "--ray",
                        address)
    assert code == 2
    assert sentence in output
    assert not (tmp_path / "out").exists()


def test_logging_is_silent_only_while_ray_is_used():
    before = logging.root.manager.disable
    with ray_cluster.quiet_logging():
        assert not logging.getLogger("ray.data").isEnabledFor(logging.ERROR)
    assert logging.root.manager.disable == before
