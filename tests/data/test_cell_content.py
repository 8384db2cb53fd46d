import numpy as np
from scipy import sparse

from sesttune.data.cell_content import cell_digests

DENSE = np.array([[0, 1, 2], [0, 0, 0], [1, 0, 2], [0, 1, 2]], np.float32)


def test_a_cell_has_one_digest_wherever_it_lies() -> None:
    digests = cell_digests(sparse.csr_matrix(DENSE))
    assert digests.shape == (4, 16)
    assert np.array_equal(digests[0], digests[3])
    assert len(np.unique(digests, axis=0)) == 3
    part = cell_digests(sparse.csr_matrix(DENSE[2:].astype(np.float64)))
    assert np.array_equal(part, digests[2:])


def test_columns_and_values_both_count() -> None:
    one, other = np.zeros((2, 1, 4), np.float32)
    one[0, 1], other[0, 2] = 3, 3
    assert not np.array_equal(
        cell_digests(sparse.csr_matrix(one)), cell_digests(sparse.csr_matrix(other))
    )
    assert not np.array_equal(
        cell_digests(sparse.csr_matrix(one)), cell_digests(sparse.csr_matrix(2 * one))
    )


def test_no_cells_have_no_digests() -> None:
    assert cell_digests(sparse.csr_matrix(DENSE[:0])).shape == (0, 16)
