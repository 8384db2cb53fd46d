from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.tiny_data import MeanEncoder, write_tiny

from sesttune.config.load import load_config
from sesttune.data.loader import TrainingBatches
from sesttune.data.readers import HostReader
from sesttune.data.sampling import CellSets, CellSetSampler, ControlPool, draw, fixed_sets
from sesttune.data.trial_data import TrialData, prepare


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrialData:
    tiny = write_tiny(tmp_path_factory.mktemp("tiny"))
    return TrialData(prepare(load_config(base=tiny.settings()), MeanEncoder))


def same(a: CellSets, b: CellSets) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("pert_rows", "control_rows", "pert_codes")
    )


def test_sets_are_of_one_condition_with_controls_of_its_context_and_batch(data: TrialData) -> None:
    sets = CellSetSampler(data, 8, seed=0).next_sets(60)
    store = data.store
    assert (store.pert[sets.pert_rows] == sets.pert_codes[:, None]).all()
    assert (np.ptp(store.cell_type[sets.pert_rows], axis=1) == 0).all()
    assert store.is_control[sets.control_rows].all()
    assert (store.cell_type[sets.control_rows] == store.cell_type[sets.pert_rows]).all()
    assert (store.batch[sets.control_rows] == store.batch[sets.pert_rows]).all()
    for controls in sets.control_rows:  # 20 controls a batch are enough for 8 cells
        assert len(np.unique(controls)) == 8


def test_only_training_cells_are_drawn(data: TrialData) -> None:
    sampler = CellSetSampler(data, 8, seed=0)
    drawn = np.unique(sampler.next_sets(5 * sampler.sets_per_epoch).pert_rows)
    train = np.sort(np.concatenate([c.rows for c in data.conditions("train")]))
    assert np.array_equal(drawn, train)


@pytest.mark.parametrize("set_len", [3, 8, 16])
def test_an_epoch_uses_every_cell_and_fills_sets_sparingly(data: TrialData, set_len: int) -> None:
    sampler = CellSetSampler(data, set_len, seed=1)
    sets = sampler.next_sets(sampler.sets_per_epoch)
    rows, counts = np.unique(sets.pert_rows, return_counts=True)
    assert len(rows) == 90
    if set_len < 10:  # enough cells for a set without repeats
        assert all(len(np.unique(cells)) == set_len for cells in sets.pert_rows)
        assert counts.max() <= 2


def test_the_stream_is_a_function_of_the_seed(data: TrialData) -> None:
    one, two = CellSetSampler(data, 8, 0), CellSetSampler(data, 8, 0)
    whole = one.next_sets(50)
    parts = [two.next_sets(n) for n in (7, 13, 30)]  # another batch size, the same sets
    assert np.array_equal(whole.pert_rows, np.concatenate([p.pert_rows for p in parts]))
    assert np.array_equal(whole.control_rows, np.concatenate([p.control_rows for p in parts]))
    assert not same(whole, CellSetSampler(data, 8, 1).next_sets(50))
    epoch = one.sets_per_epoch
    fresh = CellSetSampler(data, 8, 0)
    assert not same(fresh.next_sets(epoch), fresh.next_sets(epoch))  # epochs differ


def test_resume_in_the_middle_of_an_epoch(data: TrialData) -> None:
    straight = CellSetSampler(data, 8, 0)
    straight.next_sets(23)
    resumed = CellSetSampler(data, 8, 0)
    resumed.load_state_dict(straight.state_dict())
    assert same(straight.next_sets(40), resumed.next_sets(40))


def test_fixed_sets_never_change(data: TrialData) -> None:
    first, again = fixed_sets(data, "val", 8, 42), fixed_sets(data, "val", 8, 42)
    assert same(first, again)
    assert len(first) == 2
    held_out = np.concatenate([c.rows for c in data.conditions("val")])
    assert np.isin(first.pert_rows, held_out).all()


def test_batches_hold_the_right_numbers(data: TrialData) -> None:
    sets = CellSetSampler(data, 8, 0).next_sets(4)
    batch = HostReader(data).prepare(sets)
    assert batch["control_emb"].shape == (4, 8, 6)
    assert batch["pert_emb"].shape == (4, 8)
    assert batch["target"].shape == (4, 8, 60)
    cell = data.store.dense(sets.pert_rows[2, 3:4])[0]
    assert torch.equal(batch["target"][2, 3], torch.from_numpy(cell))
    row = data.controls.row_of_cell[sets.control_rows[1, 5]]
    assert torch.equal(
        batch["control_emb"][1, 5], torch.from_numpy(data.controls.matrix[row].copy())
    )
    assert torch.equal(
        batch["pert_emb"][3], torch.from_numpy(data.features[sets.pert_codes[3]].copy())
    )


def batches(data: TrialData, workers: int = 0, drawn: int = 0) -> TrainingBatches:
    sampler = CellSetSampler(data, 8, 0)
    sampler.load_state_dict({"sets": drawn})
    return TrainingBatches(sampler, HostReader(data), 4, workers)


@pytest.mark.parametrize("workers", [1, 3])
def test_reading_ahead_keeps_the_order(data: TrialData, workers: int) -> None:
    plain = batches(data)
    ahead = batches(data, workers)
    for _ in range(12):
        one, two = next(plain), next(ahead)
        assert all(torch.equal(one[key], two[key]) for key in one)
    ahead.close()


def test_a_later_start_skips_exactly_what_was_drawn(data: TrialData) -> None:
    straight = batches(data)
    for _ in range(3):
        next(straight)
    late = batches(data, 2, drawn=12)
    assert torch.equal(next(straight)["target"], next(late)["target"])
    late.close()


def test_an_error_in_a_reader_thread_reaches_the_loop(
    data: TrialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        raise OSError("the disk is gone")

    monkeypatch.setattr(data.store, "dense", fail)
    reading = batches(data, 2)
    with pytest.raises(OSError, match="the disk is gone"):
        next(reading)
    reading.close()


def test_an_epoch_goes_through_its_conditions_in_no_order(data: TrialData) -> None:
    sampler = CellSetSampler(data, 2, seed=0)
    codes = sampler.next_sets(sampler.sets_per_epoch).pert_codes
    assert np.count_nonzero(np.diff(codes)) > len(codes) / 2  # one after another: 8 of 44


def test_which_controls_a_set_gets_is_drawn(data: TrialData) -> None:
    pool, rows = ControlPool(data.store), data.conditions("train")[0].rows[None, :8]
    one, again, other = (pool.pair(rows, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_cell_whose_batch_has_no_control_gets_one_of_its_context() -> None:
    store = SimpleNamespace(
        context=np.array([0, 0, 0, 1, 1, 1]),
        batch=np.array([0, 0, 1, 1, 2, 1]),
        names={"batch": ["a", "b", "c"]},
        is_control=np.array([True, False, False, True, False, False]),
    )
    paired = ControlPool(store).pair(np.array([[1, 2, 4, 5]]), np.random.default_rng(0))
    assert paired.tolist() == [[0, 0, 3, 3]]


def test_cells_are_drawn_once_and_all_of_them_where_there_are_too_few() -> None:
    rng = np.random.default_rng(0)
    assert len(np.unique(draw(rng, np.arange(50), 40))) == 40
    few = draw(rng, np.arange(20), 24)
    assert (len(few), len(np.unique(few))) == (24, 20)
