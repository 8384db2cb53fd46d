import math
import random

import pytest

from sesttune.config.load import load_config
from sesttune.errors import UserError
from sesttune.search.axis import axis_of
from sesttune.search.rules import trial_count
from sesttune.search.space_file import SPACES_FOLDER, load_space, parse_space

LR = {"type": "loguniform", "low": 1e-5, "high": 1e-3}


def parse(parameters, **more):
    return parse_space({"parameters": parameters, **more}, "s.yaml")


@pytest.mark.parametrize("name", sorted(path.stem for path in SPACES_FOLDER.glob("*.yaml")))
def test_every_shipped_space_fits_the_default_settings_and_survives_writing(name):
    space = load_space(name)
    space.check(load_config())
    assert parse_space(space.to_dict(), space.source) == space


def test_the_default_space_is_the_plans():
    space = load_space("default")
    assert space.parameters["training.batch_size"].values == (8, 16, 32)
    assert space.parameters["training.max_steps"].values == (20_000, 40_000, 50_000, 60_000)
    lr = space.parameters["training.lr"]
    assert (lr.kind, lr.low, lr.high) == ("loguniform", 1e-5, 1e-3)
    assert space.longest(load_config()) == 60_000


def test_a_path_and_a_local_name_are_found_and_1e_4_is_a_number(tmp_path, monkeypatch):
    (tmp_path / "search_spaces").mkdir()
    file = tmp_path / "search_spaces" / "mine.yaml"
    file.write_text(
        "parameters:\n  training.lr: {type: choice, values: [1e-4, 3e-4]}\nnum_trials: 2\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_space("mine") == load_space("search_spaces/mine.yaml")
    assert load_space(str(file)).parameters["training.lr"].values == (1e-4, 3e-4)
    file.rename(file.with_name("grid.yaml"))
    assert load_space("grid").num_trials == 2, "one's own goes before a shipped one"


def test_a_file_that_names_neither_means_tpe_and_sixteen_trials():
    space = parse({"training.lr": LR})
    assert (space.searcher, space.num_trials) == ("tpe", 16)


def test_values_of_a_range_are_as_a_file_writes_them_and_rates_are_drawn_by_their_logarithm():
    steps = {"type": "uniform", "low": 0.0, "high": 0.3, "quantum": 0.1}
    space = parse({"model.kwargs.dropout": steps, "training.lr": LR})
    assert space.parameters["model.kwargs.dropout"].grid() == (0.0, 0.1, 0.2, 0.3)
    rng = random.Random(0)
    rates = [space.random_point(rng)["training.lr"] for _ in range(200)]
    assert 70 < sum(rate < 1e-4 for rate in rates) < 130
    sizes = {"training.batch_size": {"type": "choice", "values": [32, 8, 16]}}
    assert axis_of(parse(sizes).parameters["training.batch_size"]).values == (8, 16, 32)


def test_a_grid_has_every_combination_once():
    space = parse(
        {
            "training.batch_size": {"type": "choice", "values": [8, 16]},
            "model.kwargs.n_layers": {"type": "int", "low": 2, "high": 6, "quantum": 2},
            "model.kwargs.dropout": {"type": "uniform", "low": 0.0, "high": 0.2, "quantum": 0.1},
        }
    )
    points = [tuple(point.values()) for point in space.grid()]
    assert len(points) == len(set(points)) == space.size() == 18
    assert points[:3] == [(8, 2, 0.0), (8, 2, 0.1), (8, 2, 0.2)]


def test_a_key_fixed_on_the_command_line_is_not_searched():
    space = parse({"training.lr": LR, "training.batch_size": {"type": "choice", "values": [8]}})
    assert list(space.without(["training.lr", "name"]).parameters) == ["training.batch_size"]
    with pytest.raises(UserError, match="nothing|every searched key is fixed"):
        space.without(["training.lr", "training.batch_size"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"training.lrr": LR}, "did you mean 'training.lr'"),
        ({"model.kwargs.loss": {"type": "choice", "values": ["mse"]}}, "different losses"),
        ({"data.kwargs.batch_col": {"type": "choice", "values": ["a"]}}, "cannot be searched"),
        ({"training.lr": {"type": "choice", "values": []}}, "at least one value"),
        ({"training.lr": {"type": "choice", "values": [1e-4, 1e-4]}}, "twice"),
        ({"training.lr": {**LR, "low": 1e-3}}, "low=0.001 must be below high=0.001"),
        ({"training.lr": {**LR, "low": 0}}, "above 0"),
        ({"training.lr": {**LR, "low": "x"}}, "'low' must be a number"),
        ({"training.lr": {**LR, "type": "normal"}}, "type 'normal' is not one of"),
        ({"training.lr": {**LR, "type": ["choice"]}}, r"type '\['choice'\]' is not one of"),
        ({"training.max_steps": {"type": "int", "low": 1, "high": 2**63}}, "within ±2.53"),
        ({"training.lr": {**LR, "step": 2}}, "'step' does not go with type loguniform"),
        ({"training.max_steps": {"type": "int", "low": 0.5, "high": 9}}, "whole numbers"),
        ({"training.max_steps": {"type": "int", "low": 1, "high": 9, "quantum": 0.5}}, "whole"),
        ({"training.max_steps": {"type": "int", "low": 1, "high": 9, "quantum": 9}}, "fit between"),
        ({"training.max_steps": {"type": "int", "low": 1, "high": 9, "quantum": 0}}, "above 0 and"),
        ({"training.max_steps": {"type": "int", "low": True, "high": 9}}, "'low' must be a number"),
        ({"training.lr": {**LR, "high": math.inf}}, "'high' must be a number"),
        ({"training.lr_schedule": {"type": "choice", "values": "wsd"}}, "must be a list"),
        ({}, "at least one key"),
    ],
)
def test_a_bad_parameter_is_one_line_that_names_file_and_key(parameters, message):
    with pytest.raises(UserError, match=message) as refused:
        parse(parameters)
    text = str(refused.value)
    assert "s.yaml" in text
    assert "\n" not in text
    assert all(key in text for key in parameters)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("training.batch_size: {type: choice, values: [8, 010]}", "training.batch_size.values=010"),
        ("training.batch_size: {type: choice, values: [08]}", "training.batch_size.values=08"),
        ("training.max_steps: {type: int, low: 0500, high: 1000}", "training.max_steps.low=0500"),
        ("training.max_steps: {type: int, low: 5, high: 1:30}", "training.max_steps.high=1:30"),
    ],
)
def test_a_number_that_yaml_takes_for_another_is_refused(tmp_path, text, told):
    file = tmp_path / "mine.yaml"
    file.write_text(f"parameters:\n  {text}\n")
    with pytest.raises(UserError) as refused:
        load_space(str(file))
    plain = "write plain decimal numbers, without a leading 0 and without ':'"
    assert str(refused.value) == f"search space {file}: parameters.{told}: {plain}"
    file.write_text("parameters:\n  training.lr: {type: choice, values: [1e-05, 0.05, 1.0e-03]}\n")
    assert load_space(str(file)).parameters["training.lr"].values == (1e-5, 0.05, 1e-3)


def test_a_bad_file_is_refused(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("parameters: {training.lr: [\n")
    with pytest.raises(UserError, match=r"bad.yaml is not valid YAML"):
        load_space(str(bad))
    with pytest.raises(UserError, match="no such file; give a YAML file or one of .*default"):
        load_space("nowhere")
    for name in ("demo.v2", "elsewhere/demo"):
        with pytest.raises(UserError, match="no such file"):
            load_space(name)
    with pytest.raises(UserError, match="did you mean 'num_trials'"):
        parse({"training.lr": LR}, trials=3)
    for count in (0, 2.5, True):
        with pytest.raises(UserError, match=f"num_trials={count} must be a whole number"):
            parse({"training.lr": LR}, num_trials=count)
    with pytest.raises(UserError, match="searcher 'bayes'"):
        parse({"training.lr": LR}, searcher="bayes")


def test_ranges_of_many_whole_numbers_are_drawn_from_and_not_listed():
    wide = {"type": "int", "low": 1, "high": 10**9}
    ranges = {"training.warmup_steps": wide, "training.max_steps": wide}
    space = parse(ranges, constraints=["warmup_steps <= max_steps"])
    assert space.grid() is None
    assert trial_count(load_config(), space) == space.num_trials
    space.check(load_config())
    with pytest.raises(UserError, match="a grid of 1,000,000,000,000,000,000 points is more than"):
        parse(ranges, searcher="grid")


WARM = "training.warmup_steps"


@pytest.mark.parametrize(
    ("described", "constraint", "found"),
    [
        ({WARM: [0, 500], "training.max_steps": [400, 1000]}, None, (500, 400)),
        ({WARM: [0, 500], "training.max_steps": [500, 1000]}, None, (500, 500)),
        ({WARM: [0, 500]}, None, (500, 300)),
        ({"training.max_steps": [90, 110]}, None, (100, 90)),
        ({"training.max_steps": [101, 110]}, None, None),
        ({WARM: [0, 500], "training.max_steps": [400, 1000]}, "warmup_steps < max_steps", None),
        (
            {WARM: [0, 500], "training.max_steps": [400, 500]},
            "warmup_steps <= max_steps",
            (500, 500),
        ),
    ],
)
@pytest.mark.parametrize("endless", [False, True])
def test_a_trial_that_would_end_in_its_warm_up_is_found(described, constraint, found, endless):
    ranges = {key: {"type": "choice", "values": values} for key, values in described.items()}
    if endless:
        ranges["training.lr"] = LR
    space = parse(ranges, constraints=[constraint] if constraint else [])
    config = load_config(["training.warmup_steps=100", "training.max_steps=300"])
    assert space.ends_in_warm_up(config) == found


def test_a_constraint_on_a_setting_that_is_not_searched_has_the_sweeps_value():
    values = {"type": "choice", "values": [8, 16]}
    product = ["batch_size * accumulate_grad_batches <= 16"]
    space = parse({"training.batch_size": values}, constraints=product, searcher="grid")
    for accumulate, points in ((1, 2), (2, 1)):
        config = load_config([f"training.accumulate_grad_batches={accumulate}"])
        space.check(config)
        assert space.ends_in_warm_up(config) is None
        assert space.widest(config) == {}
        assert trial_count(config, space) == points


def test_a_warm_up_at_the_end_of_a_wide_range_is_found():
    wide = {"type": "int", "low": 0, "high": 5000}
    steps = {"type": "choice", "values": [20_000, 5000]}
    space = parse({WARM: wide, "training.max_steps": steps, "training.lr": LR})
    assert space.ends_in_warm_up(load_config()) == (5000, 5000)


def test_a_grid_over_a_real_range_is_refused_wherever_the_grid_is_asked_for():
    with pytest.raises(UserError, match=r"training.lr is a loguniform range"):
        parse({"training.lr": LR}, searcher="grid")
    with pytest.raises(UserError, match="finite list"):
        parse({"training.lr": LR}).check(load_config(["sweep.searcher=grid"]))


@pytest.mark.parametrize(
    ("key", "description", "message"),
    [
        ("training.batch_size", {"type": "choice", "values": [8, 0]}, "batch_size=0"),
        ("training.batch_size", {"type": "choice", "values": [8, "many"]}, "batch_size=many"),
        ("training.max_steps", {"type": "uniform", "low": 10, "high": 20}, "max_steps"),
        ("model.kwargs.n_heads", {"type": "choice", "values": [8, 5]}, "multiple"),
        ("model.kwargs.n_heads", {"type": "int", "low": 4, "high": 8}, "n_heads=5"),
    ],
)
def test_values_that_no_trial_could_take_are_refused_before_any_starts(key, description, message):
    with pytest.raises(UserError, match=message):
        parse({key: description}).check(load_config())


def test_schedules_decay_and_averages_may_be_searched() -> None:
    described = {
        "training.lr_schedule": {"type": "choice", "values": ["constant", "cosine", "wsd"]},
        "training.warmup_steps": {"type": "int", "low": 0, "high": 1000, "quantum": 500},
        "training.lr_decay_frac": {"type": "uniform", "low": 0.1, "high": 0.5},
        "training.weight_decay": {"type": "loguniform", "low": 1e-6, "high": 1e-1},
        "training.ema_decay": {"type": "choice", "values": [None, 0.99, 0.999]},
    }
    space = parse_space({"parameters": described}, "test")
    space.check(load_config())
    wrong = {"training.lr_schedule": {"type": "choice", "values": ["constant", "linear"]}}
    with pytest.raises(UserError, match="linear is not one of constant, cosine, wsd"):
        parse_space({"parameters": wrong}, "test").check(load_config())


def test_the_longest_trial_of_a_budget_searched_under_a_condition_may_be_the_settings_own():
    steps = {"type": "choice", "values": [100, 200], "when": {"training.batch_size": [8]}}
    space = parse(
        {
            "training.batch_size": {"type": "choice", "values": [8, 16]},
            "training.max_steps": steps,
        }
    )
    assert space.longest(load_config()) == 40_000
    assert space.shortest(load_config()) == 100


def test_a_head_that_is_there_already_has_one_size():
    for key in ("hidden_dim", "n_layers", "n_heads"):
        space = parse({f"model.kwargs.{key}": {"type": "choice", "values": [8, 16]}})
        with pytest.raises(UserError, match=f"{key} cannot be searched with model.checkpoint"):
            space.check(load_config(["model.checkpoint=x.ckpt"]))
