"""`model.checkpoint`: what goes on from it, and what is refused before anything is prepared."""

from pathlib import Path

import pytest
import torch
from helpers.tiny_data import MeanEncoder, TinyData, write_tiny

from sesttune.config.load import load_config
from sesttune.config.schema import Config
from sesttune.data.trial_data import TrialData, prepare
from sesttune.errors import UserError
from sesttune.model.head_checkpoint import read_checkpoint, save_checkpoint
from sesttune.training.records import read_metrics
from sesttune.training.starting_point import refuse_other_data, starting_state
from sesttune.training.trial import run_trial


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def ready(tiny: TinyData, **more: object) -> tuple[Config, Path]:
    config = load_config(base=tiny.settings(**more))
    return config, prepare(config, MeanEncoder)


def test_model_checkpoint_continues_step_sampler_and_optimizer(
    tiny: TinyData, tmp_path: Path
) -> None:
    config, manifest = ready(tiny, **{"training.ckpt_every_n_steps": 10})
    run_trial(config, manifest, tmp_path / "long")
    short, _ = ready(tiny, **{"training.ckpt_every_n_steps": 10, "training.max_steps": 10})
    run_trial(short, manifest, tmp_path / "short")
    start = str(tmp_path / "short" / "checkpoints" / "step=10.ckpt")
    more, _ = ready(tiny, **{"training.ckpt_every_n_steps": 10, "model.checkpoint": start})
    run_trial(more, manifest, tmp_path / "more")
    assert [line["step"] for line in read_metrics(tmp_path / "more")] == [10, 15, 20]
    one, two = (
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("long", "more")
    )
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])


def test_the_learning_rate_of_a_continued_training_is_the_new_one(
    tiny: TinyData, tmp_path: Path
) -> None:
    config, manifest = ready(tiny, **{"training.max_steps": 10})
    run_trial(config, manifest, tmp_path / "a")
    start = str(tmp_path / "a" / "checkpoints" / "last.ckpt")
    slower, _ = ready(tiny, **{"model.checkpoint": start, "training.lr": 1e-5})
    run_trial(slower, manifest, tmp_path / "b")
    assert [line["lr"] for line in read_metrics(tmp_path / "b")] == [1e-5] * 3


@pytest.fixture(scope="module")
def ended(tiny: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a training of 20 steps."""
    config, manifest = ready(tiny)
    folder = tmp_path_factory.mktemp("ended")
    run_trial(config, manifest, folder)
    return folder / "checkpoints"


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("best.ckpt", {}, "holds weights alone; continue from last.ckpt"),
        ("cut.ckpt", {}, "truncated"),
        ("foreign.ckpt", {}, "is not a sesttune head checkpoint"),
        ("gone.ckpt", {}, "does not exist"),
        ("last.ckpt", {"model.kwargs.n_heads": 4}, "last.ckpt has n_heads=2; set model.kwargs"),
        ("last.ckpt", {"model.kwargs.hidden_dim": 32}, "last.ckpt has hidden_dim=16; set"),
        ("last.ckpt", {"model.kwargs.n_layers": 2}, "last.ckpt has n_layers=1; set"),
        ("last.ckpt", {"training.max_steps": 20}, "is at step 20 already: training.max_steps=20"),
    ],
)
def test_what_the_settings_tell_is_refused_without_the_data(
    tiny: TinyData, ended: Path, name: str, more: dict[str, object], message: str
) -> None:
    (ended / "cut.ckpt").write_bytes((ended / "last.ckpt").read_bytes()[:5000])
    torch.save({"state_dict": {}}, ended / "foreign.ckpt")
    settings = {"training.max_steps": 40, "model.checkpoint": str(ended / name), **more}
    with pytest.raises(UserError, match=message):
        starting_state(load_config(base=tiny.settings(**settings)))


def test_a_head_made_for_other_data_is_refused(tiny: TinyData, ended: Path, tmp_path: Path) -> None:
    config, manifest = ready(
        tiny, **{"training.max_steps": 40, "model.checkpoint": str(ended / "last.ckpt")}
    )
    data = TrialData(manifest)
    state = starting_state(config)
    assert state is not None
    refuse_other_data(state, config, data)
    for change, message in (
        ({"encoder": {"sha256": "e" * 64, "label": "E"}}, "was trained on embeddings of E .eeeeee"),
        ({"encoder": {"sha256": "", "path": "obsm['A']", "label": "A"}}, "embeddings of A .no enc"),
        ({"genes": "f" * 16}, "was trained on other genes than these 60, or on these in another"),
        ({"model": {**state["model"], "pert_encoder.0.weight": torch.zeros(16, 9)}}, r"\(16, 9\)"),
    ):
        with pytest.raises(UserError, match=message):
            refuse_other_data({**state, **change}, config, data)
    del state["genes"]  # as those of before
    refuse_other_data(state, config, data)
    save_checkpoint(tmp_path / "x.ckpt", {k: v for k, v in state.items() if k != "format"} | change)
    other, _ = ready(
        tiny, **{"training.max_steps": 40, "model.checkpoint": str(tmp_path / "x.ckpt")}
    )
    with pytest.raises(UserError, match=r"\(16, 9\)"):  # a trial asks by itself
        run_trial(other, manifest, tmp_path / "trial")
