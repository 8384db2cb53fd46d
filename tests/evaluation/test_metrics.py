import numpy as np
import pytest
from scipy.stats import pearsonr

from sesttune.evaluation.metrics import (
    Moments,
    changed_genes,
    discrimination,
    largest,
    mean_absolute_error,
    pearson_delta,
    top_overlap,
)


def moments(rng: np.random.Generator, shift: np.ndarray, cells: int = 60) -> Moments:
    return Moments.of(rng.normal(2.0, 0.5, (cells, len(shift))) + shift)


def test_moments_are_those_of_the_cells() -> None:
    cells = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    found = Moments.of(cells)
    assert found.mean == pytest.approx(cells.mean(0), abs=1e-6)
    assert found.variance == pytest.approx(cells.var(0, ddof=1), rel=1e-5)
    assert found.cells == 7
    assert np.isnan(Moments.of(cells[:1]).variance).all()


def test_pearson_delta_and_mae() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=50), rng.normal(size=50)
    assert pearson_delta(a, b) == pytest.approx(pearsonr(a, b).statistic)
    assert pearson_delta(a, -2 * a) == pytest.approx(-1)
    for flat in (np.zeros(50), np.full(50, 0.1)):  # the mean of the latter is not quite 0.1
        assert np.isnan(pearson_delta(flat, b))
        assert np.isnan(pearson_delta(b, flat))
    assert mean_absolute_error(np.array([1.0, 3.0]), np.array([2.0, 1.0])) == 1.5


def test_changed_genes_are_those_that_were_shifted_largest_first() -> None:
    rng, shift = np.random.default_rng(2), np.zeros(200)
    shift[[5, 80, 150]] = [1.0, -3.0, 2.0]
    found = changed_genes(moments(rng, shift), moments(rng, np.zeros(200)))
    assert found[:3].tolist() == [80, 150, 5]
    assert len(found) <= 4  # one false one among twenty at most, by expectation


def test_nothing_is_called_changed_without_a_change_or_without_cells() -> None:
    rng, none = np.random.default_rng(3), np.zeros(300)
    assert len(changed_genes(moments(rng, none), moments(rng, none))) == 0
    assert len(changed_genes(moments(rng, none + 9, cells=1), moments(rng, none))) == 0
    silent = Moments.of(np.zeros((5, 4)))
    assert len(changed_genes(silent, silent)) == 0


def test_top_overlap_counts_shared_genes() -> None:
    changed = np.array([3, 1, 4])
    effect = np.array([0.0, -5.0, 0.1, 9.0, 0.2, 1.0])
    assert top_overlap(effect, changed, top=2) == 1.0  # 3 and 1 lead both
    assert top_overlap(effect, changed, top=50) == pytest.approx(2 / 3)  # 5 in place of 4
    assert np.isnan(top_overlap(effect, np.array([], int)))
    falling = -np.arange(100.0)  # 99 first
    assert top_overlap(falling, np.arange(99, 29, -1)) == 1.0  # of 70 the first 50
    assert top_overlap(falling, np.array([*range(50, 100), *range(20)])) == 1.0
    assert top_overlap(falling, np.array([*range(50), *range(50, 70)])) == 0.0


def test_discrimination_is_one_where_each_is_nearest_to_itself() -> None:
    real = np.random.default_rng(4).normal(size=(6, 40))
    none = np.full(6, -1)
    assert discrimination(real + 0.01, real, none).tolist() == [1.0] * 6
    # Predicting the same for all: its own place among six is by chance.
    same = np.repeat(real.mean(0)[None], 6, 0)
    by_chance = [(place + 1) / 6 for place in range(6)]
    assert sorted(discrimination(same, real, none)) == pytest.approx(by_chance)
    assert np.isnan(discrimination(real[:1], real[:1], none[:1])).all()


def test_discrimination_leaves_the_perturbed_gene_out() -> None:
    # Only the knocked-down gene tells the perturbations apart.
    real = -5.0 * np.eye(3, 10)
    targets = np.arange(3)
    assert discrimination(real, real + 1e-9, np.full(3, -1)).tolist() == [1.0] * 3
    predicted = np.roll(real, 1, 0)
    by_hand = []
    for p in range(3):
        kept = np.arange(10) != targets[p]
        distance = np.abs(predicted[p, kept] - real[:, kept]).sum(1)
        by_hand.append(1 - (distance < distance[p]).sum() / 3)
    assert discrimination(predicted, real, targets).tolist() == pytest.approx(by_hand)


def test_the_first_gene_is_a_target_too() -> None:
    real = np.array([[-9.0, 0.0, 1.0], [0.0, 0.0, 2.0]])
    predicted = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0]])
    assert discrimination(predicted, real, np.array([-1, -1])).tolist() == [0.5, 1.0]
    assert discrimination(predicted, real, np.array([0, -1])).tolist() == [1.0, 1.0]


def test_genes_that_are_equal_come_in_their_order() -> None:
    effect = np.tile([1.0, -2.0], 200)
    ordered = [*range(1, 400, 2), *range(0, 400, 2)]
    assert largest(effect, np.arange(400)).tolist() == ordered


def test_few_cells_of_a_wide_spread_do_not_borrow_the_spread_of_the_controls() -> None:
    few = Moments(np.array([1.0]), np.array([0.25]), 3)
    controls = Moments(np.array([0.0]), np.array([1e-4]), 1_000)
    assert len(changed_genes(few, controls)) == 0  # Welch's p is 0.07, Student's 1e-300
