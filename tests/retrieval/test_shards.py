"""Cutting an index into shards: ties, full disks, kills, two processes at once."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from faults import killed_at
from indexes import copy_uncut, cut_in_two, make_tied, tied_queries
from retrieval import index, manifest, shards
from storage.files import exclusive_lock, fingerprint
from tiny import PROJECT
from util import UserError

pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_tied(tmp_path_factory)


def test_of_scores_that_tie_at_the_last_place_the_lowest_rows_are_found(folders):
    content = index.load(folders["flat"]).content
    for kind, made in ((kind, index.load(folder)) for kind, folder in folders.items()):
        made.content.embeddings = None  # which would put them in another order
        for topk in (1, 7, 25):
            _, rows = made.search(tied_queries(40), topk, probes=16)
            _, expected = index.search_numpy(tied_queries(40), content.codes, content.codebooks, topk)
            np.testing.assert_array_equal(rows, expected, err_msg=kind)


CUT_ON_A_SMALL_DISK = """
import resource, sys
from pathlib import Path
from retrieval import index, shards
from util import run_program
def main():
    whole = index.load(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
    shards.cut(whole, 2, "a manifest")
run_program(main)
"""


@pytest.mark.parametrize("kind", ["flat", "lists"])
def test_a_disk_that_is_full_while_shards_are_cut_is_one_sentence_and_leaves_nothing(folders, tmp_path, kind):
    folder = tmp_path / "index"
    copy_uncut(folders[kind], folder)
    before = sorted(path.name for path in folder.iterdir())
    for size in (50, 300_000):
        done = subprocess.run([sys.executable, "-c", CUT_ON_A_SMALL_DISK, folder, str(size)], cwd=PROJECT,
                              capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert done.stderr == f"error: {folder}/shards-2/shard-1.faiss: it could not be written: File too large\n"
        assert sorted(path.name for path in folder.iterdir()) == sorted([*before, ".shards.lock"])
    assert len(cut_in_two(folder)) == 2


def test_two_processes_do_not_cut_one_index_at_once(folders, tmp_path):
    copy_uncut(folders["flat"], tmp_path / "index")
    with (exclusive_lock(tmp_path / "index" / shards.LOCK, "taken"),
          pytest.raises(UserError, match="another process is cutting this index into shards")):
        cut_in_two(tmp_path / "index")
    assert all(path.is_file() for path in cut_in_two(tmp_path / "index"))


def test_a_kill_at_any_moment_of_cutting_leaves_shards_that_can_be_used_or_cut_again(folders, tmp_path):
    copy_uncut(folders["flat"], tmp_path / "index")
    (tmp_path / "index/.shards-2.77.tmp").mkdir()  # half-written by a process that was killed
    whole, source = index.load(tmp_path / "index"), fingerprint(tmp_path / "index" / manifest.MANIFEST)

    def cut_content():
        return [Path(part.path).read_bytes() for part in shards.cut(whole, 2, source)]
    expected, call, killed = cut_content(), 1, True
    while killed:
        (tmp_path / "index/shards-2/shards.json").write_text("{}")  # so that they are cut again
        killed = killed_at(call, lambda *_: cut_content(), tmp_path / "index")
        assert cut_content() == expected
        call += 1
    assert call > 4
    assert not [*(tmp_path / "index").glob(".*.old"), *(tmp_path / "index").glob(".*.tmp")]
