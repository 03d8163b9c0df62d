"""Read what goes into a network, and run a layer with its first attention replaced."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import wraps
from typing import Any, TypeVar

from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ...core.hooks import Forward, replaced
from ...core.perturbation import AGAINST

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


_EXACT = ("AttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor")
"""Processors that compute the same in slices or otherwise, to save memory."""


def computing_at_once(module: nn.Module, original: Forward) -> Forward:
    """Return a forward that computes in one call what the layer's processor computes in slices."""
    if type(getattr(module, "processor", None)).__name__ not in _EXACT or not getattr(
        module, "scale_qk", False
    ):
        return original
    own = copy(module)  # it shares the weights; the layer keeps its processor, for other threads
    setattr(own, "processor", AttnProcessor2_0())  # noqa: B010  (an attribute of the family)
    vars(own).pop("forward", None)
    return own.forward


def with_call(original: Forward, answer: Callable[[inspect.BoundArguments], object]) -> Forward:
    """Return a forward that gives ``answer(call)``, of its arguments by name."""
    signature = inspect.signature(original)

    @wraps(original)
    def forward(*args: object, **kwargs: object) -> object:
        return answer(signature.bind(*args, **kwargs))

    return forward


def run_call(
    original: Forward, call: inspect.BoundArguments, changed: Mapping[str, object] | None = None
) -> Any:
    """Call a forward with arguments by name, some of them changed."""
    arguments = OrderedDict({**call.arguments, **(changed or {})})
    new = inspect.BoundArguments(call.signature, arguments)
    return original(*new.args, **new.kwargs)


@contextmanager
def recorded_inputs(net: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield the network's inputs by name; those of the perturbation are kept from the network."""
    inputs: dict[str, Any] = {}
    signature = inspect.signature(net.forward)

    def record(original: Forward) -> Forward:
        def forward(*args: object, **kwargs: object) -> object:
            against = {k: v for k, v in kwargs.items() if k.startswith(AGAINST)}
            own = {k: v for k, v in kwargs.items() if k not in against}
            inputs.clear()
            inputs.update(**signature.bind(*args, **own).arguments, **against)
            return original(*args, **own)

        return forward

    with replaced(net, record):
        yield inputs
