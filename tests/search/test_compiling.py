from pathlib import Path

import pytest
from helpers.tiny_data import MeanEncoder, write_tiny

from sesttune.config.load import load_config
from sesttune.data.trial_data import prepare
from sesttune.search.calibrate import Sample
from sesttune.search.compiling import choose, fastest_mode, modes_to_try
from sesttune.search.space_file import parse_space
from sesttune.system.compiler import missing


def sample(step_s: float, val_loss: float = 2.0) -> Sample:
    return Sample(4, step_s, 1.0, 1.0, 1, 1, {0: 9.0, 20: val_loss})


def test_the_fastest_mode_is_taken_where_it_gains_enough() -> None:
    mode, found = choose(
        sample(0.010), {"default": sample(0.008), "reduce-overhead": sample(0.004)}
    )
    assert mode == "reduce-overhead"
    assert found == (
        "training.compile=reduce-overhead (steps/s: not compiled 100, default 125, "
        "reduce-overhead 250)"
    )
    assert choose(sample(0.010), {"default": sample(0.0098)})[0] == "none"
    assert choose(sample(0.010), {"default": sample(0.020)})[0] == "none"


def test_a_mode_that_fails_or_trains_otherwise_is_not_taken() -> None:
    fast = sample(0.001)
    mode, found = choose(sample(0.010), {"default": "X: no", "reduce-overhead": fast})
    assert mode == "reduce-overhead"
    assert "default failed (X: no)" in found
    for loss in (2.5, float("nan")):
        mode, found = choose(sample(0.010), {"default": sample(0.001, loss)})
        assert mode == "none"
        assert "default trains otherwise, not used" in found


def test_only_steps_that_both_have_made_are_compared() -> None:
    short = Sample(4, 0.001, 1.0, 1.0, 1, 1, {0: 9.0, 10: 3.0})
    longer = Sample(4, 0.010, 1.0, 1.0, 1, 1, {0: 9.0, 10: 3.1, 20: 1.0})
    assert choose(longer, {"default": short})[0] == "default"


def test_no_mode_is_tried_without_a_gpu() -> None:
    assert modes_to_try(load_config(), gpus=0.0) == ()


def test_modes_are_tried_for_trials_on_gpus_that_this_machine_need_not_have() -> None:
    assert modes_to_try(load_config(), gpus=0.5) == ("default", "reduce-overhead")
    several = load_config(["training.accumulate_grad_batches=2"])
    assert modes_to_try(several, gpus=1.0) == ("default",)


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=f"no {missing()}")
def test_a_broken_compiler_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That one that works is measured is tried where a run is planned."""
    config = load_config(base=write_tiny(tmp_path).settings())
    manifest = prepare(config, MeanEncoder)
    sizes = {"training.batch_size": {"type": "choice", "values": [1, 2]}}
    space = parse_space({"searcher": "grid", "parameters": sizes}, "s.yaml")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("CXX", "/bin/false")
    mode, words = fastest_mode(config, space, manifest, tmp_path / "s", 1, ("default",), 4)
    assert mode == "none"
    assert "default failed (" in words
