import json
from pathlib import Path

import pytest
from helpers.tiny_data import MeanEncoder, write_tiny
from omegaconf import OmegaConf
from rich.console import Console

from sesttune import plan_run as module
from sesttune.config.load import load_config
from sesttune.data.trial_data import prepare
from sesttune.plan_run import plan_run
from sesttune.run_setup import Run
from sesttune.search.ray_session import Slots
from sesttune.search.space_file import parse_space
from sesttune.system.compiler import missing
from sesttune.training.records import SETTINGS

SPACE = {
    "searcher": "grid",
    "parameters": {"training.lr": {"type": "choice", "values": [1e-4, 1e-3]}},
}


def planned(tmp_path: Path, *overrides: str) -> tuple[Run, str, dict, dict]:
    """The run, what was printed, and what `plan.json` and `sweep.yaml` hold."""
    config = load_config(list(overrides), base=write_tiny(tmp_path).settings())
    folder = tmp_path / "outputs" / "sweep"
    folder.mkdir(parents=True)
    space = parse_space(SPACE, "s.yaml")
    run = Run(folder, config, prepare(config, MeanEncoder), space.to_dict())
    with (tmp_path / "printed").open("w") as file:
        run, plan = plan_run(run, space, Console(file=file, width=200))
    assert plan.trials == 2
    settings = OmegaConf.load(folder / SETTINGS) if (folder / SETTINGS).exists() else {}
    kept = json.loads((folder / "plan.json").read_text())
    return run, (tmp_path / "printed").read_text(), kept, settings


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=f"no {missing()}")
def test_what_compiling_gains_is_measured_printed_and_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr(module, "modes_to_try", lambda config, gpus: ("default",))  # as with a GPU
    run, printed, kept, settings = planned(tmp_path)
    mode = run.config.training.compile
    assert mode in ("none", "default")
    assert settings["config"]["training"]["compile"] == mode
    assert kept["compiling"] in printed
    assert kept["compiling"].startswith(f"training.compile={mode} (steps/s: not compiled ")
    assert "failed" not in kept["compiling"]
    assert "otherwise" not in kept["compiling"]
    assert list((tmp_path / "compiled").rglob("*.so")), "nothing was compiled"
    assert not (run.folder / ".compiling").exists()


def test_nothing_is_measured_on_a_cpu(tmp_path: Path) -> None:
    run, printed, kept, settings = planned(tmp_path, "training.accumulate_grad_batches=2")
    speed, batch = kept["speed"], run.config.training.batch_size
    rate = 1 / (speed["fixed_s"] + speed["set_s"] * 2 * batch)
    assert f"; {rate:.3g} steps/s at batch size {batch}\n" in printed
    assert run.config.training.compile == settings["config"]["training"]["compile"] == "none"
    assert kept["compiling"] is None
    assert "compil" not in printed


def test_a_machine_with_gpus_that_cannot_compile_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_machine", lambda config: Slots(1.0, gpus=1.0, concurrent=1))
    monkeypatch.setattr(module, "missing", lambda: "a C++ compiler")
    run, printed, kept, _ = planned(tmp_path)
    assert run.config.training.compile == "none"
    assert kept["compiling"] == "training.compile=none: this machine has not got a C++ compiler"
    assert kept["compiling"] in printed


@pytest.mark.slow
def test_a_mode_that_was_asked_for_stays(tmp_path: Path) -> None:
    run, _, _, settings = planned(tmp_path, "training.compile=none")
    assert run.config.training.compile == "none"
    assert not settings, "what the run was started with is not written again"
