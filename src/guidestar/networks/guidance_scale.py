"""Give a network the guidance scale as an input, so that one pass gives what guidance of that scale
gives (a distilled student).
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from .interval import Interval

KEY = "guidance_scale"
"""The name of the scale among a network's conditions."""

_OTHER = ("add_embedding", "guidance_embedder")
"""Embeddings of a network that are not of its time."""


class GuidanceScale(ModelMixin, ConfigMixin):
    """Embed a guidance scale ``w``: ``W₂ silu(W₁ f(w))`` with ``f_k(w) = sin(2^{k/2−3}(w − 1))``.

    There are no biases, so the embedding of ``w = 1`` (no guidance) is exactly zero; and ``W₂``
    starts at zero, so before training that of every scale is.

    Args:
        width: length of the network's time embedding.
        low: smallest scale of the training.
        high: largest scale of the training.
        default: the scale that is used where none is given.

    References:
        On Distillation of Guided Diffusion Models, section 3.1, https://arxiv.org/abs/2210.03142
    """

    frequencies = 12

    @register_to_config
    def __init__(self, width: int, low: float, high: float, default: float) -> None:
        super().__init__()
        if not low <= default <= high:
            raise ValueError(
                f"the default scale must be in the range of the training, [{low:g}, {high:g}], "
                f"not {default:g}"
            )
        self.low, self.high, self.default = low, high, default
        self.first = nn.Linear(self.frequencies, width, bias=False)
        self.second = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.second.weight)

    def forward(self, scale: Tensor) -> Tensor:
        """Embed scales ``[B]`` as ``[B, width]``."""
        powers = torch.arange(self.frequencies, device=scale.device, dtype=torch.float32)
        waves = ((scale.float() - 1)[:, None] * 2 ** (powers / 2 - 3)).sin()
        return self.second(F.silu(self.first(waves.to(self.first.weight.dtype))))


class InputBesideTime(nn.Module, ABC):
    """A network that takes one more number a sample: its embedding is added to that of the time.

    A subclass names the number and has its embedding in a context variable of its own, so that one
    such network may hold another.

    Args:
        net: called as ``net(x, t, **cond)``; the time must go through Diffusers'
            `TimestepEmbedding`, as in all of Diffusers' networks.
        embed: embeds numbers ``[B]`` as ``[B, width]``.

    Raises:
        ValueError: the network has no time embedding of the width of ``embed``.
    """

    key: ClassVar[str]
    """The name of the number among the conditions."""
    part: ClassVar[str]
    """The name of the part that embeds it, in words and in the state dict."""
    embedding: ClassVar[ContextVar[Tensor | None]]
    """That of the call under way."""

    def __init__(self, net: nn.Module, embed: GuidanceScale | Interval) -> None:
        super().__init__()
        self.net = net
        self.add_module(self.part, embed)
        width = embed.config["width"]
        hook_time_embeddings(net, width, type(self)._add_embedding, f"the {self.part}")

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Any:
        """Call the network; without the number in ``cond`` nothing is added."""
        given = cond.pop(self.key, None)
        embed = self.get_submodule(self.part)
        token = self.embedding.set(None if given is None else embed(given))
        try:
            return self.net(x, t, **cond)
        finally:
            self.embedding.reset(token)

    @classmethod
    def _add_embedding(cls, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        extra = cls.embedding.get()
        return output if extra is None else output + extra.to(output.dtype)


class ScaledNetwork(InputBesideTime):
    """A network that takes a guidance scale, ``guidance_scale [B]``, which is 1 if missing."""

    key, part = KEY, "scale"
    embedding = ContextVar("embedding of the guidance scale", default=None)
    scale: GuidanceScale


def hook_time_embeddings(
    net: nn.Module, width: int, hook: Callable[[nn.Module, Any, Tensor], Tensor], what: str
) -> None:
    """Let ``hook`` change what a network's embeddings of the time give.

    Args:
        net: the network.
        width: of the embedding that the hook adds.
        hook: of PyTorch, called with the module, its inputs and its output.
        what: the hook adds, for the message.

    Raises:
        ValueError: the network has no time embedding of that width.
    """
    found = {name: m for name, m in time_embeddings(net).items() if _width(m) == width}
    if not found:
        raise ValueError(
            f"{type(net).__name__} has no time embedding of width {width}; embed {what} in "
            f"the width of the network's own: {embedding_width(net)}"
        )
    for module in found.values():
        module.register_forward_hook(hook)


def time_embeddings(net: nn.Module) -> dict[str, TimestepEmbedding]:
    """Return the modules that embed a network's time, by name."""
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, TimestepEmbedding) and not any(o in name for o in _OTHER)
    }


def _width(embedding: TimestepEmbedding) -> int:
    return embedding.linear_2.out_features


def embedding_width(net: nn.Module) -> int:
    """Return the width of a network's time embedding.

    Raises:
        ValueError: it has none, or several of different widths.
    """
    widths = {_width(m) for m in time_embeddings(net).values()}
    if len(widths) != 1:
        raise ValueError(
            f"{type(net).__name__} has {len(widths) or 'no'} kinds of time embedding of Diffusers "
            "(TimestepEmbedding), so neither a guidance scale nor an interval can be added to it; "
            "distil a fixed guidance instead, without w, by another method than meanflow"
        )
    return widths.pop()
