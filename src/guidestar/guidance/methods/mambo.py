"""MAMBO-G: a scale that falls where the push is large."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...core.denoiser import Condition
from ...core.prediction import Prediction, Space
from ..bases.conditional_contrast import Conditioned
from ..bases.statistics import norm
from ..expression import register
from ..term import Live, Pushed
from ..weights import finite


@register
@dataclass(frozen=True)
class Mambo(Conditioned):
    """Magnitude-aware guidance: ``u + s'(c − u)``, ``s' = 1 + (s − 1) exp(−a ‖c − u‖/‖u‖)``.

    Args:
        scale: s, usually 10.
        damping: a, 0 or more, usually 8; 0 is cfg.
        space: the space of the norms: velocity, or the network's output (eps, v, x0), to match a
            pipeline.
        negative: as in cfg.

    2 evaluations a step. Norms are per sample, over all dimensions.

    References:
        MAMBO-G: Magnitude-Aware Mitigation for Boosted Guidance, https://arxiv.org/abs/2508.03442
            Shangwen Zhu, Qianyu Peng, Zhilei Shu, Yuting Hu, Zhantao Yang, Han Zhang, Zhao Pu, Andy
            Zheng, Xinyu Cui, Jian Zhao, Ruili Feng, Fan Cheng
    """

    damping: float = 8.0
    space: Space = "velocity"
    negative: str | int | Condition | None = None
    name = "mambo"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not finite(self.damping) or self.damping < 0:
            raise ValueError(f"mambo: the damping must be 0 or more, not {self.damping!r}")
        if self.space not in ("v", "eps", "x0", "velocity"):
            raise ValueError(f"mambo: the space must be velocity, v, eps or x0, not {self.space!r}")

    def shape(self, good: Prediction, bad: Prediction, live: Live) -> Pushed:
        c, u = good.view(self.space), bad.view(self.space)
        # For a null prediction of 0 the ratio is the largest number, so there is no push.
        limits = torch.finfo(c.dtype)
        ratio = (norm(c - u) / norm(u).clamp_min(limits.tiny)).clamp_max(limits.max)
        return (-self.damping * ratio).exp() * (good.x0 - bad.x0), live.state
