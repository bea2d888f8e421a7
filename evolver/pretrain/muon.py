"""torch's Muon on processors that only emulate bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class MuonInFloat32(TorchFunctionMode):
    """Inside, torch's Muon orthogonalises in float32. By itself it takes bfloat16, whatever the processor makes of it:
    emulated, that takes a large part of a training step.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.bfloat16:
            return args[0].clone()  # it goes on in place
        return func(*args, **(kwargs or {}))
