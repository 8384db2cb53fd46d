"""Keys searched only under a condition, and points that a constraint leaves out."""

import pytest

from sesttune.config.load import load_config
from sesttune.errors import UserError
from sesttune.search.space_file import parse_space

LR = {"type": "loguniform", "low": 1e-5, "high": 1e-3}


def parse(parameters, **more):
    return parse_space({"parameters": parameters, **more}, "s.yaml")


SCHEDULES = {"type": "choice", "values": ["constant", "cosine", "wsd"]}
CONDITIONAL = {
    "training.lr_schedule": SCHEDULES,
    "training.lr_decay_frac": {
        "type": "choice",
        "values": [0.1, 0.3],
        "when": {"training.lr_schedule": ["wsd"]},
    },
    "training.warmup_steps": {
        "type": "choice",
        "values": [0, 500],
        "when": {"training.lr_schedule": ["cosine", "wsd"]},
    },
}


def test_a_key_may_be_searched_only_where_others_have_certain_values():
    space = parse(CONDITIONAL)
    points = list(space.grid())
    assert len(points) == space.size() == 1 + 2 + 2 * 2
    assert points[0] == {"training.lr_schedule": "constant"}
    assert all("training.lr_decay_frac" not in p for p in points[:3])
    assert len({repr(point) for point in points}) == 7
    space.check(load_config())
    assert parse_space(space.to_dict(), space.source) == space
    with pytest.raises(UserError, match="every searched key is fixed"):
        space.without(["training.lr_schedule"])
    below = {"training.lr_final_frac": {"type": "choice", "values": [0.0, 0.1]}}
    below["training.lr_final_frac"]["when"] = {"training.lr_decay_frac": [0.1]}
    nested = parse(CONDITIONAL | below | {"training.lr": LR})
    assert list(nested.without(["training.lr_schedule"]).parameters) == ["training.lr"]


def test_a_conditional_value_that_no_trial_could_take_is_refused_too():
    wrong = CONDITIONAL | {
        "training.lr_decay_frac": {
            "type": "choice",
            "values": [0.1, 7.0],
            "when": {"training.lr_schedule": ["wsd"]},
        }
    }
    with pytest.raises(UserError, match="lr_decay_frac=7.0"):
        parse(wrong).check(load_config())


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("cosine", "write when:"),
        ({"training.batch_size": [8]}, "may name keys above it: training.lr_schedule"),
        ({"training.lr_schedule": ["linear"]}, "which it never is"),
        ({"training.lr_schedule": []}, "at least one value"),
    ],
)
def test_a_condition_that_can_never_hold_is_one_line(when, message):
    described = {"type": "choice", "values": [0.1], "when": when}
    with pytest.raises(UserError, match=message) as refused:
        parse({"training.lr_schedule": SCHEDULES, "training.lr_decay_frac": described})
    assert "s.yaml: training.lr_decay_frac" in str(refused.value)


SIZES = {
    "training.batch_size": {"type": "choice", "values": [8, 16, 32]},
    "training.accumulate_grad_batches": {"type": "choice", "values": [1, 2, 4]},
}
AT_MOST_64 = ["batch_size * accumulate_grad_batches <= 64"]


def test_a_constraint_leaves_out_points_and_counts_what_is_fixed():
    space = parse(SIZES, constraints=AT_MOST_64).on(load_config())
    products = [
        p["training.batch_size"] * p["training.accumulate_grad_batches"] for p in space.grid()
    ]
    assert len(products) == space.size() == 8
    assert max(products) == 64
    assert parse_space(space.to_dict(), space.source).on(load_config()) == space
    config = load_config(["training.accumulate_grad_batches=4"])
    fixed = space.without(["training.accumulate_grad_batches"]).on(config)
    assert [point["training.batch_size"] for point in fixed.grid()] == [8, 16]


def test_values_that_only_a_forbidden_point_would_combine_are_no_reason_to_refuse():
    heads = {
        "model.kwargs.hidden_dim": {"type": "choice", "values": [640, 672]},
        "model.kwargs.n_heads": {"type": "choice", "values": [8, 10, 12]},
    }
    with pytest.raises(UserError, match="multiple"):
        parse({**heads, "model.kwargs.hidden_dim": {"type": "choice", "values": [672]}}).check(
            load_config()
        )
    space = parse(heads, constraints=["hidden_dim % n_heads == 0"])
    space.check(load_config())
    assert [tuple(p.values()) for p in space.on(load_config()).grid()] == [
        (640, 8),
        (640, 10),
        (672, 8),
        (672, 12),
    ]


def test_a_constraint_that_leaves_nothing_is_refused_in_a_space_without_end_too():
    with pytest.raises(UserError, match="s.yaml: no point satisfies 'batch_size < 8'"):
        parse({**SIZES, "training.lr": LR}, constraints=["batch_size < 8"]).check(load_config())


def test_the_widest_head_is_one_that_a_trial_may_have():
    sizes = {
        "model.kwargs.hidden_dim": {"type": "choice", "values": [64, 700]},
        "model.kwargs.n_layers": {"type": "int", "low": 2, "high": 6},
    }
    width, layers, heads = (
        "model.kwargs.hidden_dim",
        "model.kwargs.n_layers",
        "model.kwargs.n_heads",
    )
    config = load_config(["model.kwargs.n_heads=4"])
    assert parse(sizes).widest(config) == {width: 700, layers: 6}
    assert parse(sizes | {heads: {"type": "choice", "values": [8, 10]}}).widest(config) == {
        width: 700,
        layers: 6,
        heads: 10,
    }
    limited = parse(sizes, constraints=["hidden_dim * n_layers <= 2100"])
    assert limited.widest(config) == {width: 700, layers: 3}
    assert parse({"training.lr": LR}).widest(config) == {}
