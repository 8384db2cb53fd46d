import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tiny_data import MeanEncoder, TinyData, write_tiny
from torch._dynamo.utils import counters

from sesttune.config.load import load_config, to_yaml
from sesttune.config.schema import Config
from sesttune.data.trial_data import prepare
from sesttune.errors import UserError
from sesttune.model.head_checkpoint import read_checkpoint
from sesttune.system import compiler
from sesttune.system.compiler import missing
from sesttune.training import compiled
from sesttune.training.records import read_metrics
from sesttune.training.trial import run_trial

needs_compiler = pytest.mark.skipif(missing() is not None, reason=f"no {missing()}")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk cache of what was compiled, this module's own and empty at first."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        yield folder


def ready(tiny: TinyData, mode: str, **more: object) -> tuple[Config, Path]:
    config = load_config(base=tiny.settings(**{"training.compile": mode, **more}))
    return config, prepare(config, MeanEncoder)


CONTINUE = """
import json, sys
from pathlib import Path
from torch._dynamo.utils import counters
from sesttune.config.load import load_config
from sesttune.training.trial import run_trial
run_trial(load_config(file=Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]))
print(json.dumps(counters["inductor"]))
"""


class Stop(Exception):
    pass


def stop_at_ten(line: dict[str, float]) -> None:
    if line["step"] == 10:
        raise Stop


@pytest.mark.slow
@needs_compiler
def test_a_second_process_goes_on_bit_for_bit_and_compiles_nothing(
    tiny: TinyData, tmp_path: Path, cache: Path
) -> None:
    config, manifest = ready(tiny, "default")
    run_trial(config, manifest, tmp_path / "straight")
    with pytest.raises(Stop):
        run_trial(config, manifest, tmp_path / "cut", stop_at_ten)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    arguments = [tmp_path / "config.yaml", manifest, tmp_path / "cut"]
    done = subprocess.run(
        [sys.executable, "-c", CONTINUE, *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    counted = json.loads(done.stdout.splitlines()[-1])
    assert counted["fxgraph_cache_hit"] > 0
    assert "fxgraph_cache_miss" not in counted
    one, two = (
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")
        for name in ("straight", "cut")
    )
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    assert [line["val_loss"] for line in read_metrics(tmp_path / "straight")] == [
        line["val_loss"] for line in read_metrics(tmp_path / "cut")
    ]


@pytest.mark.slow
@needs_compiler
def test_a_compiled_head_trains_like_another(tiny: TinyData, tmp_path: Path) -> None:
    without_dropout = {"model.kwargs.dropout": 0}
    counters.clear()
    for mode in ("none", "default"):
        run_trial(*ready(tiny, mode, **without_dropout), tmp_path / mode)
    lines = {mode: read_metrics(tmp_path / mode) for mode in ("none", "default")}
    for key in ("val_loss", "train_loss", "grad_norm"):
        plain, other = ([line[key] for line in lines[m][1:]] for m in ("none", "default"))
        assert plain == pytest.approx(other, rel=1e-4)
    assert counters["inductor"]["fxgraph_cache_miss"] == 2  # there and back
    # Compiling belongs to the start, not to the speed of the steps.
    assert math.isnan(lines["default"][0]["startup_s"])
    assert lines["default"][1]["startup_s"] > lines["none"][1]["startup_s"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@needs_compiler
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_head_trains_like_another_on_a_gpu(
    tiny: TinyData, tmp_path: Path, mode: str
) -> None:
    more = {"model.kwargs.dropout": 0, "training.device": "cuda", "training.precision": "32"}
    for each in ("none", mode):
        run_trial(*ready(tiny, each, **more), tmp_path / each)
    plain, compiled_ = (read_metrics(tmp_path / each)[1:] for each in ("none", mode))
    for key in ("val_loss", "train_loss", "grad_norm"):
        assert [line[key] for line in plain] == pytest.approx(
            [line[key] for line in compiled_], rel=1e-3
        )


def test_a_machine_without_a_compiler_is_told_so(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, manifest = ready(tiny, "default")
    monkeypatch.setattr(compiler, "COMPILERS", ("no-such-compiler",))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"training.compile=default needs a C\+\+ compiler"):
        run_trial(config, manifest, tmp_path / "trial")
    assert read_metrics(tmp_path / "trial") == []
    shutil.rmtree(tmp_path / "trial")
    run_trial(*ready(tiny, "none"), tmp_path / "trial")  # which needs none
    assert os.listdir(tmp_path / "trial" / "checkpoints")


def test_several_passes_a_step_are_not_recorded_as_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noted(function: object, *, mode: str, **more: object) -> object:
        asked.append(mode)
        return function

    monkeypatch.setattr(torch, "compile", noted)
    head = torch.nn.Linear(2, 2)
    for accumulate in (1, 2):
        compiled.predictor(head, "reduce-overhead", accumulate)  # type: ignore[arg-type]
    assert asked == ["reduce-overhead", "default"]
