"""Run a layer of attention with its first ``scaled_dot_product_attention`` replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class _Intercept(TorchFunctionMode):
    """Hand the first call of ``scaled_dot_product_attention`` over; others (of image prompts) go on
    as they are.
    """

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call, self.count = call, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.count += 1
        return (self.call if self.count == 1 else func)(*args, **(kwargs or {}))


def intercepted(
    name: str, module: Any, call: Callable[..., Tensor], forward: Callable[[], Any]
) -> Any:
    """Run ``forward`` of a layer, ``call`` in the place of its first
    ``scaled_dot_product_attention``.

    Raises:
        ValueError: its processor makes no such call.
    """
    with _Intercept(call) as mode:
        out = forward()
    if not mode.count:
        processor = type(module.processor).__name__
        raise ValueError(
            f"the attention of {name!r} cannot be perturbed under its processor, {processor}, "
            "which calls no scaled_dot_product_attention; use the network's default"
        )
    return out
