import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.tiny_data import MeanEncoder, TinyData, write_tiny

from sesttune.config.load import load_config
from sesttune.config.schema import Config
from sesttune.data.trial_data import prepare
from sesttune.model.head_checkpoint import read_checkpoint
from sesttune.training.learning_rate import learning_rate
from sesttune.training.records import read_metrics, read_trial
from sesttune.training.trial import run_trial


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def ready(tiny: TinyData, **more: object) -> tuple[Config, Path]:
    config = load_config(base=tiny.settings(**more))
    return config, prepare(config, MeanEncoder)


def steps(folder: Path) -> list[float]:
    return [line["step"] for line in read_metrics(folder)]


def test_a_trial_validates_saves_and_reports(tiny: TinyData, tmp_path: Path) -> None:
    config, manifest = ready(tiny)
    reports: list[dict[str, float]] = []
    result = run_trial(config, manifest, tmp_path, reports.append)
    assert (result.stop_reason, result.step) == ("max_steps", 20)
    assert [line["step"] for line in reports] == steps(tmp_path) == [0, 5, 10, 15, 20]
    record = read_trial(tmp_path)
    assert record is not None
    assert (record.status, record.stop_reason) == ("done", "max_steps")
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {
        "best.ckpt",
        "last.ckpt",
        "step=10.ckpt",
        "step=20.ckpt",
    }
    last = reports[-1]
    assert last["best_val_loss"] == min(line["val_loss"] for line in reports)
    assert last["val_loss"] < reports[0]["val_loss"]
    assert last["lr"] == 1e-3
    assert last["grad_norm"] > 0
    assert last["cells_per_s"] == pytest.approx(last["steps_per_s"] * 4 * 8)
    assert math.isnan(reports[0]["train_loss"])
    assert load_config(file=tmp_path / "config.yaml") == config


def test_checkpoints_hold_the_head_and_name_the_encoder(tiny: TinyData, tmp_path: Path) -> None:
    config, manifest = ready(tiny)
    run_trial(config, manifest, tmp_path)
    best = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert best["encoder"]["label"] == "test encoder"
    prefixes = {name.split(".")[0] for name in best["model"]}
    assert prefixes == {"pert_encoder", "basal_encoder", "transformer_backbone", "project_out"}
    assert "optimizer" not in best


@pytest.mark.parametrize("loss", ["energy", "sinkhorn", "mse"])
def test_bfloat16_trains_like_float32(tiny: TinyData, tmp_path: Path, loss: str) -> None:
    losses: dict[str, list[float]] = {}
    for precision in ("32", "bf16"):
        more = {"training.precision": precision, "model.kwargs.dropout": 0}
        config, manifest = ready(tiny, **{**more, "model.kwargs.loss": loss})
        run_trial(config, manifest, tmp_path / precision)
        losses[precision] = [line["val_loss"] for line in read_metrics(tmp_path / precision)]
    assert losses["bf16"] == pytest.approx(losses["32"], rel=0.02)
    assert losses["bf16"] != losses["32"]


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_gradients_are_clipped_in_any_precision(
    tiny: TinyData, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **more):  # type: ignore[no-untyped-def]
        found = step(self, *args, **more)
        norms.append(
            float(
                torch.nn.utils.get_total_norm(
                    [p.grad for group in self.param_groups for p in group["params"]]
                )
            )
        )
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    more = {"training.precision": precision, "training.gradient_clip_val": 0.5}
    config, manifest = ready(tiny, **more)
    run_trial(config, manifest, tmp_path)
    assert norms == pytest.approx([0.5] * 20, rel=1e-3)
    # What is reported is the norm that training had before.
    assert min(line["grad_norm"] for line in read_metrics(tmp_path)[1:]) > 0.6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_trains_like_a_cpu(tiny: TinyData, tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {}
    for device in ("cpu", "cuda"):
        more = {"training.device": device, "training.precision": "32", "model.kwargs.dropout": 0}
        config, manifest = ready(tiny, **more)
        run_trial(config, manifest, tmp_path / device)
        losses[device] = [line["val_loss"] for line in read_metrics(tmp_path / device)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)
    assert read_metrics(tmp_path / "cuda")[-1]["system/gpu_0_memory_usage_percentage"] > 0


class Stop(Exception):
    pass


def stop_at(step: int):  # type: ignore[no-untyped-def]
    def report(line: dict[str, float]) -> None:
        if line["step"] == step:
            raise Stop

    return report


@pytest.mark.parametrize(
    "more",
    [{}, {"training.accumulate_grad_batches": 2}, {"training.gradient_clip_val": 0.5}],
    ids=["plain", "accumulated", "clipped"],
)
def test_an_interrupted_trial_ends_bit_for_bit_like_a_straight_one(
    tiny: TinyData, tmp_path: Path, more: dict[str, object]
) -> None:
    config, manifest = ready(tiny, **more)
    run_trial(config, manifest, tmp_path / "straight")
    with pytest.raises(Stop):
        run_trial(config, manifest, tmp_path / "cut", stop_at(10))
    torch.manual_seed(999)  # whatever ran in between must not matter
    result = run_trial(config, manifest, tmp_path / "cut")
    assert result.step == 20
    one, two = (
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")
        for name in ("straight", "cut")
    )
    assert one["sets_drawn"] == two["sets_drawn"]
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, two["model"][name]), name
    for line, other in zip(
        read_metrics(tmp_path / "straight"), read_metrics(tmp_path / "cut"), strict=True
    ):
        for key in ("step", "val_loss", "best_val_loss", "grad_norm"):
            assert line[key] == other[key] or math.isnan(line[key])


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from helpers.tiny_data import MeanEncoder
from sesttune.config.load import load_config
from sesttune.training.trial import run_trial
config = load_config(file=Path(sys.argv[1]))
run_trial(config, Path(sys.argv[2]), Path(sys.argv[3]), lambda line: time.sleep(0.05))
"""


def test_200_steps_are_80_and_a_kill_and_120(tiny: TinyData, tmp_path: Path) -> None:
    from sesttune.config.load import to_yaml

    more = {"training.max_steps": 200, "training.lr_schedule": "cosine"}
    config, manifest = ready(tiny, **more, **{"training.patience": 50, "training.ema_decay": 0.99})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    folder = tmp_path / "trial"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "config.yaml"), str(manifest)]
    command += [str(folder), str(Path(__file__).parents[1])]
    process = subprocess.Popen(command, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while 80 not in steps(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 80 <= steps(folder)[-1] < 200
    run_trial(config, manifest, folder)
    run_trial(config, manifest, tmp_path / "straight")
    assert steps(folder) == list(range(0, 201, 5))
    for line, other in zip(read_metrics(tmp_path / "straight"), read_metrics(folder), strict=True):
        for key in ("val_loss", "best_val_loss", "best_step", "train_loss", "grad_norm", "lr"):
            assert line[key] == other[key] or math.isnan(line[key]), key
    for line in read_metrics(folder):
        assert line["lr"] == learning_rate(max(int(line["step"]) - 1, 0), config.training)
    straight, killed = (
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")
        for name in ("straight", "trial")
    )
    assert killed["optimizer"]["param_groups"][0]["lr"] == learning_rate(199, config.training)
    for part in ("model", "average"):
        assert all(torch.equal(straight[part][k], killed[part][k]) for k in straight[part])
    for moments, others in zip(
        straight["optimizer"]["state"].values(), killed["optimizer"]["state"].values(), strict=True
    ):
        assert all(torch.equal(moments[key], others[key]) for key in moments)


def test_a_kill_between_checkpoint_and_line_leaves_no_hole(tiny: TinyData, tmp_path: Path) -> None:
    config, manifest = ready(tiny)
    with pytest.raises(Stop):
        run_trial(config, manifest, tmp_path, stop_at(10))
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:20])  # the line of step 10 was torn
    run_trial(config, manifest, tmp_path)
    assert steps(tmp_path) == [0, 5, 10, 15, 20]


def test_patience_stops_a_trial_that_does_not_improve(tiny: TinyData, tmp_path: Path) -> None:
    settings = {"training.patience": 2, "training.min_delta": 1e9, "training.max_steps": 100}
    config, manifest = ready(tiny, **settings)
    result = run_trial(config, manifest, tmp_path)
    assert (result.stop_reason, result.step, result.best_step) == ("patience", 10, 0)
    again = run_trial(config, manifest, tmp_path)  # a finished trial stays as it is
    assert (again.stop_reason, steps(tmp_path)) == ("patience", [0, 5, 10])
    free, _ = ready(tiny, **settings, **{"training.early_stopping": False})
    assert run_trial(free, manifest, tmp_path / "free").step == 100


@pytest.mark.parametrize("loss", ["energy", "sinkhorn", "mse"])
def test_divergence_stops_and_keeps_the_last_good_state(
    tiny: TinyData, tmp_path: Path, loss: str
) -> None:
    more = {"training.lr": 1e30, "model.kwargs.loss": loss, "training.log_every_n_steps": 2}
    config, manifest = ready(tiny, **more)
    result = run_trial(config, manifest, tmp_path)  # the running loss is looked at in between
    assert (result.stop_reason, result.step < 5) == ("nan", True)
    assert all(math.isfinite(line["val_loss"]) for line in read_metrics(tmp_path))
    kept = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["model"]
    assert all(tensor.isfinite().all() for tensor in kept.values())
    record = read_trial(tmp_path)
    assert record is not None
    assert record.status == "failed"


def test_a_slurm_job_changes_nothing(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, manifest = ready(tiny)
    run_trial(config, manifest, tmp_path / "plain")
    for name, value in {"NTASKS": "4", "JOB_NAME": "sweep", "JOB_ID": "7", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"of some other training")
    run_trial(config, manifest, tmp_path / "slurm")
    weights = [
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["model"]
        for name in ("plain", "slurm")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_accumulation_gives_the_same_steps_as_a_larger_batch(
    tiny: TinyData, tmp_path: Path
) -> None:
    still = {"model.kwargs.dropout": 0.0}
    whole, manifest = ready(tiny, **still)
    parts, _ = ready(
        tiny, **still, **{"training.batch_size": 2, "training.accumulate_grad_batches": 2}
    )
    run_trial(whole, manifest, tmp_path / "whole")
    run_trial(parts, manifest, tmp_path / "parts")
    for line, other in zip(
        read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "parts"), strict=True
    ):
        assert line["step"] == other["step"]
        assert line["val_loss"] == pytest.approx(other["val_loss"], rel=1e-3)


def test_clipping_takes_effect(tiny: TinyData, tmp_path: Path) -> None:
    # Adam is blind to the scale of gradients, but not to a change of scale between steps.
    free, manifest = ready(tiny)
    clipped, _ = ready(tiny, **{"training.gradient_clip_val": 1e-3})
    run_trial(free, manifest, tmp_path / "free")
    run_trial(clipped, manifest, tmp_path / "clipped")
    one, two = (read_metrics(tmp_path / name)[-1] for name in ("free", "clipped"))
    assert one["val_loss"] != two["val_loss"]


@pytest.mark.parametrize("loss", ["energy", "sinkhorn", "mse"])
def test_every_loss_trains(tiny: TinyData, tmp_path: Path, loss: str) -> None:
    config, manifest = ready(tiny, **{"model.kwargs.loss": loss})
    run_trial(config, manifest, tmp_path)
    lines = read_metrics(tmp_path)
    assert lines[-1]["val_loss"] < lines[0]["val_loss"]
