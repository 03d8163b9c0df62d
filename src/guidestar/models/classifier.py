"""Image classifiers: noise-aware ones that guide, and clean ones that judge."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from ..levels import Value
from ._telling import _Telling


class _Block(nn.Module):
    """A pre-activation residual block, scaled and shifted by the time embedding."""

    def __init__(self, inputs: int, outputs: int, time: int, stride: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inputs), nn.GroupNorm(groups, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.time = nn.Linear(time, 2 * outputs) if time else None
        self.skip = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.time is not None and emb is not None:
            scale, shift = self.time(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


class Classifier(_Telling, ModelMixin, ConfigMixin):
    """A small residual network over images ``[B, C, H, W]`` in [−1, 1].

    Args:
        classes: names of the classes.
        channels: colour channels.
        widths: channels of each resolution; the first halves nothing, each further one halves.
        layers: residual blocks at each resolution.
        groups: groups of the group normalisations.
        noise_aware: told the noise level, and its input scaled to unit size there.
        dropout: before the last layer, in training.
        temperature: divides the logits (1: as trained).
        temperatures: further divide them, by noise ratio: (rho, T), interpolated in ln rho.
        outputs: it is a regressor of so many numbers, in place of classes.
        centre, spread: mean and standard deviation of those numbers, in whose units its head works.
        rho_max: noise ratio above which the classifier was found to know too little to guide.
    """

    @register_to_config
    def __init__(
        self,
        classes: Sequence[str],
        channels: int = 1,
        widths: Sequence[int] = (32, 64, 128),
        layers: int = 1,
        groups: int = 8,
        noise_aware: bool = True,
        dropout: float = 0.0,
        temperature: float = 1.0,
        rho_max: float | None = None,
        temperatures: Sequence[tuple[float, float]] = (),
        outputs: int | None = None,
        centre: Sequence[float] | None = None,
        spread: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.noise_aware, self.temperature, self.rho_max, self.outputs = noise_aware, temperature, rho_max, outputs
        self.temperatures = tuple((float(r), float(t)) for r, t in temperatures)
        time = 4 * widths[0] if noise_aware else 0
        self.stem = nn.Conv2d(channels, widths[0], 3, 1, 1)
        self.frequencies = Timesteps(widths[0], True, 0)
        self.time = TimestepEmbedding(widths[0], time) if noise_aware else None
        pairs = [(widths[0], widths[0], 1)] + [(a, b, 2) for a, b in pairwise(widths)]
        blocks = [_Block(a if j == 0 else b, b, time, stride if j == 0 else 1, groups) for a, b, stride in pairs for j in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.GroupNorm(groups, widths[-1])
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], 2 * outputs if outputs else len(classes))

    def features(self, x: Tensor, time: Value = 0.0) -> Tensor:
        """Return the penultimate features ``[B, widths[-1]]``."""
        emb = None
        if self.time is not None:
            times = time.to(x.device) if isinstance(time, Tensor) else torch.full((len(x),), time, device=x.device)
            emb = self.time(self.frequencies(times).to(x.dtype))
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, emb)
        return F.silu(self.norm(h)).mean((2, 3))
