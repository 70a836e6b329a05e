"""Searching photos: building an index, asking it by photo and by words, the model's tags."""
import json
import shutil

import cv2
import h5py
import numpy as np
import pytest

import search
from models.encoder import encoder_next_to
from quantization import quantizer
from retrieval import build, faiss_index, index
from server.client import Remote
from servers import post, served
from tiny import EXPERIMENT, TRAINING, export_encoder, make_tiny, run, train_in_fixture, validate
from util import UserError, unit_length

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def root(tmp_path_factory, small):
    """The tiny data set and a checkpoint that was not trained long, but is complete."""
    root = make_tiny(tmp_path_factory.mktemp("search"))
    (root / "data/tiny/labels.txt").write_text("a\nz\n")
    train_in_fixture(root, iterations=1)
    export_encoder(root / "checkpoints" / f"{EXPERIMENT}.npy")
    return root


@pytest.fixture(scope="module")
def checkpoint(root):
    return root / "checkpoints" / f"{EXPERIMENT}.npy"


@pytest.fixture(scope="module")
def photos(root, checkpoint):
    """The index of the data set's database, opened."""
    build.build(checkpoint, "tiny", root=root, crops=1)
    return search.open_index(root / "indexes" / EXPERIMENT)


def photo(root, number):
    return root / "datasets/tiny" / f"{number}.jpg"


# ---------------------------------------------------------------- build

def test_an_index_holds_the_database_and_what_it_was_made_of(root, checkpoint, photos):
    made = photos.index
    assert list(made.content.images) == [f"{i}.jpg" for i in range(TRAINING)]
    assert made.content.codes.shape == (TRAINING, 2)
    assert made.content.tag_names == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert made.content.label_names == ["a", "z"]
    assert made.content.facts["checkpoint"] == str(checkpoint)
    assert made.content.facts["trained_on"] == "tiny"


def test_embeddings_that_are_kept_are_those_of_the_photos(root, checkpoint, photos, tmp_path):
    arguments = {"out": tmp_path / "index", "root": root, "crops": 1}
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in (3, 4):
        shutil.copy(photo(root, number), folder)
    build.build(checkpoint, folder, **arguments, keep_embeddings=True)
    shutil.copy(photo(root, 5), folder)
    kept = build.build(checkpoint, folder, **arguments).content.embeddings
    expected = unit_length(photos.embed([photo(root, number) for number in (3, 4, 5)]))
    np.testing.assert_allclose(kept, expected, atol=1e-3)
    with pytest.raises(UserError, match="is an index without embeddings: for --keep-embeddings choose another"):
        build.build(checkpoint, "tiny", root=root, crops=1, keep_embeddings=True)


def test_an_index_that_is_up_to_date_is_not_written_again(run_here, root, checkpoint, photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in (3, 4):
        shutil.copy(photo(root, number), folder)
    arguments = [checkpoint, folder, "--root", root, "--out", tmp_path / "index"]  # crops are those of the index
    build.build(*arguments[:2], tmp_path / "index", root=root, crops=1)
    (folder / "3.jpg").unlink()
    (folder / "bad.jpg").write_text("no photo")
    (folder / "notes.txt").write_text("no photo")
    exit_code, output = run_here("search.py", "build", *arguments, "--skip-bad")
    assert exit_code == 0, output
    assert "2 photos, 0 of them new, 16 bits each" in output
    assert output.count("left out: 1 of 1 photos cannot be used") == 1
    assert output.count("left out 1 files that are no photos: notes.txt") == 1
    assert output.count("3.jpg; they stay in the index (--prune drops them)") == 1
    exit_code, output = run_here("search.py", "build", *arguments, "--skip-bad", "--prune")
    assert exit_code == 0, output
    assert "1 photos, 0 of them new, 1 dropped, 16 bits each" in output
    assert output.count("left out: 1 of 1 photos cannot be used") == 1
    assert output.count("3.jpg; they leave the index") == 1


def test_with_a_file_of_word_vectors_any_of_its_words_is_a_query(root, checkpoint, photos, tmp_path):
    content = photos.index.content
    rows = [*zip("abcde", content.tag_embeddings, strict=True), ("wave", content.tag_embeddings[1])]
    (tmp_path / "v.txt").write_text("".join(f"{word} {' '.join(map(str, vector))}\n" for word, vector in rows))
    shutil.copytree(root / "indexes" / EXPERIMENT, tmp_path / "index")
    arguments = {"out": tmp_path / "index", "root": root, "crops": 1}
    build.build(checkpoint, "tiny", **arguments, vectors=tmp_path / "v.txt")
    for _ in range(2):
        made = index.load(tmp_path / "index")
        np.testing.assert_allclose(made.words("wave"), made.words("b"), rtol=1e-4)
        build.build(checkpoint, "tiny", **arguments)  # keeps the words
    build.build(checkpoint, "tiny", **arguments, vectors=tmp_path / "v.txt")
    assert made.content.facts["generation"] == index.load(tmp_path / "index").content.facts["generation"]
    (tmp_path / "other.txt").write_text("".join(f"{word} {' '.join(map(str, vector[::-1]))}\n"
                                                for word, vector in rows))
    with pytest.raises(UserError, match="expected the word vectors that the tags were made from, found others"):
        build.build(checkpoint, "tiny", **arguments, vectors=tmp_path / "other.txt")


def test_photos_that_changed_are_embedded_anew_and_photos_that_are_gone_are_dropped(root, checkpoint, tmp_path, capsys):
    folder, out = tmp_path / "photos", tmp_path / "index"
    folder.mkdir()
    for number in range(5):
        shutil.copy(photo(root, number), folder)
    arguments = {"out": out, "root": root, "crops": 1}
    first = build.build(checkpoint, folder, **arguments).content
    shutil.copy(photo(root, 8), folder / "1.jpg")  # other content
    shutil.copy(photo(root, 2), folder / "2.jpg")  # the same content, another time
    (folder / "3.jpg").unlink()
    shutil.copy(photo(root, 7), folder)
    generation = json.loads((out / "manifest.json").read_bytes())["generation"]
    made = build.build(checkpoint, folder, **arguments, prune=True)
    printed = capsys.readouterr()
    assert "5 photos, 1 of them new, 1 changed, 1 dropped" in printed.out
    assert "1 photos of" in printed.err
    assert "3.jpg; they leave the index" in printed.err
    assert list(made.content.images) == ["0.jpg", "2.jpg", "4.jpg", "1.jpg", "7.jpg"]
    np.testing.assert_array_equal(made.content.codes[:3], first.codes[[0, 2, 4]])
    np.testing.assert_array_equal(made.content.fingerprints[[0, 2], 3:], first.fingerprints[[0, 4], 3:])
    whole = build.build(checkpoint, "tiny", out=tmp_path / "whole", root=root, crops=1).content
    np.testing.assert_array_equal(made.content.codes[3:], whole.codes[[8, 7]])

    build.build(checkpoint, folder, **arguments, prune=True)
    assert "5 photos, 0 of them new, 16 bits" in capsys.readouterr().out
    assert json.loads((out / "manifest.json").read_bytes())["generation"] == generation + 1  # not written again
    (folder / "4.jpg").write_bytes(b"no photo any more")
    with pytest.raises(UserError, match=r"1 of 1 photos cannot be used .*4\.jpg"):
        build.build(checkpoint, folder, **arguments)
    assert list(build.build(checkpoint, folder, **arguments, skip_bad=True).content.images) == [
        "0.jpg", "2.jpg", "1.jpg", "7.jpg"]
    build.build(checkpoint, folder, **arguments, skip_bad=True)  # what cannot be read is no reason to fail twice
    assert "4 photos, 0 of them new, 16 bits" in capsys.readouterr().out


def test_codes_that_validation_left_are_not_computed_again(root, checkpoint, tmp_path, capsys, run_here):
    code, output = validate(root, run=run_here)
    assert code == 0, output
    made = build.build(checkpoint, "tiny", out=tmp_path / "index", root=root, crops=1)
    assert "the codes are those of" in capsys.readouterr().out
    with h5py.File(checkpoint.with_name(f"{EXPERIMENT}_retrieval.h5")) as file:
        np.testing.assert_array_equal(made.content.codes, file["db_codes"][()])
        kept = build.build(checkpoint, "tiny", out=tmp_path / "kept", root=root, crops=1, keep_embeddings=True)
        np.testing.assert_allclose(kept.content.embeddings, unit_length(file["db_features"][()]), atol=1e-3)


# ---------------------------------------------------------------- ask

def test_photos_are_ranked_by_the_inner_product_of_embedding_and_reconstruction(root, photos):
    results = photos.by_photo(photo(root, 11), topk=4)
    content = photos.index.content
    scores = quantizer.reconstruct(content.codes, content.codebooks) @ photos.embed(photo(root, 11))
    np.testing.assert_allclose([result.score for result in results], -np.sort(-scores)[:4], rtol=1e-4)
    assert [result.rank for result in results] == [1, 2, 3, 4]
    np.testing.assert_allclose(scores[[result.row for result in results]], -np.sort(-scores)[:4], rtol=1e-4)
    assert [list(content.images)[result.row] for result in results] == [result.path[-5:] for result in results]


def test_a_result_s_cosine_is_that_of_query_and_reconstruction(root, photos):
    content = photos.index.content
    reconstructed = quantizer.reconstruct(content.codes, content.codebooks)
    for results, query in ((photos.by_photo(photo(root, 11)), photos.embed(photo(root, 11))),
                           (photos.by_words("b c"), photos.index.words("b c"))):
        expected = reconstructed @ query / np.linalg.norm(reconstructed, axis=1) / np.linalg.norm(query)
        np.testing.assert_allclose([result.cosine for result in results],
                                   expected[[result.row for result in results]], rtol=1e-4)


def test_hits_share_a_label_with_the_query_where_its_labels_are_known(root, photos, tmp_path):
    labels = np.loadtxt(root / "data/tiny/database_label.txt")
    query = np.loadtxt(root / "data/tiny/test_label.txt")[1]
    for result in photos.by_photo(photo(root, TRAINING + 1), topk=TRAINING):
        row = int(result.path.rsplit("/", 1)[1].removesuffix(".jpg"))
        assert result.hit == bool((labels[row] * query).any())
    shutil.copy(photo(root, TRAINING + 1), tmp_path / "a stranger.jpg")
    assert {result.hit for result in photos.by_photo(tmp_path / "a stranger.jpg")} == {None}


def test_words_search_by_their_tags_vectors(photos):
    content = photos.index.content
    results = photos.by_words("b", topk=3)
    unit = content.tag_embeddings[1] / np.linalg.norm(content.tag_embeddings[1])
    best = np.sort(quantizer.reconstruct(content.codes, content.codebooks) @ unit)[::-1]
    np.testing.assert_allclose([result.score for result in results], best[:3], rtol=1e-4)
    assert {result.hit for result in results} == {None}
    assert {result.hit for result in photos.by_words("a", topk=TRAINING)} <= {True, False}


def test_words_in_capitals_find_what_others_find(photos):
    assert photos.by_words("A", topk=TRAINING) == photos.by_words("a", topk=TRAINING)


def test_a_photo_may_be_a_text_a_path_an_array_or_a_list_of_these(root, photos):
    path = photo(root, 11)
    image = cv2.imread(str(path))
    expected = photos.by_photo(path, topk=4)
    assert photos.by_photo(str(path), topk=4) == expected
    from_array = photos.by_photo(image, topk=4)
    assert [(found.path, found.score) for found in from_array] == [(found.path, found.score) for found in expected]
    assert photos.by_photo(np.ascontiguousarray(image[:, :, ::-1])[:, :, ::-1], topk=4) == from_array
    several = photos.by_photo([str(path), image, path], topk=4)
    assert [[found.path for found in results] for results in several] == [[found.path for found in expected]] * 3
    assert [found.hit for found in several[0]] == [found.hit for found in expected]
    assert photos.by_photo([]) == []
    tags = photos.tags(path)
    assert photos.tags(image) == tags
    assert [[names for _, names in found] for found in photos.tags([path, image])] == [[names for _, names in tags]] * 2


@pytest.mark.parametrize(("ask", "sentence"), [
    (lambda photos, _: photos.by_words("a", topk=0), "topk: expected a whole number of at least 1, found 0"),
    (lambda photos, _: photos.by_words("a", topk=2.5), "topk: expected a whole number of at least 1, found 2.5"),
    (lambda photos, _: photos.by_words("a", probes=True), "probes: expected a whole number of at least 1, found True"),
    (lambda photos, _: photos.by_words(["a"]), "expected a text of one or more words, found list"),
    (lambda photos, _: photos.by_photo(np.zeros((5, 4))), "uint8 of shape .height, width, 3., found float64 .5, 4."),
    (lambda photos, _: photos.by_photo(np.zeros((0, 4, 3), np.uint8)), "found uint8 .0, 4, 3."),
    (lambda photos, path: photos.by_photo([path, [path]]), "a list of photos, found list"),
    (lambda photos, _: photos.tags(7), "a list of photos, found int"),
    (lambda photos, _: photos.tags(b"x.jpg"), "a list of photos, found bytes"),
    (lambda photos, _: photos.by_photo("a\0b.jpg"), "expected the path of a photo, found 'a"),
    (lambda photos, path: photos.tags([path, "gone.jpg"]), "gone.jpg is missing")])
def test_what_is_no_photo_and_no_number_is_refused_in_a_sentence(root, photos, ask, sentence):
    with pytest.raises(UserError, match=sentence):
        ask(photos, photo(root, 1))


def test_no_tensorflow_is_loaded():
    code, output = run("-c", "import sys, search, server.service, retrieval.build, retrieval.encode; "
                             "sys.exit('tensorflow' in sys.modules)")
    assert code == 0, output


def test_tags_of_a_photo_come_best_first(root, photos):
    tags = photos.tags(photo(root, 0))
    assert sorted(names[0] for _, names in tags) == list("abcde")
    cosines = [cosine for cosine, _ in tags]
    assert cosines == sorted(cosines, reverse=True)
    assert -1 <= cosines[-1] <= cosines[0] <= 1


def test_without_faiss_the_answers_are_the_same_and_a_note_says_so(root, photos, monkeypatch, capsys):
    pytest.importorskip("faiss")
    fast = [result.path for result in photos.by_words("b c")]
    monkeypatch.setattr(faiss_index, "faiss", None)
    slow = search.open_index(root / "indexes" / EXPERIMENT)
    assert "FAISS is not installed" in capsys.readouterr().err
    assert [result.path for result in slow.by_words("b c")] == fast


# ---------------------------------------------------------------- the program

def printed_json(output):
    return json.loads(next(line for line in output.splitlines() if line.startswith("{")))


def test_the_program_prints_tables_json_and_a_figure(root, photos, tmp_path, run_here):
    folder = root / "indexes" / EXPERIMENT
    code, output = run_here("search.py", "query", folder, photo(root, 11), "--topk", 3, "--figure",
                            tmp_path / "found.png")
    assert code == 0, output
    assert "rank    score   cosine  label photo" in output
    assert len([line for line in output.splitlines() if str(root / "datasets") in line]) == 3
    assert cv2.imread(str(tmp_path / "found.png")).std() > 10
    code, output = run_here("search.py", "query", folder, "--words", "a e", "--json", "--topk", 2)
    assert code == 0, output
    found = printed_json(output)
    assert found["query"] == "a e"
    assert [set(result) for result in found["results"]] == 2 * [{"rank", "row", "score", "cosine", "path", "hit"}]
    code, output = run_here("search.py", "tags", folder, photo(root, 0), "--topk", 2, "--json")
    assert code == 0, output
    assert len(printed_json(output)["tags"]) == 2


def test_many_photos_are_searched_for_at_once_and_bad_ones_have_a_line_of_their_own(run_here, root, photos, tmp_path):
    (tmp_path / "bad.jpg").write_text("no photo")
    asked = [photo(root, 11), tmp_path / "bad.jpg", photo(root, 3)]
    (tmp_path / "list.txt").write_text("\r\n".join(map(str, asked)) + "\n\n")
    arguments = ("search.py", "query", "tiny", "--root", root, "--list", tmp_path / "list.txt", "--topk", 3)
    code, output = run_here(*arguments, "--json")
    assert code == 2, output
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [line["query"] for line in lines] == [str(path) for path in asked]
    assert lines[1]["error"] == f"{tmp_path / 'bad.jpg'} is not an image that OpenCV reads"
    for line in (lines[0], lines[2]):
        alone = [vars(found) for found in photos.by_photo(line["query"], topk=3)]
        assert [(found["path"], found["hit"]) for found in line["results"]] == [
            (found["path"], found["hit"]) for found in alone]
        np.testing.assert_allclose([found["score"] for found in line["results"]], [found["score"] for found in alone],
                                   rtol=1e-4)
    assert "list.txt: 1 of 3 photos could not be searched for; the line of each says why" in output
    (tmp_path / "list.txt").write_text(f"{asked[0]}\n")
    code, output = run_here(*arguments)
    assert code == 0, output
    assert f"{asked[0]}\nrank    score   cosine" in output


def test_the_learned_words_are_listed(run_here, root, photos):
    code, output = run_here("search.py", "tags", "tiny", "--list-words", "--root", root)
    assert (code, output.split()[-5:]) == (0, ["a", "b", "c", "d", "e"])
    code, output = run_here("search.py", "tags", "tiny", "--list-words", "--json", "--root", root)
    assert printed_json(output) == {"words": ["a", "b", "c", "d", "e"]}


def test_a_photo_gives_the_same_json_with_a_server_and_without(root, photos, tmp_path):
    pytest.importorskip("faiss")
    shutil.copy(photo(root, 3), tmp_path / "a stranger.jpg")
    with served(root / "indexes" / EXPERIMENT, "--shards", 3) as address:
        for asked in (photo(root, TRAINING + 1), tmp_path / "a stranger.jpg"):
            code, there = run("search.py", "query", "--server", address, asked, "--json")
            assert code == 0, there
            here = {"query": str(asked), "results": [vars(found) for found in photos.by_photo(asked)]}
            assert printed_json(there) == here
        status, answer = post(address, "tags?topk=2", photo(root, 3).read_bytes())
        assert status == 200, answer
        assert [(tag["cosine"], tag["names"]) for tag in answer["tags"]] == photos.tags(photo(root, 3))[:2]
        direction = post(address, "embedding", photo(root, 3).read_bytes())[1]["photo"]
        best = post(address, "query", {"photo": direction, "topk": 1})[1]["results"][0]
        assert best["row"] == photos.by_photo(photo(root, 3), topk=1)[0].row
        (tmp_path / "bad.jpg").write_text("no photo")
        bad, gone, good = Remote(address).by_photos([tmp_path / "bad.jpg", "gone.jpg", photo(root, 3)])
        assert "bad.jpg is not an image that OpenCV reads" in str(bad[1])
        assert str(gone[1]) == "gone.jpg cannot be read (No such file or directory)"
        assert good[1] == photos.by_photo(photo(root, 3))
        code, output = run("search.py", "query", "--server", address, photo(root, 11), "--figure", tmp_path / "f.png")
        assert code == 0, output
        assert "label photo" in output
        assert (tmp_path / "f.png").is_file()


def test_a_data_set_whose_labels_are_others_by_now_gives_no_hits(root, photos, tmp_path):
    shutil.copytree(root / "data", tmp_path / "data")
    (tmp_path / "datasets").symlink_to(root / "datasets")
    for split, count in (("test", 3), ("database", TRAINING)):
        (tmp_path / f"data/tiny/{split}_label.txt").write_text("1 0 1\n" * count)
    moved = search.open_index(root / "indexes" / EXPERIMENT)
    moved.index.content.facts["root"] = str(tmp_path)
    assert {result.hit for result in moved.by_photo(photo(root, TRAINING + 1))} == {None}


def test_a_result_that_was_deleted_is_noted(root, checkpoint, tmp_path, run_here):
    folder = tmp_path / "photos"
    shutil.copytree(root / "datasets/tiny", folder)
    build.build(checkpoint, folder, out=tmp_path / "index", root=root, crops=1)
    (folder / "3.jpg").unlink()
    code, output = run_here("search.py", "query", tmp_path / "index", "--words", "a", "--figure", tmp_path / "f.png")
    assert code == 0, output
    assert "1 of these photos are not there any more, such as" in output
    assert "3.jpg" in output
    assert (tmp_path / "f.png").is_file()


def _other_checkpoint(root, tmp_path):
    shutil.copy(root / "checkpoints" / f"{EXPERIMENT}.npy", tmp_path / "other.npy")
    with open(tmp_path / "other.npy", "ab") as file:
        file.write(b"\0")
    return ["query", root / "indexes" / EXPERIMENT, photo(root, 1), "--checkpoint", tmp_path / "other.npy"]


def _corrupt_photo(root, tmp_path):
    data = photo(root, 1).read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[:len(data) // 2])
    return ["query", root / "indexes" / EXPERIMENT, tmp_path / "half.jpg"]


def _empty_folder(root, tmp_path):
    (tmp_path / "empty").mkdir()
    return ["build", root / "checkpoints" / f"{EXPERIMENT}.npy", tmp_path / "empty", "--root", root]


@pytest.mark.parametrize(("prepare", "sentence"), [
    (_other_checkpoint, "is an index of another checkpoint"),
    (_corrupt_photo, "half.jpg is truncated"),
    (_empty_folder, "expected photos"),
    (lambda root, _: ["query", root / "indexes" / EXPERIMENT, root / "gone.jpg"], "gone.jpg is missing"),
    (lambda root, _: ["query", root / "indexes" / EXPERIMENT, "--words", "aa"], "'aa' is none of the 5 tags"),
    (lambda root, _: ["query", root / "indexes" / EXPERIMENT, photo(root, 1), "--checkpoint", root / "x.npy"],
     "x.npy: no such file"),
    (lambda root, _: ["query", root / "indexes" / EXPERIMENT], "expected one of PHOTO, --words and --list"),
    (lambda root, tmp_path: ["query", root / "indexes" / EXPERIMENT, "--list", tmp_path / "none.txt"], "none.txt"),
    (lambda root, _: ["tags", root / "indexes" / EXPERIMENT], "expected either a PHOTO or --list-words"),
    (lambda root, _: ["query", "other", "--words", "a", "--root", root],
     "other: expected an index, or how the name of one begins, found neither"),
    (lambda root, _: ["query", root / "nothing", "--words", "a"], "expected an index"),
    (lambda root, _: ["build", root / "checkpoints" / f"{EXPERIMENT}.npy", "nowhere", "--root", root],
     "neither a data set nor a folder; data sets: tiny"),
])
def test_bad_input_is_one_sentence_and_exit_code_2(root, photos, tmp_path, run_here, prepare, sentence):
    code, output = run_here("search.py", *prepare(root, tmp_path))
    assert code == 2, output
    assert "Traceback" not in output
    assert sentence in output


def test_an_index_has_the_name_that_it_is_given_and_a_missing_encoder_is_exported(run_here, root, checkpoint, photos):
    encoder_next_to(checkpoint).unlink()
    code, output = run_here("search.py", "build", checkpoint, "tiny", "--crops", 1, "--root", root, "--name", "t")
    assert code == 0, output
    assert len(search.open_index("t", root=root).index) == TRAINING
    assert encoder_next_to(checkpoint).is_file()
    shutil.rmtree(root / "indexes/t")
    code, output = run_here("search.py", "build", checkpoint, "tiny", "--root", root, "--name", "a/b")
    assert (code, "--name: expected a name without slashes" in output) == (2, True)


def test_an_index_grows_only_by_its_own_kind(root, checkpoint, photos):
    for arguments, sentence in (({"crops": 5}, "crops 1, not 5"), ({"images": root / "datasets"}, "the photos of"),
                                ({"seed": 1}, "seed 0, not 1")):
        with pytest.raises(UserError, match=sentence):
            build.build(**{"checkpoint": checkpoint, "images": "tiny", "root": root, "crops": 1, **arguments,
                            "out": root / "indexes" / EXPERIMENT})
    copy = root / "checkpoints" / "copy.npy"
    shutil.copy(checkpoint, copy)
    with pytest.raises(UserError, match="--trained-on"):
        build.build(copy, root / "datasets", root=root)
