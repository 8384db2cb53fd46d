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
    config = load_config(["model.kwargs.n_heads=4"])
    assert parse(sizes).widest(config) == {WIDTH: 700, LAYERS: 6}
    assert parse(sizes | {HEADS: {"type": "choice", "values": [8, 10]}}).widest(config) == {
        WIDTH: 700,
        LAYERS: 6,
        HEADS: 10,
    }
    limited = parse(sizes, constraints=["hidden_dim * n_layers <= 2100"])
    assert limited.widest(config) == {WIDTH: 700, LAYERS: 3}
    assert parse({"training.lr": LR}).widest(config) == {}


WIDTH, LAYERS, HEADS = (f"model.kwargs.{key}" for key in ("hidden_dim", "n_layers", "n_heads"))


@pytest.mark.parametrize("widths", [[672, 650], [650, 672]])
def test_a_number_of_heads_searched_for_one_width_is_no_other_widths(widths):
    heads = {"type": "choice", "values": [10, 13], "when": {WIDTH: [650]}}
    space = parse({WIDTH: {"type": "choice", "values": widths}, HEADS: heads})
    space.check(load_config())
    assert space.widest(load_config()) == {WIDTH: 672}


@pytest.mark.parametrize(
    ("described", "told"),
    [
        (
            {
                WIDTH: {"type": "choice", "values": [640, 672]},
                HEADS: {"type": "choice", "values": [8, 10]},
            },
            "hidden_dim=672 must be a multiple of model.kwargs.n_heads=10",
        ),
        ({WIDTH: {"type": "int", "low": 64, "high": 1024}}, "must be a multiple of"),
    ],
)
@pytest.mark.parametrize("endless", [False, True])
def test_a_width_that_goes_with_no_number_of_heads_is_refused_not_run(described, told, endless):
    described = described | ({"training.lr": LR} if endless else {})
    with pytest.raises(UserError, match=told) as refused:
        parse(described).check(load_config())
    way_out = str(refused.value).partition("constraints: [")[2].removesuffix("]")
    parse(described, constraints=[way_out]).check(load_config())


def test_the_widest_head_is_sought_in_all_points_with_the_batch_they_have():
    by_eight = {
        WIDTH: {"type": "int", "low": 64, "high": 704, "quantum": 64},
        LAYERS: {"type": "int", "low": 1, "high": 8},
        "training.accumulate_grad_batches": {"type": "int", "low": 1, "high": 32},
    }
    space = parse(by_eight, constraints=["hidden_dim * n_layers <= 2100"])
    assert space.size() > 1_000
    assert space.widest(load_config()) == {WIDTH: 704, LAYERS: 2}
    sizes = {"type": "choice", "values": [4, 8, 16]}
    space = parse(
        {WIDTH: {"type": "choice", "values": [64, 640, 1280]}, "training.batch_size": sizes},
        constraints=["hidden_dim * batch_size <= 10240"],
    )
    assert space.widest(load_config(["training.batch_size=16"])) == {WIDTH: 1280}


WARM, STEPS, BATCH = "training.warmup_steps", "training.max_steps", "training.batch_size"


def test_a_condition_upon_a_condition_is_met_where_a_value_is_checked():
    schedule, share = "training.lr_schedule", "training.lr_decay_frac"
    described = {
        BATCH: {"type": "choice", "values": [8, 16, 32]},
        schedule: {"type": "choice", "values": ["constant", "wsd"], "when": {BATCH: [8, 16]}},
        share: {"type": "choice", "values": [0.1, 7.0]},
    }
    for when in ({schedule: ["wsd"]}, {BATCH: [16], schedule: ["wsd"]}):
        space = parse(described | {share: described[share] | {"when": when}})
        with pytest.raises(UserError, match="lr_decay_frac=7.0"):
            space.check(load_config())
    never = {BATCH: [32], schedule: ["wsd"]}  # where no schedule is searched
    parse(described | {share: described[share] | {"when": never}}).check(load_config())


def test_a_warm_up_and_a_budget_that_no_trial_has_together_are_not_held_against_each_other():
    def space(warm_when, steps_when):
        return parse(
            {
                BATCH: {"type": "choice", "values": [8, 16]},
                WARM: {"type": "choice", "values": [0, 500], "when": {BATCH: [warm_when]}},
                STEPS: {"type": "choice", "values": [400, 900], "when": {BATCH: [steps_when]}},
                "training.lr": LR,
            }
        )

    config = load_config()
    assert space(8, 16).ends_in_warm_up(config) is None
    assert space(16, 16).ends_in_warm_up(config) == (500, 400)
