"""The residual network of the classifiers, over pictures or sequences."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.levels import Value
from .calibrated_heads import _CalibratedHead

Conv = type[nn.Conv1d] | type[nn.Conv2d]


class _Block(nn.Module):
    """A pre-activation residual block, scaled and shifted by the time embedding."""

    def __init__(
        self, conv: Conv, inputs: int, outputs: int, time: int, stride: int, groups: int
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inputs), nn.GroupNorm(groups, outputs)
        self.conv1, self.conv2 = (
            conv(inputs, outputs, 3, stride, 1),
            conv(outputs, outputs, 3, 1, 1),
        )
        self.time = nn.Linear(time, 2 * outputs) if time else None
        self.skip = conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.time is not None and emb is not None:
            scale, shift = self.time(F.silu(emb))[(..., *[None] * (h.ndim - 2))].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


class _Residual(_CalibratedHead):
    """Mixin of residual networks: each width after the first halves the resolution."""

    def _build(self: Any, conv: Conv) -> None:
        """Make the layers that the config describes, and take its other settings over."""
        config = self.config
        self.noise_aware, self.outputs = config.noise_aware, config.outputs
        self.temperature, self.rho_max = config.temperature, config.rho_max
        self.temperatures = tuple((float(r), float(t)) for r, t in config.temperatures)
        widths, layers, groups = config.widths, config.layers, config.groups
        outputs = 2 * self.outputs if self.outputs else len(config.classes)
        time = 4 * widths[0] if self.noise_aware else 0
        self.stem = conv(config.channels, widths[0], 3, 1, 1)
        self.frequencies = Timesteps(widths[0], True, 0)
        self.time = TimestepEmbedding(widths[0], time) if self.noise_aware else None
        pairs = [(widths[0], widths[0], 1)] + [(a, b, 2) for a, b in pairwise(widths)]
        blocks = [
            _Block(conv, a if j == 0 else b, b, time, stride if j == 0 else 1, groups)
            for a, b, stride in pairs
            for j in range(layers)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.GroupNorm(groups, widths[-1])
        self.drop = nn.Dropout(config.dropout)
        self.head = nn.Linear(widths[-1], outputs)

    def _features(self: Any, x: Tensor, time: Value) -> Tensor:
        emb = None
        if self.time is not None:
            times = (
                time.to(x.device)
                if isinstance(time, Tensor)
                else torch.full((len(x),), time, device=x.device)
            )
            emb = self.time(self.frequencies(times).to(x.dtype))
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, emb)
        return F.silu(self.norm(h)).mean(tuple(range(2, h.ndim)))
