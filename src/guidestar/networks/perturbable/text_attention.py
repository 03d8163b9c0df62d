"""Contrast a layer's attention to the text with its attention to another text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import BoundArguments
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ...core.hooks import Forward, replaced
from ...core.perturbation import AGAINST
from ..sequence import SequenceTransformer
from .hooks import LayerInputs, computing_at_once, intercepted, run_call, with_call
from .joint_attention import text_against
from .records import record_of


@contextmanager
def contrasting(
    net: nn.Module,
    name: str,
    inputs: LayerInputs,
    contrast: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[None]:
    """Replace one layer's attention to the text by its contrast with the text against."""
    with replaced(
        net.get_submodule(name), partial(_contrast_attention, net, name, inputs, contrast)
    ):
        yield


def _contrast_attention(
    net: nn.Module,
    name: str,
    inputs: LayerInputs,
    contrast: Callable[[Tensor, Tensor], Tensor],
    original: Forward,
) -> Forward:
    """Return a layer's forward that attends to the text against too."""
    module = net.get_submodule(name)
    original = computing_at_once(module, original)

    def answer(call: BoundArguments) -> object:
        found: list[Tensor] = []

        def keep(*args: Any, **kwargs: Any) -> Tensor:
            found.append(F.scaled_dot_product_attention(*args, **kwargs))
            return found[-1]

        def mix(*args: Any, **kwargs: Any) -> Tensor:
            return contrast(F.scaled_dot_product_attention(*args, **kwargs), found[-1])

        against = _against(net, inputs, call.arguments["hidden_states"])
        intercepted(name, module, keep, lambda: run_call(original, call, against))
        return intercepted(name, module, mix, lambda: run_call(original, call))

    return with_call(original, answer)


def _against(net: nn.Module, inputs: LayerInputs, hidden: Tensor) -> dict[str, Tensor | None]:
    """Return the text against as a layer's inputs, mapped by the network, its mask as a bias."""
    states, mask = text_against(net, inputs), inputs.get(f"{AGAINST}encoder_attention_mask")
    project = getattr(net, "caption_projection", None) or getattr(net, "encoder_hid_proj", None)
    record = record_of(net)
    if record is not None and record.text:
        project = net.get_submodule(record.text)
    states = project(states) if project else states
    if isinstance(net, SequenceTransformer):  # it attends by the mask itself
        return {"encoder_hidden_states": states, "attention_mask": mask}
    bias = None if mask is None else ((1 - mask.to(hidden.dtype)) * -10000.0).unsqueeze(1)
    return {"encoder_hidden_states": states, "attention_mask": bias}


def refuse_image_prompts(net: nn.Module) -> None:
    """Refuse a network whose cross-attention takes pictures together with the text."""
    if (
        getattr(net, "encoder_hid_proj", None) is not None
        and getattr(net, "config").encoder_hid_dim_type != "text_proj"  # noqa: B009
    ):
        raise ValueError(
            f"a {type(net).__name__} that takes pictures with its text (an IP-Adapter's) "
            "cannot be contrasted in its attention to the text; "
            "leave nag out, or take the adapter off first: pipe.unload_ip_adapter()"
        )
