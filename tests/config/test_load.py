from pathlib import Path

import pytest
import yaml

from sesttune.config.load import (
    Points,
    check_key,
    from_dict,
    known_keys,
    load_config,
    to_dict,
    to_overrides,
    to_yaml,
    with_point,
)
from sesttune.errors import UserError

PLAN_COMMAND = [
    "++data.kwargs.toml_config_path=data/starter.toml",
    "++data.kwargs.perturbation_features_file=/data/ESM2_pert_features.pt",
    "++data.kwargs.num_workers=8",
    "++training.max_steps=40000",
    "++training.ckpt_every_n_steps=5000",
    "++training.batch_size=16",
    "++training.lr=1e-4",
    "++training.val_check_interval=500",
    "++training.log_every_n_steps=50",
    "++training.early_stopping=true",
    "++training.patience=10",
    "++model.kwargs.input_dim=18080",
    "++model.kwargs.hidden_dim=512",
    "++model.kwargs.output_dim=18080",
    "++model.kwargs.pert_dim=5120",
    "++model.kwargs.se_model_path=SE-600M",
    "++model.kwargs.se_checkpoint_path=SE-600M/se600m_epoch15.ckpt",
    "++output_dir=competition",
    "++name=se_st_combined_40k",
]


def test_defaults_are_the_plans_values() -> None:
    config = load_config()
    assert config.training.max_steps == 40_000
    assert config.training.batch_size == 16
    assert config.training.lr == 1e-4
    assert config.training.val_check_interval == 500
    assert config.training.patience == 10
    assert config.training.ckpt_every_n_steps == 5_000
    assert config.training.log_every_n_steps == 50
    assert config.data.kwargs.num_workers == 8
    assert config.training.gradient_clip_val is None
    assert config.training.accumulate_grad_batches == 1
    assert config.data.kwargs.batch_col == "batch_var"
    assert config.data.kwargs.control_pert == "non-targeting"
    assert config.model.kwargs.input_dim == 18_080
    assert config.model.kwargs.st_cell_set_len == 128


def test_the_plans_command_line_is_accepted_verbatim() -> None:
    config = load_config(PLAN_COMMAND)
    assert config.training.lr == 1e-4
    assert config.model.kwargs.hidden_dim == 512
    assert config.output_dir == "competition"
    assert config.name == "se_st_combined_40k"
    assert config.training.early_stopping is True


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_overrides_with_and_without_plus(prefix: str) -> None:
    config = load_config([f"{prefix}training.lr=3e-4", f"{prefix}model.checkpoint=a b.ckpt"])
    assert config.training.lr == 3e-4
    assert config.model.checkpoint == "a b.ckpt"


def test_null_clears_an_optional_value() -> None:
    assert load_config(["model.kwargs.input_dim=null"]).model.kwargs.input_dim is None


def test_precedence_base_file_overrides(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("training:\n  lr: 2.0e-4\n  batch_size: 8\n")
    config = load_config(
        ["training.batch_size=4"], file, {"training.lr": 9e-4, "training.patience": 3}
    )
    assert (config.training.lr, config.training.batch_size, config.training.patience) == (
        2e-4,
        4,
        3,
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rate=1", r"unknown key 'training.learning_rate': did you mean 'train"),
        ("training.pacience=1", "did you mean 'training.patience'"),
        ("batch_size=4", "did you mean 'training.batch_size'"),
        ("training.lr=fast", r"training.lr=fast in the command line"),
        ("training.lr=-1", "training.lr=-1.0 must be a number above 0"),
        ("training.lr=inf", "must be a number above 0"),
        ("training.lr=nan", "must be a number above 0"),
        ("training.batch_size=0", "must be at least 1"),
        ("training.batch_size=1.5", "training.batch_size=1.5"),
        ("model=se_st_combined", "'model' is a group"),
        ("training.lr", "write key=value"),
        ("model.kwargs.hidden_dim=100", "multiple of model.kwargs.n_heads=8"),
        ("model.kwargs.output_dim=10", "differ"),
        ("model.kwargs.loss=huber", "not one of energy, sinkhorn, mse"),
        ("training.gradient_clip_val=0", "write null for no clipping"),
        ("name=a/b", "plain folder name"),
        (f"name={'a' * 201}", "plain folder name of at most 200 bytes"),
        (f"name={'名' * 67}", "plain folder name of at most 200 bytes"),
        ("name=mlflow.db", "MLflow's own files"),
        ("training.min_delta=nan", "at least 0, and finite"),
        ("training.weight_decay=inf", "at least 0, and finite"),
        ("training.train_seed=-1", r"training.train_seed=-1 must be in .0, 2\^63\)"),
        (f"training.train_seed={10**20}", r"train_seed=10+ must be in .0, 2\^63\)"),
        (f"training.replicate={10**20}", r"replicate=10+ must be in .0, 2\^32\)"),
        ("sweep.seed=-1", r"sweep.seed=-1 must be in .0, 2\^31\)"),
        (f"sweep.seed={2**31}", r"sweep.seed=2147483648 must be in .0, 2\^31\)"),
        ("sweep.rungs=[]", "write null for the usual"),
        ("sweep.rungs=[200, 100]", r"sweep.rungs=\[200, 100\] must be whole numbers above 0, each"),
        ("sweep.rungs=[100, 100]", "each above the last"),
        ("sweep.extend_to=[0, 100]", r"sweep.extend_to=\[0, 100\] must be whole numbers above 0"),
        ("sweep.gpus_per_trial=1.5", "a trial computes on one GPU"),
        ("sweep.gpus_per_trial=all", "must be a number, or auto"),
        ("data.kwargs.val_fraction=1", "must be between 0 and 1"),
        ("data.kwargs.val_fraction=0", "must be between 0 and 1"),
        ("model.kwargs.se_min_matched=1.1", r"must be in \[0, 1\]"),
        ("model.kwargs.dropout=1", r"must be in \[0, 1\)"),
        ("training.ema_decay=1", r"must be in \(0, 1\); write null for no average"),
        ("training.lr_decay_frac=0", r"must be in \(0, 1\]"),
        ("training.lr_final_frac=1.1", r"must be in \[0, 1\]"),
        ("name=.hidden", "plain folder name"),
        ("name=-x", "name='-x' must be a plain folder name"),
        ('name="a\\nb"', r"name='a\\nb' must be a plain folder name"),
        ('name="\\e[31m"', r"name='\\x1b\[31m' must be a plain folder name"),
        ('name="a\\0"', r"name='a\\x00' is not text in UTF-8"),
        ("data.cache_dir=caf\udce9", r"data.cache_dir='caf\\udce9' is not text in UTF-8"),
        ("sweep.target_val_loss=nan", "must be a finite number"),
        ("training.lr='${nope}'", "training.lr: .*nope"),
        ("training.max_steps=0500", "training.max_steps: .* '0500' .*without a leading 0"),
        ("training.max_steps=1:30", "plain decimal numbers"),
        ("sweep.rungs=[0100, 200]", "plain decimal numbers"),
    ],
)
def test_bad_overrides_are_one_line_that_names_the_key(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config([override])
    assert "\n" not in str(caught.value)


def test_text_is_taken_as_it_was_written() -> None:
    config = load_config(["name=007", "training.precision=32", "data.kwargs.batch_col=1e3"])
    assert (config.name, config.training.precision) == ("007", "32")
    assert config.data.kwargs.batch_col == "1e3"
    assert load_config(["name=null", "sweep.gpus_per_trial=0.5"]).name is None
    assert load_config(["sweep.gpus_per_trial=0.5"]).sweep.gpus_per_trial == 0.5
    assert load_config(to_overrides(config)) == config


@pytest.mark.parametrize(
    "text", ["exp #1", "*ctrl", "a: b", "@x", "%ctrl", "#1", "[a", "no", "null x", "'"]
)
def test_a_label_may_hold_what_yaml_has_a_meaning_for(text: str, tmp_path: Path) -> None:
    config = load_config([f"data.kwargs.control_pert={text}"])
    assert config.data.kwargs.control_pert == text
    assert load_config(to_overrides(config)) == config
    (tmp_path / "kept.yaml").write_text(to_yaml(config))
    assert load_config(file=tmp_path / "kept.yaml") == config


@pytest.mark.parametrize("text", ["'null'", '"null"'])
def test_quoted_text_is_what_is_in_the_quotes(text: str) -> None:
    config = load_config([f"name={text}"])
    assert config.name == "null"
    assert load_config(to_overrides(config)) == config


def test_text_in_a_file_is_taken_as_it_was_written_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: 007\ndata: {kwargs: {control_pert: no, batch_col: '1'}}\noutput_dir: ~/x\n"
    )
    config = load_config(file=file)
    assert (config.name, config.output_dir) == ("007", "~/x")
    assert (config.data.kwargs.control_pert, config.data.kwargs.batch_col) == ("no", "1")
    file.write_text("training: {max_steps: 0500}\n")
    with pytest.raises(UserError, match=r"mine.yaml: training.max_steps=0500: write plain dec"):
        load_config(file=file)
    file.write_text("sweep: {extend_to: [50000, 060000]}\n")
    with pytest.raises(UserError, match=r"mine.yaml: sweep.extend_to=060000: write plain dec"):
        load_config(file=file)
    file.write_text("name: null\n")
    assert load_config(file=file).name is None


def test_unknown_key_in_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("training:\n  max_step: 10\n")
    with pytest.raises(UserError, match=r"did you mean 'training.max_steps'"):
        load_config(file=file)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.yaml does not exist"):
        load_config(file=tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("training: [1")
    with pytest.raises(UserError, match="broken.yaml is not valid YAML"):
        load_config(file=broken)


def test_dict_and_yaml_round_trip(tmp_path: Path) -> None:
    config = load_config(PLAN_COMMAND)
    assert from_dict(to_dict(config)) == config
    file = tmp_path / "resolved.yaml"
    file.write_text(to_yaml(config))
    assert load_config(file=file) == config


def test_the_points_of_one_configuration_do_not_meet() -> None:
    config = load_config(["training.lr=1e-3", "sweep.rungs=[100,200]"])
    points = Points(config)
    for point in ({"training.lr": 5e-4}, {"sweep.rungs": [50]}, {"training.batch_size": 8}):
        assert points.at(point) == with_point(config, point)
    with pytest.raises(UserError, match="batch_size"):
        points.at({"training.batch_size": 0})
    assert points.at({}) == config


def test_with_point_sets_and_checks() -> None:
    config = load_config(PLAN_COMMAND)
    changed = with_point(config, {"training.lr": 5e-4, "training.batch_size": 8})
    assert (changed.training.lr, changed.training.batch_size) == (5e-4, 8)
    assert config.training.lr == 1e-4
    with pytest.raises(UserError, match="at least 1"):
        with_point(config, {"training.batch_size": 0})


def test_every_known_key_passes_its_own_check() -> None:
    for key in known_keys():
        check_key(key)
    assert len(known_keys()) > 40


def test_overrides_of_a_config_give_it_again() -> None:
    settings = {
        "training.lr": 1e-5,
        "training.ema_decay": 0.999,
        "training.early_stopping": False,
        "model.kwargs.pert_dim": None,
        "model.checkpoint": "a: b # c",
        "data.kwargs.embed_key": "null",
        "data.kwargs.batch_col": "'in quotes'",
        "data.kwargs.control_pert": "[('DMSO', 0.0)]",
        "sweep.extend_to": [50, 60],
        "name": "001",
    }
    config = load_config(base=settings)
    overrides = to_overrides(config, ["training.replicate"])
    assert {text.partition("=")[0] for text in overrides} == {*settings, "training.replicate"}
    assert load_config(overrides) == config


@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "a\\${oc.env:SECRET}", "${nope}", "${", "$x"])
def test_what_is_recorded_looks_nothing_up(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A model of others names its settings: evaluated here, they are printed and logged."""
    monkeypatch.setenv("SECRET", "hunter2")
    config = from_dict({"data": {"kwargs": {"control_pert": text}}})
    for same in (config, with_point(config, {"training.lr": 0.1}), from_dict(to_dict(config))):
        assert same.data.kwargs.control_pert == text
    assert with_point(config, {"data.kwargs.pert_col": text}).data.kwargs.pert_col == text
    assert yaml.safe_load(to_yaml(config))["data"]["kwargs"]["control_pert"] == text


def test_what_a_user_writes_may_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/scratch")
    config = load_config(["data.cache_dir=${oc.env:PLACE}/cache", "name=${tracking.experiment}"])
    assert (config.data.cache_dir, config.name) == ("/scratch/cache", "sesttune")
