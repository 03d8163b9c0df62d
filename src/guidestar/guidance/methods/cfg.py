"""Classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...core.arguments import check_counts
from ...core.denoiser import Condition
from ...core.prediction import Prediction
from ..bases.conditional_contrast import Conditioned
from ..expression import register
from ..term import Live, Pushed


@register
@dataclass(frozen=True)
class CFG(Conditioned):
    """Classifier-free guidance: ``D̂ = u + s(c − u)``, written ``c + (s − 1)(c − u)``.

    Args:
        scale: s; 1 is the plain conditional model, 0 the bad pass; Ho and Salimans' w is s − 1.
            Usual: 1.25–1.5 for DiT, 7.5 for Stable Diffusion.
        negative: a name, prompt or `Condition` to move away from, ``n + s(c − n)``; by default the
            run's negative, else the null.
        channels: guide only this many channels, the first ones (DiT guides 3 of 4).

    2 evaluations a step. Linear, so it is the same in every space.

    References:
        Classifier-Free Diffusion Guidance, https://arxiv.org/abs/2207.12598
            Jonathan Ho, Tim Salimans
        Scalable Diffusion Models with Transformers (channel subset),
        https://arxiv.org/abs/2212.09748
            William Peebles, Saining Xie
    """

    negative: str | int | Condition | None = None
    channels: int | None = None
    name = "cfg"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, self.name)
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"cfg: channels must be at least 1, not {self.channels}")

    def shape(self, good: Prediction, bad: Prediction, live: Live) -> Pushed:
        delta = good.x0 - bad.x0
        if self.channels is not None:
            rest = torch.zeros_like(delta[:, self.channels :])
            delta = torch.cat([delta[:, : self.channels], rest], dim=1)
        return delta, live.state
