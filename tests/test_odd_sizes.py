"""The smallest and the awkward data sets: 1, 2, 255, 256 and 257 images, one tag, one query, nothing relevant."""
import json
import re
import sys

import numpy as np
import pytest

import dataset
import net
import tag_processing
from indexes import make_content
from quantization import quantizer
from quantization.codebooks import random_codebooks
from retrieval import faiss_index, index
from tags import graph
from tiny import EXPERIMENT, make_tiny, train, validate, write_pickle
from util import UserError, stream, unit_length

SIZES = (1, 2, 255, 256, 257)  # K is 256


def embeddings_of(images):
    return stream(images, "odd sizes").normal(size=(images, 300)).astype(np.float32)


# ---------------------------------------------------------------- training

@pytest.mark.parametrize("images", SIZES)
@pytest.mark.parametrize("codebooks", [1, 2])
def test_codebooks_of_any_number_of_images_are_finite_and_fit(images, codebooks):
    factor = quantizer.semantic_factor(embeddings_of(5))
    alternation = net.AlternatingUpdate(
        images, factor, random_codebooks(codebooks, stream(0, "codebooks")), seed=0)
    alternation.embeddings = embeddings_of(images)
    for step in range(2):
        alternation.update(step)
    assert alternation.codes.shape == (images, codebooks)
    assert np.isfinite(alternation.codebooks).all()
    rest = alternation.embeddings - alternation.reconstructions(np.arange(images))
    assert np.square(rest @ factor).sum() < 0.5 * np.square(alternation.embeddings @ factor).sum()


def test_images_that_are_all_alike_give_codebooks_too():
    alternation = net.AlternatingUpdate(
        300, quantizer.semantic_factor(embeddings_of(1)), random_codebooks(2, stream(0, "codebooks")), seed=0)
    alternation.embeddings[:] = embeddings_of(1)
    alternation.update(0)
    assert np.isfinite(alternation.codebooks).all()
    np.testing.assert_allclose(alternation.reconstructions([0]), embeddings_of(1), atol=0.05)


# ---------------------------------------------------------------- retrieval

@pytest.mark.parametrize("images", SIZES)
@pytest.mark.parametrize("fast", [True, False])
def test_an_index_of_any_size_gives_all_its_images_where_more_are_asked_for(tmp_path, monkeypatch, images, fast):
    if fast:
        pytest.importorskip("faiss")
    else:
        monkeypatch.setattr(faiss_index, "faiss", None)
    content = make_content(images=images)
    index.save(tmp_path, content)
    scores, rows = index.load(tmp_path).search(embeddings_of(2), 10 * images)
    assert np.sort(rows).tolist() == [list(range(images))] * 2
    assert (np.diff(scores) <= 0).all()


# ---------------------------------------------------------------- tags

@pytest.mark.parametrize("tags", [1, 2, 255, 256, 257])
def test_a_graph_of_any_number_of_tags_keeps_each_of_them_once(tags):
    unit = unit_length(embeddings_of(tags).astype(float))
    links = graph.correlation_graph(unit, 5, 0.75)
    np.testing.assert_allclose(links.sum(1), 1)
    groups = graph.merge_groups(unit_length(links @ unit), 0.05)
    assert sorted(np.concatenate(groups)) == list(range(tags))
    assert graph.merged_embeddings(unit, groups).shape == (len(groups), 300)


def test_tags_that_are_all_synonyms_become_one():
    unit = unit_length(np.tile(embeddings_of(1).astype(float), (40, 1)))
    assert graph.merge_groups(unit, 0.05) == [list(range(40))]


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path)


def process(root, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tag_processing.py", "tiny", *arguments, "cpu", "--root", str(root)])
    tag_processing.main()


def with_tags(root, names, matrix):
    (root / "data/tiny/common_tags.txt").write_text("".join(f"{name}\n" for name in names))
    np.savetxt(root / "data/tiny/train_tag.txt", matrix, fmt="%d")


def test_one_tag_with_a_vector_is_processed_and_trained_on(tiny, monkeypatch, tmp_path, capsys):
    with_tags(tiny, ["sky"], np.ones((10, 1)))
    (tmp_path / "v.txt").write_text("1 300\nsky " + " ".join(["0.5"] * 300) + "\n")
    process(tiny, monkeypatch, str(tmp_path / "v.txt"))
    loaded = dataset.load_training(dataset.find_dataset("tiny", tiny))
    assert (loaded.tags.shape, loaded.embeddings.shape) == ((10, 1), (1, 300))


def test_one_tag_alone_teaches_no_word_vectors_and_is_refused(tiny, monkeypatch):
    with_tags(tiny, ["sky"], np.ones((10, 1)))
    with pytest.raises(UserError, match=r"train: none of the 1 tags in .*common_tags\.txt has a vector"):
        process(tiny, monkeypatch, "train")


# ---------------------------------------------------------------- the programs

def test_one_image_with_one_tag_is_learned_and_one_query_without_a_relevant_image_is_measured(tiny, small, run_here):
    splits = tiny / "data" / "tiny"
    for name, line in {"train_img": "0.jpg", "train_tag": "1", "database_img": "0.jpg", "database_label": "1 0",
                       "test_img": "12.jpg", "test_label": "0 1", "common_tags": "sky"}.items():
        (splits / f"{name}.txt").write_text(line + "\n")
    np.savetxt(splits / "tags/FinalTagEmbs.txt", np.ones((1, 300)))
    write_pickle(splits / "tags/TagIdMergeMap.pkl", {0: [0]})
    code, output = train(tiny, iterations=4, run=run_here)  # the codebooks are updated after step 3
    assert code == 0, output
    assert "1 training images, 1 merged tags" in output
    code, output = validate(tiny, run=run_here)
    assert code == 0, output
    assert "the database holds 1 images, so MAP counts the first 1 results, not 5000." in output
    assert re.search(r"AQD +none +none +none\n", output)
    numbers = json.loads((tiny / "checkpoints" / f"{EXPERIMENT}_metrics.json").read_text())
    assert (numbers["queries"], numbers["database_images"], numbers["AQD"]["queries_left_out"]) == (1, 1, 1)
