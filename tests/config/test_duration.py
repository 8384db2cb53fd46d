import pytest

from sesttune.config.duration import seconds
from sesttune.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30s", 30), ("90m", 5400), ("8h", 28_800), ("1d12h", 129_600), ("1.5h", 5400)],
)
def test_durations_are_read_as_people_write_them(text, expected):
    assert seconds(text, "k") == expected


@pytest.mark.parametrize("text", ["", "8", "8 h", "h", "-1h", "8x", "8hours"])
def test_what_is_not_a_duration_is_refused_with_its_key(text):
    with pytest.raises(UserError, match="sweep.time_budget=.* is not a duration"):
        seconds(text, "sweep.time_budget")


def test_nothing_is_no_budget():
    with pytest.raises(UserError, match="longer than nothing"):
        seconds("0h", "k")
