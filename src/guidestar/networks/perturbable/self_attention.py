"""Replace the self-attention of a layer, in some rows of a network call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import BoundArguments
from typing import Any

from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.hooks import Forward, replaced, replacement
from ...core.perturbation import Attention, Rows
from ..motion import MotionTransformer
from .hooks import LayerInputs, computing_at_once, intercepted, run_call, with_call
from .kinds import OF_SEQUENCES
from .records import record_of
from .rows import AttentionChange, by_rows


@contextmanager
def attending(
    net: nn.Module,
    name: str,
    inputs: LayerInputs,
    attend: Callable[[Attention], Tensor],
    rows: Rows | None,
) -> Iterator[None]:
    """Replace the self-attention of one layer by ``attend``, in ``rows`` (None: all)."""
    module, own = net.get_submodule(name), (attend, rows)
    changes: list[AttentionChange] = getattr(replacement(module), "changes", [])
    with ExitStack() as stack:
        if rows is None or not changes:
            changes = []
            stack.enter_context(
                replaced(module, partial(_change_attention, net, name, inputs, changes))
            )
        changes.append(own)  # beside changes of other rows of the same call
        stack.callback(changes.remove, own)
        yield


def _change_attention(
    net: nn.Module,
    name: str,
    inputs: LayerInputs,
    changes: list[AttentionChange],
    original: Forward,
) -> Forward:
    """Return a layer's forward in which each change has its rows."""
    module = net.get_submodule(name)
    original = computing_at_once(module, original)

    def compute(call: BoundArguments) -> object:
        hidden = call.arguments["hidden_states"]

        def change(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any) -> Tensor:
            record, tokens, here = record_of(net), query.shape[2], changes
            if record is None:
                image = find_image(net, inputs, hidden, tokens)
                grid = lambda: find_grid(net, inputs, hidden, image.stop - image.start)
            else:
                image = record.image(net, name, inputs, tokens)
                grid = lambda: record.find_grid(net, name, inputs, image.stop - image.start)
                here = record.spread_all(changes, len(query))

            def answer(part: slice, attend: Callable[[Attention], Tensor]) -> Tensor:
                q, k, v = query[part], key[part], value[part]

                def own(mask: Any) -> Any:
                    return (
                        mask[part]
                        if isinstance(mask, Tensor)
                        and mask.ndim == query.ndim
                        and len(mask) == len(query)
                        else mask
                    )

                plain = lambda q: F.scaled_dot_product_attention(
                    q, k, v, *map(own, rest), **{name: own(m) for name, m in more.items()}
                )
                return attend(
                    Attention(
                        query=q, key=k, value=v, image=image, with_query=plain, find_grid=grid
                    )
                )

            return by_rows(here, query, answer)

        return intercepted(name, module, change, lambda: run_call(original, call))

    forward = with_call(original, compute)
    vars(forward)["changes"] = changes
    return forward


def find_image(net: nn.Module, inputs: LayerInputs, hidden: Tensor, tokens: int) -> slice:
    """Find the picture's tokens: after the text in Flux, before it in SD3, after the first token of
    motions, else all tokens.
    """
    if isinstance(net, MotionTransformer):
        return slice(1, tokens)
    if isinstance(net, FluxTransformer2DModel):
        return slice(tokens - inputs["img_ids"].shape[-2], tokens)
    return slice(0, hidden.shape[1] if hidden.ndim == 3 else hidden[0, 0].numel())


def find_grid(net: nn.Module, inputs: LayerInputs, hidden: Tensor, tokens: int) -> tuple[int, ...]:
    """Return the sizes of the picture's grid of tokens, or the number of tokens of a sequence."""
    if isinstance(net, OF_SEQUENCES):
        return (tokens,)
    if hidden.ndim == 4:
        return hidden.shape[2], hidden.shape[3]
    if isinstance(net, FluxTransformer2DModel):
        height = int(inputs["img_ids"].reshape(-1, inputs["img_ids"].shape[-1])[:, 1].max()) + 1
        return height, tokens // height
    height, width = next(iter(inputs.values())).shape[-2:]
    # The picture shrinks by one factor in both directions; a U-Net rounds up or down, by its
    # padding.
    sizes = [(-(-height // f), -(-width // f)) for f in range(1, max(height, width) + 1)]
    sizes += [(height // f, width // f) for f in range(2, min(height, width) + 1)]
    return next(size for size in sizes if size[0] * size[1] == tokens)
