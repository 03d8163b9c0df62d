"""Give a network the interval of a step as an input, so that one pass takes the step whole (a
student that learned average velocities).
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.denoiser import INTERVAL
from .guidance_scale import hook_time_embeddings

_EMBEDDING: ContextVar[Tensor | None] = ContextVar("embedding of a step's interval", default=None)


class Interval(ModelMixin, ConfigMixin):
    """Embed the share ``l`` of the time that a step covers: ``W₂ silu(W₁ f(l))``.

    ``f_k(l) = sin(π 2^{k/2−2} l)``. There are no biases, so the embedding of ``l = 0`` (the
    velocity at one level) is exactly zero; and ``W₂`` starts at zero, so before training that of
    every interval is.

    Args:
        width: length of the network's time embedding.

    References:
        Mean Flows for One-step Generative Modeling, table 1c, https://arxiv.org/abs/2505.13447
    """

    frequencies = 8

    @register_to_config
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(self.frequencies, width, bias=False)
        self.second = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.second.weight)

    def forward(self, interval: Tensor) -> Tensor:
        """Embed shares ``[B]`` as ``[B, width]``."""
        dtype = torch.promote_types(interval.dtype, torch.float32)
        powers = torch.arange(self.frequencies, device=interval.device, dtype=dtype)
        waves = (torch.pi * 2 ** (powers / 2 - 2) * interval.to(dtype)[:, None]).sin()
        return self.second(F.silu(self.first(waves.to(self.first.weight.dtype))))


class IntervalNetwork(nn.Module):
    """A network that takes the interval of a step: its embedding is added to that of the time.

    Args:
        net: called as ``net(x, t, **cond)``; the time must go through Diffusers'
            `TimestepEmbedding`, as in all of Diffusers' networks.
        interval: embeds it.

    Raises:
        ValueError: the network has no time embedding of the width of ``interval``.
    """

    takes_interval = True

    def __init__(self, net: nn.Module, interval: Interval) -> None:
        super().__init__()
        self.net, self.interval = net, interval
        hook_time_embeddings(net, interval.config["width"], _add_embedding, "the interval")

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Any:
        """Call the network; ``interval [B]`` in ``cond`` is embedded, and 0 if missing."""
        interval = cond.pop(INTERVAL, None)
        token = _EMBEDDING.set(None if interval is None else self.interval(interval))
        try:
            return self.net(x, t, **cond)
        finally:
            _EMBEDDING.reset(token)


def _add_embedding(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    extra = _EMBEDDING.get()
    return output if extra is None else output + extra.to(output.dtype)
