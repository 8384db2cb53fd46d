import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tiny_data import MeanEncoder, TinyData, write_tiny

from sesttune.config.load import load_config
from sesttune.config.schema import Config
from sesttune.data.trial_data import TrialData, prepare
from sesttune.errors import UserError
from sesttune.model.head_checkpoint import read_checkpoint, save_checkpoint
from sesttune.model.st_head import HeadConfig, STHead
from sesttune.training import saving
from sesttune.training.module import TrialModule
from sesttune.training.progress import Progress
from sesttune.training.records import read_metrics
from sesttune.training.saving import Saver, thin
from sesttune.training.trial import run_trial


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def ready(tiny: TinyData, **more: object) -> tuple[Config, Path]:
    config = load_config(base=tiny.settings(**more))
    return config, prepare(config, MeanEncoder)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def write(folder: Path, **sizes: int) -> None:
    for name, size in sizes.items():
        (folder / f"{name.replace('_', '=')}.ckpt").write_bytes(b"x" * size)


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_full_disk_leaves_no_best_that_the_metrics_do_not_know(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config, manifest = ready(tiny)

    def full(path: Path, content: dict[str, object]) -> None:
        if path.name == name and content["step"] == 15:
            raise UserError("the disk is full")
        save_checkpoint(path, content)

    monkeypatch.setattr(saving, "save_checkpoint", full)
    with pytest.raises(UserError, match="is full"):
        run_trial(config, manifest, tmp_path)
    monkeypatch.setattr(saving, "save_checkpoint", save_checkpoint)
    best, lines = tmp_path / "checkpoints" / "best.ckpt", read_metrics(tmp_path)
    assert read_checkpoint(best)["step"] == lines[-1]["best_step"] == 10
    update = Saver.save_validated
    monkeypatch.setattr(  # on another device the same steps may give no new best
        Saver,
        "save_validated",
        lambda self, state, best, periodic: update(self, state, False, False),
    )
    run_trial(config, manifest, tmp_path)
    resumed = [line for line in read_metrics(tmp_path) if line["step"] == 15]
    assert len(resumed) == 1
    if name == "best.ckpt":  # the state of step 15 was kept, and is what is gone on from
        assert read_checkpoint(best)["step"] == resumed[0]["best_step"] == 15


def test_thinning_spreads_the_checkpoints_over_the_training(tmp_path: Path) -> None:
    write(tmp_path, best=1, last=3)
    for step in range(5, 45, 5):
        write(tmp_path, **{f"step_{step}": 3})
        thin(tmp_path, budget=4 + 4 * 3)
    steps = sorted(int(name[5:-5]) for name in names(tmp_path) if name.startswith("step"))
    assert steps[-1] == 40
    assert len(steps) == 4
    assert max(b - a for a, b in zip([0, *steps], steps, strict=False)) <= 15


def test_best_and_last_stay_whatever_the_budget(tmp_path: Path) -> None:
    write(tmp_path, best=10, last=10, step_5=1, step_10=1)
    thin(tmp_path, budget=5)
    assert names(tmp_path) == {"best.ckpt", "last.ckpt"}


def test_two_names_of_one_file_count_once(tmp_path: Path) -> None:
    write(tmp_path, last=10)
    (tmp_path / "step=5.ckpt").hardlink_to(tmp_path / "last.ckpt")
    thin(tmp_path, budget=10)
    assert names(tmp_path) == {"last.ckpt", "step=5.ckpt"}


@pytest.mark.slow
def test_the_plans_head_fits_its_limits_over_a_whole_run(tiny: TinyData, tmp_path: Path) -> None:
    """48.9M parameters: 0.2 GB without the optimizer, 0.6 GB with it, 1.5 GB a trial."""
    config = load_config(base=tiny.settings())
    data = TrialData(prepare(config, MeanEncoder))
    module = TrialModule(config, STHead(HeadConfig(512, 5_120, 18_080)))
    (optimizer,) = [module.configure_optimizers()]
    for parameter in module.head.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes its moments
    saver = Saver(tmp_path / "checkpoints", config, data, module, Progress(10, 0.0))
    for step, periodic in ((500, False), (5_000, True), (10_000, True), (10_500, False)):
        state = saver.training_state(step, 0, optimizer, {"step": step, "val_loss": 1.0})
        saver.save_validated(state, best=step == 500, periodic=periodic)
        saver.settle()
        kept = {p.stat().st_ino: p.stat().st_size for p in saver.folder.iterdir()}
        assert sum(kept.values()) <= 1.5e9
    saver.close()
    assert (saver.folder / "best.ckpt").stat().st_size <= 0.2e9
    assert (saver.folder / "last.ckpt").stat().st_size <= 0.6e9
    assert names(saver.folder) == {"best.ckpt", "last.ckpt", "step=10000.ckpt"}


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(tiny: TinyData, tmp_path: Path) -> None:
    """Training goes on while the thread writes; what it writes must not change under it."""
    config = load_config(base=tiny.settings())
    data = TrialData(prepare(config, MeanEncoder))
    module = TrialModule(config, STHead(HeadConfig(6, 8, 60, 16, 1, 2)))
    optimizer = module.configure_optimizers()
    saver = Saver(tmp_path / "checkpoints", config, data, module, Progress(10, 0.0))
    before = {name: tensor.clone() for name, tensor in module.head.state_dict().items()}
    state = saver.training_state(5, 20, optimizer, {"step": 5, "val_loss": 1.0})
    with torch.no_grad():
        for parameter in module.head.parameters():
            parameter.add_(1.0)
    saver.save_validated(state, best=True, periodic=False)
    saver.settle()
    saver.close()
    for name in ("best.ckpt", "last.ckpt"):
        kept = read_checkpoint(saver.folder / name)["model"]
        assert all(torch.equal(kept[key], before[key]) for key in before)
    assert [line["step"] for line in read_metrics(tmp_path)] == [5]


def averaged(tiny: TinyData, **more: object) -> Config:
    return load_config(base=tiny.settings(**{"training.ema_decay": 0.9, **more}))


def test_the_average_of_the_weights_is_validated_kept_and_resumed(
    tiny: TinyData, tmp_path: Path
) -> None:
    config = averaged(tiny)
    manifest = prepare(config, MeanEncoder)
    run_trial(config, manifest, tmp_path / "straight")
    run_trial(averaged(tiny, **{"training.max_steps": 10}), manifest, tmp_path / "cut")
    run_trial(config, manifest, tmp_path / "cut")
    one, two = (
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")
        for name in ("straight", "cut")
    )
    assert all(torch.equal(one["average"][name], two["average"][name]) for name in one["average"])
    assert any(not torch.equal(one["average"][name], one["model"][name]) for name in one["model"])
    best = read_checkpoint(tmp_path / "straight" / "checkpoints" / "best.ckpt")
    assert best["step"] == 20
    assert all(torch.equal(best["model"][name], one["average"][name]) for name in best["model"])


def test_the_average_is_the_mean_that_its_formula_says(tiny: TinyData) -> None:
    module = TrialModule(averaged(tiny), STHead(HeadConfig(6, 8, 60, 16, 1, 2)))
    assert module.average is not None
    expected = module.head.project_out[0].bias.detach().clone()
    for step in range(1, 120):
        with torch.no_grad():
            module.head.project_out[0].bias.add_(0.1)
        module.update_average(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.head.project_out[0].bias.detach()
    assert torch.allclose(module.average.project_out[0].bias, expected, rtol=1e-5)


def test_drafts_of_a_killed_process_go_and_are_never_counted(
    tiny: TinyData, tmp_path: Path
) -> None:
    config, manifest = ready(tiny, **{"training.ckpt_every_n_steps": 10})
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".77.last.ckpt").write_bytes(b"half of one")
    run_trial(config, manifest, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "step=10.ckpt",
        "step=20.ckpt",
    ]


def test_checkpoints_are_copied_where_there_are_no_links(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    config, manifest = ready(tiny, **{"training.ckpt_every_n_steps": 10})
    run_trial(config, manifest, tmp_path)
    kept = read_checkpoint(tmp_path / "checkpoints" / "step=10.ckpt")
    assert kept["step"] == 10


def test_a_full_disk_keeps_the_checkpoint_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    save_checkpoint(path, {"step": 1})
    before = path.read_bytes()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
    limit += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    script = limit + (
        "import sys, torch; from pathlib import Path;"
        "from sesttune.model.head_checkpoint import save_checkpoint;"
        "save_checkpoint(Path(sys.argv[1]), {'w': torch.zeros(100_000)})"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True)
    assert done.returncode != 0
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_kill_after_last_costs_no_periodic_checkpoint(tiny: TinyData, tmp_path: Path) -> None:
    settings = tiny.settings(**{"training.ckpt_every_n_steps": 5, "training.max_steps": 10})
    config = load_config(base=settings)
    run_trial(config, prepare(config, MeanEncoder), tmp_path)
    checkpoints = tmp_path / "checkpoints"
    wanted = names(checkpoints)
    assert {"step=5.ckpt", "step=10.ckpt"} <= wanted
    (checkpoints / "step=10.ckpt").unlink()
    run_trial(config, prepare(config, MeanEncoder), tmp_path)
    assert names(checkpoints) == wanted
    assert (checkpoints / "step=10.ckpt").samefile(checkpoints / "last.ckpt")
