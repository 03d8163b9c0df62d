"""Give a network the interval of a step as an input, so that one pass takes the step whole (a
student that learned average velocities).
"""

from __future__ import annotations

from contextvars import ContextVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.denoiser import INTERVAL
from .guidance_scale import InputBesideTime


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


class IntervalNetwork(InputBesideTime):
    """A network that takes the interval of a step, ``interval [B]``, which is 0 if missing."""

    key, part = INTERVAL, "interval"
    embedding = ContextVar("embedding of a step's interval", default=None)
    takes_interval = True
    interval: Interval
