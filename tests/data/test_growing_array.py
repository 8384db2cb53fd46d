from pathlib import Path

import numpy as np
import pytest

from sesttune.data import growing_array
from sesttune.data.growing_array import shrink_values


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 1, 2, 65_535, 4], np.uint16),
        ([0, 1, 2, 65_536, 4], np.float32),
        ([0, 1, 2, 3, 0.5], np.float32),
        ([], np.uint16),
    ],
)
def test_values_are_halved_where_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[float], dtype: type
) -> None:
    monkeypatch.setattr(growing_array, "CHUNK", 2)
    np.save(tmp_path / "values.npy", np.array(values, np.float32))
    shrink_values(tmp_path / "values.npy")
    found = np.load(tmp_path / "values.npy")
    assert (found.dtype, found.tolist()) == (dtype, values)
    assert [path.name for path in tmp_path.iterdir()] == ["values.npy"]
