"""Run a layer with its first call of ``scaled_dot_product_attention`` replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LayerInputs = Mapping[str, Any]
"""A network's inputs by name: tensors, and the settings of its family."""

_Out = TypeVar("_Out")


class _Intercept(TorchFunctionMode):
    """Replace the first call of ``scaled_dot_product_attention``; others (image prompts) stay."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call, self.count = call, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.count += 1
        return (self.call if self.count == 1 else func)(*args, **(kwargs or {}))


def intercepted(
    name: str, module: nn.Module, call: Callable[..., Tensor], forward: Callable[[], _Out]
) -> _Out:
    """Run a layer with ``call`` in the place of its first ``scaled_dot_product_attention``.

    Args:
        name: of the layer, for the message.
        module: the layer.
        call: replaces the first call, with its arguments.
        forward: runs the layer.

    Raises:
        ValueError: the layer's processor makes no such call.
    """
    with _Intercept(call) as mode:
        out = forward()
    if not mode.count:
        processor = type(getattr(module, "processor", module)).__name__
        raise ValueError(
            f"the attention of {name!r} cannot be perturbed under its processor, {processor}, "
            "which calls no scaled_dot_product_attention; use the network's default"
        )
    return out
