"""TCFG: classifier-free guidance without the tangential part of the null prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...core.denoiser import Condition
from ...core.prediction import Prediction
from ..bases.conditional_contrast import Conditioned
from ..bases.statistics import dot, norm, safe
from ..expression import register
from ..term import Live, Pushed


@register
@dataclass(frozen=True)
class TCFG(Conditioned):
    """Tangential damping: ``ε̂ = u' + s(c − u')`` with ``u' = ⟨u, v₁⟩ v₁``, in ε.

    v₁ is the first right singular vector of the two rows [c; u]: ``v₁ ∝ cos θ c + sin θ u`` with
    ``2θ = atan2(2⟨c, u⟩, ‖c‖² − ‖u‖²)``, the singular value decomposition of two rows in closed
    form, which does not wait for the device.

    Args:
        scale: s, as in cfg.
        negative: as in cfg.

    2 evaluations a step. Per sample, in ε whatever the network predicts. The push is 0 at alpha =
    0, where ε is x_t/σ for any x0.

    References:
        TCFG: Tangential Damping Classifier-free Guidance, https://arxiv.org/abs/2503.18137
            Mingi Kwon, Shin Seong Kim, Jaeseok Jeong, Yi Ting Hsiao, Youngjung Uh
    """

    negative: str | int | Condition | None = None
    name = "tcfg"

    def shape(self, good: Prediction, bad: Prediction, live: Live) -> Pushed:
        c, u = good.eps, bad.eps
        angle = torch.atan2(2 * dot(c, u), dot(c, c) - dot(u, u)) / 2
        v = angle.cos() * c + angle.sin() * u
        v = v / safe(norm(v))
        return good.to_x0(c - dot(u, v) * v, "eps"), live.state
