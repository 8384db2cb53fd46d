"""A frozen layer keeps nothing of the file that its weights came from."""

import pytest
import torch

from sesttune.model import frozen_linear
from sesttune.model.frozen_linear import freeze


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
def test_a_frozen_layer_has_its_own_copy(
    dtype: torch.dtype, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    able = packed and frozen_linear.onednn_multiplies(dtype)
    monkeypatch.setattr(frozen_linear, "onednn_is_faster", lambda dtype: able)
    weight, bias = torch.ones(3, 4, dtype=dtype), torch.ones(3, dtype=dtype)
    layer = freeze(weight, bias, dtype)
    weight.zero_()
    bias.zero_()
    with torch.inference_mode():
        assert layer(torch.ones(2, 4, dtype=dtype)).tolist() == [[5.0] * 3] * 2
