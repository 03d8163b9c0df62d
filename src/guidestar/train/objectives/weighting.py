"""Loss weightings: what multiplies ``‖D − x0‖²``, so that they mean the same whatever the network
predicts.

With ``ρ = σ/α`` and ``SNR = 1/ρ²``. A weighting of the squared error of ε is ``SNR`` times smaller,
of v (on a variance-preserving schedule) ``SNR + 1`` times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...core.levels import Level, Value, divide
from ...core.prediction import Space, slope


def _snr(level: Level) -> Value:
    return divide(level.alpha, level.sigma) ** 2


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Weight errors equally in one space: ``k(level)²``, where ``Δ_space = k Δx0``."""

    space: Space = "v"

    def __call__(self, level: Level) -> Value:
        """Return the weight of a level."""
        return slope(level, self.space) ** 2


@dataclass(frozen=True, kw_only=True)
class MinSNR:
    """Weight by ``min(SNR, γ)``.

    References:
        Efficient Diffusion Training via Min-SNR Weighting Strategy,
        https://arxiv.org/abs/2303.09556
    """

    gamma: float = 5.0

    def __call__(self, level: Level) -> Value:
        """Return the weight of a level."""
        snr = _snr(level)
        return snr.clamp(max=self.gamma) if isinstance(snr, torch.Tensor) else min(snr, self.gamma)


@dataclass(frozen=True, kw_only=True)
class SNRPlusOne:
    """Weight by ``SNR + 1`` (errors of v, on a variance-preserving schedule).

    References:
        Progressive Distillation, section 4, https://arxiv.org/abs/2202.00512
    """

    def __call__(self, level: Level) -> Value:
        """Return the weight of a level."""
        return _snr(level) + 1


@dataclass(frozen=True, kw_only=True)
class EDM:
    """Weight by ``(ρ² + d²)/(ρ d)² = SNR + 1/d²``, with which the loss of EDM's network starts at
    unit size.

    Args:
        sigma_data: d, standard deviation of the data.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, table 1,
        https://arxiv.org/abs/2206.00364
    """

    sigma_data: float = 0.5

    def __call__(self, level: Level) -> Value:
        """Return the weight of a level."""
        return _snr(level) + 1 / self.sigma_data**2


@dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """Weight errors of ε by ``sigmoid(b − ln SNR)``, that is by ``SNR·sigmoid(b − ln SNR)`` here.

    References:
        Understanding Diffusion Objectives as the ELBO, https://arxiv.org/abs/2303.00848
        Simpler Diffusion (SiD2), https://arxiv.org/abs/2410.19324
    """

    bias: float = 0.0

    def __call__(self, level: Level) -> Value:
        """Return the weight of a level."""
        # SNR sigmoid(b − ln SNR) = SNR e^b / (e^b + SNR)
        snr, e = _snr(level), torch.tensor(self.bias, dtype=torch.float64).exp().item()
        return snr * e / (e + snr)
