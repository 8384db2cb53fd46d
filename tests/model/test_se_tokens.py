import numpy as np
import pytest
from scipy import sparse

from sesttune.errors import UserError
from sesttune.model.se_genes import GeneMatch, match_genes
from sesttune.model.se_tokens import tokenize

VOCABULARY = {f"G{i}": 10 + i for i in range(20)}
RNG = np.random.default_rng(0)


def whole_match(count: int = 20) -> GeneMatch:
    return GeneMatch(np.arange(count), np.arange(10, 10 + count), "var index", count)


def counts(*cells: list[float]) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.array(cells, np.float32))


def test_genes_are_matched_exactly_and_in_file_order() -> None:
    match = match_genes(
        ["G3", "x", "G1", "g2", "G4.1"] + [f"G{i}" for i in range(5, 9)], {}, VOCABULARY
    )
    assert match.columns.tolist() == [0, 2, 5, 6, 7, 8]
    assert match.ids.tolist() == [13, 11, 15, 16, 17, 18]
    assert match.source == "var index"


def test_a_var_column_serves_where_the_index_knows_nothing() -> None:
    index = [f"ENSG{i}" for i in range(4)]
    columns = {"feature_id": index, "symbol": ["G0", "G1", "zz", "G2"]}
    match = match_genes(index, columns, VOCABULARY)
    assert match.source == "var column 'symbol'"
    assert match.ids.tolist() == [10, 11, 12]


def test_a_column_is_known_by_how_many_genes_it_names_not_how_often() -> None:
    index = [f"ENSG{i}" for i in range(4)]
    columns = {"family": ["G0"] * 4, "symbol": ["G0", "G1", "zz", "G2"]}
    assert match_genes(index, columns, VOCABULARY).source == "var column 'symbol'"


def test_stray_symbols_in_an_ensembl_index_are_refused() -> None:
    index = ["G0", *(f"ENSG{i}" for i in range(9))]
    with pytest.raises(
        UserError, match=r"index matches only 1 of 10 genes but var column 'symbol'"
    ):
        match_genes(index, {"symbol": [f"G{i}" for i in range(10)]}, VOCABULARY)


def test_no_match_and_too_small_a_match_are_refused() -> None:
    with pytest.raises(UserError, match="none of the file's 2 genes.*a, b"):
        match_genes(["a", "b"], {"n": ["c", "d"]}, VOCABULARY)
    names = ["G0", *(f"x{i}" for i in range(99))]
    with pytest.raises(UserError, match=r"only 1 of 100 genes \(1.0%\).*\(not: x0, x1, x2\)"):
        match_genes(names, {}, VOCABULARY)
    match = match_genes(names, {}, VOCABULARY, min_matched=0.01)
    wanted = "1 of 100 genes known to the encoder, by var index (not: x0, x1, x2, …)"
    assert match.report == wanted


def test_the_largest_genes_are_taken_and_weighted() -> None:
    cell = [0.0, 3, 1, 2, 0, 5, 0, 4, 0, 0]
    tokens = tokenize(counts(cell), whole_match(10), 6, 3, 0)
    assert sorted(tokens.ids[0].tolist()) == [11, 12, 13, 15, 17]
    by_gene = dict(zip(tokens.ids[0].tolist(), tokens.counts[0, 1:].tolist(), strict=True))
    assert by_gene[15] == pytest.approx(100 * 5 / 15)
    assert tokens.counts[0, 0] == pytest.approx(100 * 2 / 15)  # CLS reads local gene 3


def test_ties_at_the_cut_are_drawn_by_cell() -> None:
    cells = RNG.permuted(np.tile([9.0, *([1.0] * 19)], (200, 1)), axis=1)
    tokens = tokenize(counts(*cells.tolist()), whole_match(), 6, 3, 0)
    share = np.bincount(tokens.ids.ravel(), minlength=30)[10:] / tokens.ids.size
    assert (share > 0).all()
    assert share.max() < 0.12  # no gene is preferred: each is expected at 0.05


def test_raw_or_logged_is_decided_over_all_genes_of_a_cell() -> None:
    cell = np.zeros(20)
    cell[:4] = [1, 2, 3, 4]
    logged = tokenize(counts(cell.tolist()), whole_match(), 6, 3, 0)
    assert logged.counts[0, 0] == pytest.approx(40.0)
    unknown = np.append(cell, 36.0)  # a raw count in a gene the encoder does not know
    raw = tokenize(counts(unknown.tolist()), whole_match(), 6, 3, 0)
    values = np.log1p([1, 2, 3, 4])
    assert raw.counts[0, 0] == pytest.approx(100 * values[3] / values.sum(), rel=1e-5)


def test_negative_values_count_as_zero() -> None:
    cell = [-5.0, 1, 1, 2, *([0] * 16)]
    tokens = tokenize(counts(cell), whole_match(), 6, 3, 0)
    assert tokens.counts[0, 0] == pytest.approx(50.0)


def test_an_empty_cell_weighs_all_genes_alike() -> None:
    tokens = tokenize(counts([0.0] * 20), whole_match(), 6, 3, 0)
    assert tokens.counts[0].tolist() == pytest.approx([5.0] * 6)


def test_filler_of_a_small_vocabulary_is_drawn_with_replacement() -> None:
    cell = [1.0, 2, 3, 4, 0, 0]
    tokens = tokenize(counts(cell), whole_match(6), 11, 3, 0)
    ids = tokens.ids[0]
    assert set(ids[:4]) == {10, 11, 12, 13}
    assert set(ids[4:]) <= {14, 15}
    assert (tokens.counts[0, 5:] == 0).all()


def test_column_order_changes_tokens_only_through_the_cls_slot() -> None:
    x = counts(*(RNG.poisson(1.0, (5, 20)).astype(float).tolist()))
    order = np.arange(20)[::-1]
    flipped = GeneMatch(np.arange(20), 10 + order, "var index", 20)
    one = tokenize(x, whole_match(), 8, 3, 0)
    two = tokenize(x[:, order], flipped, 8, 3, 0)
    assert np.array_equal(np.sort(one.ids), np.sort(two.ids))


def test_cells_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(UserError, match="NaN"):
        tokenize(counts([np.nan] * 20), whole_match(), 6, 3, 0)
    with pytest.raises(UserError, match="more than 3 known genes, found 3"):
        tokenize(counts([1.0] * 3), whole_match(3), 6, 3, 0)
    with pytest.raises(UserError, match="expresses all 5 genes"):
        tokenize(counts([1.0] * 5), whole_match(5), 11, 3, 0)


def test_genes_that_are_read_twice_are_counted() -> None:
    vocabulary = {"A": 0, "B": 1, "C": 2}
    once = match_genes(["A", "B", "x"], {}, vocabulary)
    assert once.report == "2 of 3 genes known to the encoder, by var index (not: x, …)"
    # Ensembl ids are unique, their symbols are not.
    twice = match_genes(["e1", "e2", "e3"], {"symbol": ["A", "B", "A"]}, vocabulary)
    told = "known to the encoder, by var column 'symbol', 1 under a name that another has, too"
    assert twice.report == f"3 of 3 genes {told}"


def test_values_are_counts_where_as_logarithms_they_would_be_more_than_cells_have() -> None:
    rest = [0.0] * 16
    logged = tokenize(counts([15.0, 1, 2, 3, *rest]), whole_match(), 6, 3, 0)  # of 3.3 million
    assert logged.counts[0, 0] == pytest.approx(100 * 3 / 21)
    raw = tokenize(counts([16.0, 1, 2, 3, *rest]), whole_match(), 6, 3, 0)  # of 8.9 million
    values = np.log1p([16, 1, 2, 3])
    assert raw.counts[0, 0] == pytest.approx(100 * values[3] / values.sum(), rel=1e-5)


def test_entries_of_one_gene_are_summed() -> None:
    twice = sparse.csr_matrix(
        (np.array([1, 2, 1, 4], np.float32), np.array([0, 1, 1, 3]), np.array([0, 4])), (1, 20)
    )
    once = tokenize(counts([1.0, 3, 0, 4, *[0.0] * 16]), whole_match(), 6, 3, 0)
    found = tokenize(twice, whole_match(), 6, 3, 0)
    assert np.array_equal(found.counts, once.counts)
    assert np.array_equal(found.ids, once.ids)


def test_where_the_slots_are_as_many_as_the_known_genes_each_has_its_own() -> None:
    cells = RNG.poisson(0.5, (30, 5)).astype(float)
    cells[0] = 1
    tokens = tokenize(counts(*cells.tolist()), whole_match(5), 6, 3, 0)
    assert np.array_equal(np.sort(tokens.ids), np.tile(np.arange(10, 15), (30, 1)))


def test_another_seed_draws_other_filler() -> None:
    one, other = (tokenize(counts([1.0, *[0] * 19]), whole_match(), 11, 3, s) for s in (0, 1))
    assert not np.array_equal(one.ids, other.ids)
