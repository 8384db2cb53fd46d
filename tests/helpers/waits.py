"""Which operations would have a GPU waited for, seen on a CPU, where they are operations, too."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Waits(TorchDispatchMode):
    """Notes what asks for a value or a size (`item`, `nonzero`) or copies a list (indices) over."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        self.operations += 1
        if _WAITS & set(func.tags) or func is torch.ops.aten.lift_fresh.default:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))
