"""What is answered, and sentences for requests that cannot be answered."""
import base64
import json

import cv2
import numpy as np
import pytest

pytest.importorskip("faiss")
pytest.importorskip("starlette")

import page_service
from page_service import PHOTOS
from retrieval import index
from server import service
from util import UserError


def test_a_query_mixes_words_and_a_photo_by_share(folder):
    service = page_service.open_service(folder)
    seen = service.embedding(index.load(folder).image_path(3), {})["photo"]

    def rows(**settings):
        return [found["row"] for found in service.query(json.dumps(settings | {"topk": PHOTOS}).encode())["results"]]
    assert rows(words="sky", photo=seen, share=0) == rows(words="sky")
    assert rows(words="sky", photo=seen, share=1) == rows(photo=seen)
    assert rows(photo=seen)[0] == 3
    assert sorted(rows(words="sky", photo=seen)) == list(range(PHOTOS))


def test_results_carry_cosines_and_go_on_where_they_ended(folder):
    service = page_service.open_service(folder)
    first, rest = (service.query(json.dumps({"like": 4, "skip": skip, "topk": 10}).encode())["results"]
                   for skip in (0, 10))
    both = service.query(json.dumps({"like": 4, "topk": 20}).encode())["results"]
    assert [found["row"] for found in first + rest] == [found["row"] for found in both]
    assert first[0]["cosine"] <= 1 + 1e-5
    assert next(found["cosine"] for found in both if found["row"] == 4) == pytest.approx(1, abs=1e-5)


def test_marks_move_the_query_by_rocchios_rule(folder):
    query, right = np.array([2, 0, 0], np.float32), np.array([[0, 1, 0], [0, 0, 1]], np.float32)
    np.testing.assert_allclose(service.rocchio(query, right, right[:1]), [1, 0.375 - 0.15, 0.375])
    np.testing.assert_allclose(service.rocchio(None, right[:1], right[:0]), [0, 0.75, 0])
    answering = page_service.open_service(folder)
    best = answering.query(b'{"words": "sky", "right": [5], "topk": 24}')["results"]
    before = answering.query(b'{"words": "sky", "topk": 24}')["results"]
    place = [[found["row"] for found in results].index(5) for results in (before, best)]
    assert place[1] <= place[0]


def test_words_are_completed_regardless_of_case_and_accents(folder):
    service = page_service.open_service(folder)
    service.index.content.tag_names = [["Café", "cafes"], ["sea"]]
    assert service.words_with("CAFÉ") == {"words": ["Café", "cafes"]}
    assert service.words_with("cafe", 1) == {"words": ["Café"]}
    assert service.words_with("x") == {"words": []}


def test_an_index_without_tags_says_why_words_are_off(folder):
    service = page_service.open_service(folder)
    service.index.content.tag_names = []
    assert "too few tags" in service.health()["no_words"]
    with pytest.raises(UserError, match="too few tags"):
        service.query(b'{"words": "sea"}')


# ---------------------------------------------------------------- bad requests

BAD_QUERIES = {
    "nothing": ({}, "expected words, a photo"),
    "row": ({"like": PHOTOS}, f"expected a row from 0 to {PHOTOS - 1}"),
    "negative row": ({"right": [-1]}, "expected a row from 0"),
    "row true": ({"like": True}, "expected a row from 0"),
    "share": ({"words": "sky", "share": 2}, "share: expected a number from 0 to 1"),
    "photo": ({"photo": "AAAA"}, "choose the photo again"),
    "photo of NaN": ({"photo": base64.b64encode(b"\xff" * 600).decode()}, "choose the photo again"),
    "photo of zeros": ({"photo": base64.b64encode(bytes(600)).decode()}, "choose the photo again"),
    "rows": ({"right": {"a": 1}}, "right: expected at most"),
    "skip": ({"words": "sky", "skip": -1}, "skip: expected a whole number from 0"),
}


@pytest.mark.parametrize(("settings", "sentence"), BAD_QUERIES.values(), ids=BAD_QUERIES)
def test_a_bad_query_is_one_sentence(server, settings, sentence):
    status, _, answer = server.ask("POST", "/query", settings)
    assert status == 400
    assert sentence in answer["error"]


def test_an_unknown_word_gives_a_sentence_and_no_results(server):
    status, _, answer = server.ask("POST", "/query", {"words": "skyy"})
    assert status == 200
    assert answer["results"] == []
    assert "spelt most like it: sky" in answer["sentence"]


DOT = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()


BAD = {
    "no JSON": ("search", b"{", "expected JSON"),
    "no object": ("search", b"[1]", "expected a JSON object, found list"),
    "deep JSON": ("search", b"[" * 4000, "expected JSON"),
    "many lists": ("search", b"[" * 100_000, "expected at most 4,096 vectors"),
    "bytes": ("words", b"\xff\xfe\x00", "expected JSON"),
    "no vectors": ("search", {}, "expected 1 to 4,096 rows of 300 numbers"),
    "empty vectors": ("search", {"vectors": []}, "expected 1 to 4,096 rows of 300 numbers"),
    "narrow vectors": ("search", {"vectors": [[1.0] * 299]}, "rows of 300 numbers, found an array of shape (1, 299)"),
    "one vector": ("search", {"vectors": [1.0] * 300}, "found an array of shape (300,)"),
    "ragged vectors": ("search", {"vectors": [[1.0] * 300, [1.0]]}, "expected rows of 300 numbers"),
    "words for numbers": ("search", {"vectors": [["a"] * 300]}, "expected rows of 300 numbers, found text among them"),
    "numbers in quotes": ("search", {"vectors": [[1.0] * 300, [*[1.0] * 299, "1.5"]]}, "found text among them"),
    "true for a number": ("search", {"vectors": [[*[1.0] * 299, True]]}, "found true or false among them"),
    "null for a number": ("search", {"vectors": [[*[1.0] * 299, None]]}, "found null among them"),
    "lists for numbers": ("search", {"vectors": [[[1.0] * 300]]}, "found lists among them"),
    "NaN": ("search", {"vectors": [[float("nan")] * 300]}, "NaN"),
    "an overflow": ("search", {"vectors": [[1e300] * 300]}, "expected numbers from"),
    "a long number": ("search", {"vectors": [[10**400] * 300]}, "expected rows of 300 numbers"),
    "no base64": ("search", {"vectors": "é"}, "expected rows of 300 numbers"),
    "half a number": ("search", {"vectors": "AAAA"}, "expected rows of 300 numbers"),
    "topk 0": ("search", {"vectors": [[1.0] * 300], "topk": 0}, "topk: expected a whole number from 1"),
    "topk absurd": ("words", {"words": "sky", "topk": 10**30}, "topk: expected a whole number from 1"),
    "topk true": ("words", {"words": "sky", "topk": True}, "topk: expected a whole number"),
    "nprobe in words": ("words", {"words": "sky", "nprobe": "all"}, "nprobe: expected a whole number"),
    "unknown words": ("words", {"words": "skyy"}, "spelt most like it: sky"),
    "no words": ("words", {"words": 7}, "words: expected a text"),
    "endless words": ("words", {"words": "a" * 10**6}, "words: expected a text of at most 1000 letters"),
    "topk of a photo": ("photo?topk=many", DOT, "topk: expected a whole number"),
    "topk that is no UTF-8": ("photo?topk=%ff", DOT, "topk: expected a whole number"),
    "no photo": ("photo?name=../../etc/passwd", b"", "passwd is empty"),
    "noise for a photo": ("photo", b"noise", "the photo is not an image"),
}


@pytest.mark.parametrize(("path", "body", "sentence"), BAD.values(), ids=BAD)
def test_a_bad_request_gets_one_sentence_and_the_server_goes_on(server, path, body, sentence):
    status, _, answer = server.ask("POST", f"/{path}", body, Content_Type="application/json")
    assert status == 400
    assert answer.keys() == {"error"}
    assert sentence in answer["error"]
    assert "\n" not in answer["error"]
    assert server.is_well()
