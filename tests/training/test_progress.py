from sesttune.training.progress import Progress


def follow(values: list[float], patience: int | None, min_delta: float = 0.0) -> Progress:
    progress = Progress(patience, min_delta)
    for step, value in enumerate(values):
        progress.update(step, value)
    return progress


def test_patience_counts_validations_without_improvement() -> None:
    falling_then_flat = [5.0, 4.0, 4.0, 4.5]
    assert not follow(falling_then_flat, 3).exhausted
    progress = follow([*falling_then_flat, 4.2], 3)
    assert progress.exhausted
    assert (progress.best, progress.best_step) == (4.0, 1)


def test_small_improvements_do_not_count() -> None:
    assert follow([5.0, 4.95, 4.9], 2, min_delta=0.2).exhausted
    assert not follow([5.0, 4.95, 4.7], 2, min_delta=0.2).exhausted


def test_without_patience_nothing_stops() -> None:
    assert not follow([1.0] * 100, None).exhausted


def test_the_first_finite_value_is_a_best_even_with_a_large_min_delta() -> None:
    assert follow([5.0], 3, min_delta=1e9).best == 5.0


def test_state_goes_out_and_in() -> None:
    progress = follow([3.0, 2.0, 2.5], 5)
    other = Progress(5, 0.0)
    other.load_state_dict(progress.state_dict())
    assert other == progress
