import pytest

from sesttune.errors import UserError
from sesttune.search.constraint import parse_constraint
from sesttune.search.space import TUNABLE


def parse(text):
    return parse_constraint(text, TUNABLE, "s.yaml: constraints")


@pytest.mark.parametrize(
    ("text", "batch", "accumulate", "holds"),
    [
        ("batch_size * accumulate_grad_batches <= 64", 16, 4, True),
        ("training.batch_size * training.accumulate_grad_batches <= 64", 32, 4, False),
        ("8 <= batch_size < 32", 32, 1, False),
        ("8 <= batch_size < 32", 8, 1, True),
        ("batch_size % accumulate_grad_batches == 0", 9, 2, False),
        ("batch_size - 3 != accumulate_grad_batches", 5, 2, False),
        ("batch_size / 2 + 1 > -accumulate_grad_batches // 2", 1, 1, True),
        ("batch_size % accumulate_grad_batches == 0", 8, 0, False),
        ("batch_size % accumulate_grad_batches != 1", 8, 0, False),
        ("batch_size / accumulate_grad_batches >= 1", 8, 0, False),
        ("training.batch_size * training.batch_size <= 64.5", 8, 1, True),
    ],
)
def test_arithmetic_and_comparisons_mean_what_they_mean_in_python(text, batch, accumulate, holds):
    settings = {"training.batch_size": batch, "training.accumulate_grad_batches": accumulate}
    assert parse(text).holds(settings) is holds


def test_a_setting_that_is_off_limits_nothing():
    constraint = parse("gradient_clip_val <= 1")
    assert constraint.keys == ("training.gradient_clip_val",)
    assert constraint.holds({"training.gradient_clip_val": None})
    assert not constraint.holds({"training.gradient_clip_val": 2.0})
    of_two = parse("gradient_clip_val * batch_size <= 1")
    assert of_two.holds({"training.gradient_clip_val": None, "training.batch_size": 8})


@pytest.mark.parametrize("text", ["lr_schedule > 3", "lr_schedule + 2 <= 1", "-lr_schedule < 1"])
def test_words_are_no_numbers(text):
    with pytest.raises(UserError, match="takes a word for a number"):
        parse(text).holds({"training.lr_schedule": "cosine"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size * accumulate <= 64", "names 'accumulate'; it may name .*accumulate_grad_"),
        ("batch_size", "compares nothing"),
        ("batch_size <=", "not an expression"),
        ("__import__('os').system('true') < 1", "may name|may hold"),
        ("batch_size ** 99 < 1", "may hold"),
        ("batch_size < [1][0]", "may hold"),
        ("batch_size < True", "may hold"),
        ("1 < 2", "names no setting"),
        (64, "write text such as"),
    ],
)
def test_anything_else_is_refused_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as refused:
        parse(text)
    assert str(refused.value).startswith("s.yaml: constraints: ")
    assert "\n" not in str(refused.value)
