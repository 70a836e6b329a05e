"""Pictures of a trained model: what they promise, and that there is something to see in each."""
import sys

import cv2
import numpy as np
import pytest

import dataset
import retrieval as retrieval_package
import validation
from quantization import quantizer
from quantization.codebooks import initial_codebooks, random_codebooks
from retrieval import figures, metrics
from retrieval.retrieval_file import SPLITS, Retrieval, sources, write_retrieval
from small_retrieval import Log
from storage.arrays import write_weights
from util import stream

IMAGES, QUERIES, LABELS = 300, 40, 12
PICTURES = ["codewords.png", "precision_at_n.png", "precision_recall.png", "rankings.png", "training.png", "tsne.png"]


@pytest.fixture(scope="module")
def retrieval():
    """Random embeddings around a centre for each label, and codes of a trained pair of codebooks."""
    rng = stream(0, "figures test")
    centres = rng.normal(size=(LABELS, 300))
    arrays = {}
    for prefix, n in (("db", IMAGES), ("qry", QUERIES)):
        labels = (rng.random((n, LABELS)) < np.linspace(0.4, 0.01, LABELS)).astype(np.uint8)
        noise = rng.normal(size=(n, 300))
        arrays[f"{prefix}_label"] = labels
        arrays[f"{prefix}_features"] = np.tanh(labels @ centres + noise).astype(np.float32)
    codebooks = initial_codebooks(arrays["db_features"], random_codebooks(2, rng), rng)
    for prefix in ("db", "qry"):
        arrays[f"{prefix}_codes"] = quantizer.encode(arrays[f"{prefix}_features"], codebooks,
                                                     np.eye(300, dtype=np.float32), rng, 700)
    return Retrieval(codebooks=codebooks, **arrays)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Small photos of one colour each; every tenth is missing."""
    folder = tmp_path_factory.mktemp("photos")
    found = {"database": [folder / f"{i}.jpg" for i in range(IMAGES)],
             "test": [folder / f"query {i}.jpg" for i in range(QUERIES)]}
    for i, path in enumerate([*found["database"], *found["test"]]):
        if i % 10:
            cv2.imwrite(str(path), np.full((30, 50, 3), (i % 256, 90, 160), np.uint8))
    return found


def step(number, loss=1.0, rate=0.0003):
    return (f"2026-11-22 21:57:49,056 step [{number:4d}], lr [{rate:.7f}], embedding loss [{loss:7.4f}], "
            f"quantization loss [{loss / 10:7.4f}], {11.82:5.2f} sec/batch.\n")


def see(path):
    """A picture as OpenCV reads it, which must show something."""
    picture = cv2.imread(str(path))
    assert picture is not None, path
    assert min(picture.shape[:2]) > 150
    assert (picture == 255).all(2).mean() > 0.1  # paper
    assert (picture < 128).any(2).mean() > 0.001  # ink
    return picture


def share(picture, colour):
    """The share of the pixels that have the colour, written as matplotlib does."""
    rgb = np.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(picture[:, :, ::-1].astype(int) - rgb).max(2) < 12).mean()


# ---------------------------------------------------------------- all of them

@pytest.fixture
def validated(retrieval, paths, tmp_path):
    """A root folder where everything is there but the figures: data set, checkpoint, retrieval file and log."""
    splits = tmp_path / "data" / "tiny"
    (splits / "tags").mkdir(parents=True)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "tiny").symlink_to(paths["test"][0].parent)
    (splits / "tags" / "FinalTagEmbs.txt").write_text("not read\n")
    (splits / "labels.txt").write_text("".join(f"name $_{i}\n" for i in range(LABELS)))
    for split, prefix in SPLITS.items():
        (splits / f"{split}_img.txt").write_text("".join(f"{path.name}\n" for path in paths[split]))
        np.savetxt(splits / f"{split}_label.txt", getattr(retrieval, f"{prefix}_label"), fmt="%d")
    write_weights(tmp_path / "x.npy", {"fc8": [np.zeros((7, 300)), np.zeros(300)], "C": np.zeros((256, 300))})
    embeddings, labels = sources(dataset.find_dataset("tiny", tmp_path), tmp_path / "x.npy", 1, 0)
    write_retrieval(tmp_path / "x_retrieval.h5", retrieval, {**embeddings, **labels})
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "x.log").write_text("".join(step(i, 2 / i) for i in range(1, 101)))
    return tmp_path


def test_validation_draws_every_figure_and_writes_recall_and_precision(validated, retrieval, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["validation.py", "tiny", str(validated / "x.npy"), "cpu", "--topk", "200",
                                      "--root", str(validated), "--figures"])
    validation.main()
    folder = validated / "x_figures"
    log = (validated / "logs" / "x.log").read_text()
    assert log.endswith(f"saved the figures in {folder}.\n")
    assert ".png" not in log  # none is left out
    curves = [f"{name}_curve.txt" for name in ("AQD", "SQD", "feats")]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*PICTURES, *curves])
    for name in PICTURES:
        see(folder / name)
    results = validation.measure(retrieval, 200, 0, Log())
    picture = see(folder / "precision_recall.png")
    for name in ("AQD", "SQD", "feats"):
        quality, _ = results[name]
        np.testing.assert_array_equal(np.loadtxt(folder / f"{name}_curve.txt"), [quality.recall, quality.precision])
        assert share(picture, figures.KINDS[name][0]) > 0.0005


def test_what_cannot_be_drawn_is_reported_and_an_old_picture_of_it_is_removed(retrieval, paths, tmp_path):
    few = Retrieval(**{**vars(retrieval), "qry_label": np.zeros_like(retrieval.qry_label),
                               **{f"db_{what}": getattr(retrieval, f"db_{what}")[:3]
                                  for what in ("features", "codes", "label")}})
    for name in ("rankings.png", "training.png", "tsne.png"):
        (tmp_path / name).write_text("of another checkpoint")
    results = validation.measure(few, 3, 0, Log())
    missing = figures.write_all(tmp_path, few, results, ["x"] * LABELS, paths, tmp_path / "no.log", 0)
    assert missing == ["no rankings.png: no query has a relevant image in the database.",
                       f"no training.png: {tmp_path / 'no.log'} has no steps.",
                       "no tsne.png: the database holds too few images for a map."]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == PICTURES[:3]
    see(tmp_path / "precision_recall.png")  # says that there is nothing to draw


# ---------------------------------------------------------------- rankings

def test_rankings_are_of_queries_with_a_relevant_image_by_aqd_and_the_same_for_one_seed(retrieval, paths):
    names = [str(i) for i in range(LABELS)]
    rows = figures.sample_rankings(retrieval, names, paths, 0)
    assert len(rows) == figures.SHOWN_QUERIES
    r = retrieval
    top = metrics.rank(quantizer.quantized_scores(r.qry_features, r.db_codes, r.codebooks), 10)
    captions = [", ".join(names[i] for i in np.flatnonzero(labels)) or "no label" for labels in r.db_label]
    expected = [[captions[image] for image in images] for images in top]
    for _, caption, results in rows:
        query_labels = set(caption.split(", "))
        assert query_labels & set(names)
        assert [text for _, text, _ in results] in expected
        for _, text, hit in results:
            assert hit == bool(query_labels & set(text.split(", ")))
    again = figures.sample_rankings(retrieval, names, paths, 0)
    assert [row[1] for row in again] == [row[1] for row in rows]
    assert [row[1] for row in figures.sample_rankings(retrieval, names, paths, 1)] != [row[1] for row in rows]


def test_a_missing_or_undecodable_image_is_no_thumbnail_and_any_other_keeps_its_shape_and_colours(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("none.jpg", "text.jpg", "empty.jpg"):
        assert figures.thumbnail(tmp_path / name) is None
    assert figures.thumbnail(tmp_path) is None
    cv2.imwrite(str(tmp_path / "x.png"), np.full((200, 400, 3), (255, 0, 10), np.uint8))
    image = figures.thumbnail(tmp_path / "x.png")
    assert image.dtype == np.uint8
    assert image.shape == (80, 160, 3)
    assert image[0, 0].tolist() == [10, 0, 255]
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((1, 3, 3), np.uint8))
    assert figures.thumbnail(tmp_path / "small.png").shape == (1, 3, 3)


def test_frames_distinguish_hits_from_misses_and_missing_images_are_grey_tiles(tmp_path):
    image = np.full((40, 60, 3), 230, np.uint8)

    def draw(*results, query=image):
        figures.ranking_figure(tmp_path / "x.png", [(query, "a query", [(*result, hit) for *result, hit in results])])
        return see(tmp_path / "x.png")

    unknown = draw((image, "a $ sign$", None))
    assert share(unknown, figures.HIT) == share(unknown, figures.MISS) == 0
    assert share(unknown, figures.GREY) < 0.001  # edges of letters
    hit = draw((image, "b", True), (image, "c", True))
    miss = draw((image, "b", False), (image, "c", False))
    assert share(hit, figures.HIT) > 0.005 > share(hit, figures.MISS)  # the head has a word in each colour
    assert share(miss, figures.MISS) > 0.005 > share(miss, figures.HIT)
    one = draw((None, "gone", None))
    two = draw((None, "gone", None), query=None)
    assert share(one, figures.GREY) > 0.05
    assert share(two, figures.GREY) > 1.9 * share(one, figures.GREY)
    assert share(draw((image, "found", None), query="sunset over water"), figures.GREY) < 0.02


def test_twenty_results_take_two_lines_of_ten(tmp_path):
    image = np.zeros((50, 50, 3), np.uint8)
    shapes = []
    for results in (10, 20):
        figures.ranking_figure(tmp_path / "x.png", [(image, "q", [(image, "r", None)] * results)], "a title")
        picture = see(tmp_path / "x.png")
        shapes.append(picture.shape)
        dark = (picture < 10).all(2)
        assert dark.any(0).mean() > 0.8
    assert shapes[0][1] == shapes[1][1]
    assert shapes[1][0] > 1.5 * shapes[0][0]


# ---------------------------------------------------------------- t-SNE

def test_the_map_is_the_same_for_one_seed_and_takes_no_more_than_its_share(retrieval, monkeypatch):
    monkeypatch.setattr(figures, "MAPPED", 100)
    rows, places = figures.tsne_map(retrieval.db_features, 0)
    assert places.shape == (100, 2)
    assert len(set(rows)) == 100
    again = figures.tsne_map(retrieval.db_features, 0)
    np.testing.assert_array_equal(again[0], rows)
    np.testing.assert_array_equal(again[1], places)
    assert not np.array_equal(figures.tsne_map(retrieval.db_features, 1)[0], rows)


def test_embeddings_that_are_all_alike_still_give_a_map():
    _, places = figures.tsne_map(np.ones((20, 300), np.float32), 0)
    assert np.isfinite(places).all()


def test_an_image_has_the_colour_of_the_most_frequent_of_its_labels():
    labels = np.zeros((40, 14), np.uint8)
    labels[:20, 3] = 1
    labels[10:22, 5] = 1
    for i, column in enumerate([0, 1, 2, 6, 7, 8, 9, 10]):
        labels[22 + i:25 + i, column] = 1
    labels[39, 11] = 1  # not among the ten most frequent
    frequent, main = figures.main_labels(labels)
    assert frequent.tolist() == [3, 5, 0, 1, 2, 6, 7, 8, 9, 10]
    assert main[[0, 15, 21, 22, 23]].tolist() == [3, 3, 5, 0, 0]
    assert main[[35, 39]].tolist() == [-1, -1]
    frequent, main = figures.main_labels(np.zeros((4, 2), np.uint8))
    assert len(frequent) == 0
    assert main.tolist() == [-1] * 4


# ---------------------------------------------------------------- codewords

def test_unused_codewords_and_entropy_are_those_of_the_counts(tmp_path):
    codes = stream(0, "usage").integers(0, 200, (500, 3)).astype(np.uint8)
    codes[:, 1] = 7
    codes[:, 2] = np.arange(500) % 2
    counts, entropies = figures.codeword_usage(codes)
    for m in range(3):
        np.testing.assert_array_equal(counts[m], np.bincount(codes[:, m], minlength=256))
    assert (counts == 0).sum(1).tolist() == [256 - len(set(codes[:, 0])), 255, 254]
    shares = counts[0][counts[0] > 0] / 500
    np.testing.assert_allclose(entropies, [-(shares * np.log2(shares)).sum(), 0, 1], atol=1e-12)
    figures.codeword_figure(tmp_path / "x.png", codes)
    see(tmp_path / "x.png")


# ---------------------------------------------------------------- training

def test_of_a_log_of_several_runs_the_last_one_is_drawn(tmp_path):
    log = tmp_path / "x.log"
    log.write_text("4500 training images\n" + "".join(step(i, 9) for i in range(1, 13))
                   + "saved x.npy.\n" + "".join(step(i, 5, 0.0001) for i in range(1, 9)) + "AQD mAP@10 = [0.1].\n")
    history = figures.read_training_log(log)
    np.testing.assert_array_equal(history, [[i, 0.0001, 5, 0.5] for i in range(1, 9)])


def test_a_run_that_resumed_goes_on_in_the_same_curve(tmp_path):
    log = tmp_path / "x.log"
    log.write_text("".join(step(i, 9) for i in range(1, 8)) + "resumed before step 6.\n"
                   + "".join(step(i, 5) for i in range(6, 11)))
    history = figures.read_training_log(log)
    assert history[:, 0].tolist() == list(range(1, 11))
    assert history[:, 2].tolist() == [9] * 5 + [5] * 5


@pytest.mark.parametrize("steps", [1, 2000])
def test_training_curves_are_drawn_from_one_step_or_many(tmp_path, steps):
    history = np.stack([np.arange(1, steps + 1), np.full(steps, 1e-4), np.ones(steps), np.zeros(steps)], 1)
    figures.training_figure(tmp_path / "x.png", history)
    see(tmp_path / "x.png")


# ---------------------------------------------------------------- the program

def test_figures_without_matplotlib_are_refused_at_once(tmp_path, run_here, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "retrieval.figures", raising=False)
    monkeypatch.delattr(retrieval_package, "figures", raising=False)
    code, output = run_here("validation.py", "none", "none.npy", "cpu", "--figures", "--root", tmp_path)
    assert (code, output) == (2, "error: figures need matplotlib: pip install -e '.[search]'\n")
