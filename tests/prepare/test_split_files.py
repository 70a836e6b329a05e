"""prepare/split_files.py: 0/1 matrices and their files."""
import numpy as np
import pytest
import scipy.sparse

from prepare.split_files import ones_of, write_matrix


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (9000, 2)])
def test_matrices_are_written_as_numpy_writes_them(tmp_path, shape):
    dense = (np.random.default_rng(0).random(shape) < 0.4).astype(np.uint8)
    write_matrix(tmp_path / "fast.txt", scipy.sparse.csr_array(dense))
    np.savetxt(tmp_path / "slow.txt", dense, fmt="%d")
    assert (tmp_path / "fast.txt").read_bytes() == (tmp_path / "slow.txt").read_bytes()


def test_sets_become_the_rows_of_a_matrix_and_other_members_are_ignored():
    matrix = ones_of(({"sea", "sky", "x"}, set(), {"sun"}), ["sun", "sky", "sea"])
    assert matrix.dtype == np.uint8
    np.testing.assert_array_equal(matrix.toarray(), [[0, 1, 1], [0, 0, 0], [1, 0, 0]])
    assert ones_of([set(), set()], ["sea"]).shape == (2, 1)
