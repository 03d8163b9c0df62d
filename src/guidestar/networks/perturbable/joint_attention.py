"""Attention to a second text in blocks of joint attention (SD3, Flux).

There text and picture attend to each other, and both are changed by each block. So the state of a
second text at a block depends on all blocks before: the text against goes through the network
beside the text, with the same picture. Each block runs twice: with the text against, whose new
state is kept, and with the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from inspect import BoundArguments
from typing import Any

from diffusers.models.attention import JointTransformerBlock
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformer2DModel,
    FluxTransformerBlock,
)
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.hooks import Forward, replaced
from ...core.perturbation import AGAINST, joined
from .hooks import LayerInputs, intercepted, run_call, with_call

BLOCKS = (JointTransformerBlock, FluxTransformerBlock, FluxSingleTransformerBlock)
TextContrast = Callable[[Tensor, Tensor], Tensor]


@dataclass
class _Stream:
    """The text against, from block to block; the last block of SD3 returns none."""

    text: Tensor | None = None


@contextmanager
def beside(
    net: nn.Module, names: Sequence[str], inputs: LayerInputs, contrast: TextContrast
) -> Iterator[None]:
    """Let joint attention return ``contrast(Z⁺, Z⁻)`` for the picture's tokens.

    The text against passes through the blocks beside the text. Each text keeps its attention, and
    both are modulated alike.

    Args:
        net: a network with joint blocks.
        names: of their layers of attention.
        inputs: the network's inputs by name, renewed at each call.
        contrast: of ``[B, heads, tokens, d]``, before the output map.
    """
    blocks = {
        f"{name}.attn": block for name, block in net.named_modules() if isinstance(block, BLOCKS)
    }
    last, stream = max(map(list(blocks).index, names)), _Stream()

    def enter(original: Forward) -> Forward:
        def forward(*args: object, **kwargs: object) -> object:
            stream.text = original(_text_as_long(net, inputs))
            return original(*args, **kwargs)

        return forward

    with ExitStack() as stack:
        stack.enter_context(replaced(net.get_submodule("context_embedder"), enter))
        for name, block in list(blocks.items())[: last + 1]:
            changed = partial(_attending, name, block.attn) if name in names else nullcontext
            stack.enter_context(replaced(block, partial(_twice, block, stream, changed, contrast)))
        yield


def text_against(net: nn.Module, inputs: LayerInputs) -> Tensor:
    """Return the text against, as the network takes text.

    Raises:
        ValueError: there is no such text.
    """
    text = inputs.get(f"{AGAINST}encoder_hidden_states")
    if text is None:
        raise ValueError(
            f"{type(net).__name__} got no text to contrast with (encoder_hidden_states); give a "
            "negative prompt"
        )
    return text


def _text_as_long(net: nn.Module, inputs: LayerInputs) -> Tensor:
    """Return the text against; in Flux, with its ``txt_ids``, it must be as long as the text."""
    text, words = text_against(net, inputs), inputs["encoder_hidden_states"].shape[1]
    if isinstance(net, FluxTransformer2DModel) and text.shape[1] != words:
        raise ValueError(
            f"the text to contrast with has {text.shape[1]} tokens and the prompt {words}; "
            f"{type(net).__name__} has places for as many: encode both to one length"
        )
    return text


def _twice(
    block: nn.Module,
    stream: _Stream,
    changed: Callable[[Callable[..., Tensor]], AbstractContextManager[object]],
    contrast: TextContrast,
    original: Forward,
) -> Forward:
    """Return a block's forward that first runs with the text against."""

    def answer(call: BoundArguments) -> object:
        mixed = _Mixed(
            contrast=contrast,
            first=isinstance(block, JointTransformerBlock),
            tokens=call.arguments["hidden_states"].shape[1],
        )
        with changed(mixed.keep):
            stream.text, _ = run_call(original, call, {"encoder_hidden_states": stream.text})
        with changed(mixed.mix):
            return run_call(original, call)

    return with_call(original, answer)


@contextmanager
def _attending(name: str, module: nn.Module, call: Callable[..., Tensor]) -> Iterator[None]:
    def change(original: Forward) -> Forward:
        return lambda *args, **kwargs: intercepted(
            name, module, call, lambda: original(*args, **kwargs)
        )

    with replaced(module, change):
        yield


@dataclass(kw_only=True)
class _Mixed:
    """The attention of a block: first with the text against, then its own, contrasted with it.

    Args:
        contrast: of the picture's tokens.
        first: they are before the text (SD3) or after it (Flux).
        tokens: how many they are.
    """

    contrast: TextContrast
    first: bool
    tokens: int
    found: list[Tensor] = field(default_factory=list)

    def keep(self, *args: Any, **kwargs: Any) -> Tensor:
        z = F.scaled_dot_product_attention(*args, **kwargs)
        self.found.append(z)
        return z

    def mix(self, *args: Any, **kwargs: Any) -> Tensor:
        z, against = F.scaled_dot_product_attention(*args, **kwargs), self.found.pop()
        before, good, after = self._split(z)
        return joined([before, self.contrast(good, self._split(against)[1]), after], 1)

    def _split(self, z: Tensor) -> tuple[Tensor, ...]:
        text = z.shape[2] - self.tokens
        return z.split([0, self.tokens, text] if self.first else [text, self.tokens, 0], 2)
