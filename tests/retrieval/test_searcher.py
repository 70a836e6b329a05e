"""Short names of indexes."""
import pytest

from retrieval.searcher import find_index, named_folder
from util import UserError


@pytest.fixture
def root(tmp_path):
    for name in ("demo_a", "demo2_b", "mine", "mine_c", "two_a", "two_b", ".hidden"):
        (tmp_path / "indexes" / name).mkdir(parents=True)
        (tmp_path / "indexes" / name / "manifest.json").write_text("{}")
    (tmp_path / "indexes" / "demo_no_index").mkdir()
    return tmp_path


@pytest.mark.parametrize(("name", "found"), [
    ("demo", "demo_a"), ("demo2", "demo2_b"), ("demo_", "demo_a"), ("mine", "mine"), ("mine_", "mine_c"),
    ("two_b", "two_b")])
def test_a_name_is_that_of_the_index_that_it_fits(root, name, found):
    assert find_index(name, root) == root / "indexes" / found


@pytest.mark.parametrize(("name", "sentence"), [
    ("two", "two may be one of 2 indexes: two_a; two_b$"), ("dem", "dem may be one of 2 indexes: demo2_b; demo_a$"),
    ("beach", "beach: expected an index, or how the name of one begins, found neither; .*indexes has demo2_b; demo_a;"),
    ("*", "expected an index")])
def test_a_name_that_fits_several_indexes_or_none_is_one_sentence(root, name, sentence):
    with pytest.raises(UserError, match=sentence):
        find_index(name, root)


def test_a_path_comes_first(root, monkeypatch):
    (root / "two").mkdir()
    (root / "two" / "manifest.json").write_text("{}")
    assert find_index(str(root / "indexes/mine_c"), root) == root / "indexes/mine_c"
    monkeypatch.chdir(root)
    assert find_index("two", root).resolve() == root / "two"

def test_a_project_without_indexes_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="indexes has none yet"):
        find_index("two", tmp_path)


@pytest.mark.parametrize("name", ["a/b", "..", "", ".x", "/"])
def test_an_index_is_called_by_a_plain_name(root, name):
    with pytest.raises(UserError, match="expected a name without slashes"):
        named_folder(name, root)
    assert named_folder("my index", root) == root / "indexes/my index"
