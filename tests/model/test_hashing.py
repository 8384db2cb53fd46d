import numpy as np
import pytest
from scipy import stats

from sesttune.model.hashing import shuffled


def whole(size: int, keys: np.ndarray) -> np.ndarray:
    """The permutations of 0 .. size - 1 under each key, [keys, size]."""
    row = np.repeat(np.arange(len(keys)), size)
    index = np.tile(np.arange(size), len(keys))
    return shuffled(index, np.full(len(keys), size), row, keys).reshape(len(keys), size)


def some_keys(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2**64, count, np.uint64)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1024, 18_943, 36_600])
def test_every_key_gives_a_permutation(size: int) -> None:
    for permuted in whole(size, some_keys(5)):
        assert np.array_equal(np.sort(permuted), np.arange(size))


def test_rows_do_not_depend_on_their_neighbours() -> None:
    keys, sizes = some_keys(3), np.array([50, 7, 1000])
    row = np.array([0, 2, 1, 2])
    index = np.array([49, 999, 0, 5])
    together = shuffled(index, sizes, row, keys)
    alone = [shuffled(index[i : i + 1], sizes, row[i : i + 1], keys)[0] for i in range(4)]
    assert together.tolist() == alone


@pytest.mark.parametrize("size", [5, 97])
def test_places_and_pairs_of_places_are_uniform_over_keys(size: int) -> None:
    permuted = whole(size, some_keys(20_000))
    for place in (0, size // 2, size - 1):
        assert stats.chisquare(np.bincount(permuted[:, place], minlength=size)).pvalue > 1e-4
    apart = (permuted[:, 1] - permuted[:, 0]) % size  # never 0, else uniform
    assert stats.chisquare(np.bincount(apart, minlength=size)[1:]).pvalue > 1e-4
