"""Adaptive projected guidance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.denoiser import Condition
from ...core.prediction import Prediction
from ..bases.conditional_contrast import Conditioned
from ..bases.statistics import dot, norm, safe
from ..expression import register
from ..term import Live, Pushed, TermState
from ..weights import finite


@register
@dataclass(frozen=True)
class APG(Conditioned):
    """Adaptive projected guidance: cfg without the part of its push that over-saturates.

    In x0, with c and u the conditional and the null estimate:

        Δ̄ = (c − u) + β Δ̄_prev          (kept from step to step, not clipped)
        Δ = Δ̄ · min(1, r / ‖Δ̄‖)         split into Δ∥ and Δ⊥, along and across c
        D̂ = c + (s − 1)(Δ⊥ + η Δ∥)

    Args:
        scale: s, as in cfg.
        eta: share of the parallel part that is kept, usually 0.
        momentum: β, usually −0.5.
        radius: r, an L2 norm over all dimensions, so it does not carry over between models
            (15 for SDXL); none by default.
        negative: as in cfg.

    2 evaluations a step. Norms and projections are per sample, in x0 whatever the network predicts.

    References:
        Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models,
        https://arxiv.org/abs/2410.02416
            Seyedmorteza Sadat, Otmar Hilliges, Romann M. Weber
    """

    eta: float = 0.0
    momentum: float = -0.5
    radius: float | None = None
    negative: str | int | Condition | None = None
    name = "apg"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eta", "momentum", "radius"):
            number = getattr(self, name)
            if not finite(number) and (name, number) != ("radius", None):
                raise ValueError(f"apg: {name} must be a finite number, not {number!r}")
        if self.radius is not None and self.radius <= 0:
            raise ValueError(f"apg: the radius must be positive, not {self.radius}")

    def start(self, x_t: Tensor) -> TermState:
        return {"average": torch.zeros_like(x_t)} if self.momentum else {}

    def shape(self, good: Prediction, bad: Prediction, live: Live) -> Pushed:
        average = good.x0 - bad.x0
        if self.momentum:
            average = average + self.momentum * live.state["average"]
        delta = average
        if self.radius is not None:
            delta = delta * (self.radius / safe(norm(delta))).clamp_max(1)
        along = good.x0 * (dot(delta, good.x0) / safe(dot(good.x0, good.x0)))
        return delta - (1 - self.eta) * along, {"average": average} if self.momentum else {}
