"""Loss-guided diffusion: the loss averaged over the distribution of the clean sample."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...core.arguments import check_counts
from ...core.levels import expand
from ...core.prediction import Prediction
from ..bases.loss_term import Steered, displacing, smoothed, spread
from ..expression import register
from ..term import Live, Pushed, Traits


@register
@dataclass(frozen=True)
class LGD(Steered):
    """Loss-guided diffusion by Monte Carlo: ``d = ζ ∇_{x_t} log mean_i exp(−ℓ(D + r n_i))``.

    ``r = ρ/√(1 + ρ²)`` is the deviation of the clean sample from its estimate, for data of variance
    1; n_i ~ N(0, I) are drawn for each sample and step. d displaces x_s, with the sizes of dps.

    Args:
        scale: ζ.
        loss: ℓ: an `Observation`, or any differentiable ``loss(x0) -> [B]``, or the name of a loss
            of the run.
        samples: how many n_i, usually 5 to 10.
        through: the pass of the clean estimate, "cond", "uncond" or "neg"; by default the base.

    1 evaluation and 1 gradient through the network a step, and as many of the loss as there are
    samples. Needs the samples' seeds.

    References:
        Loss-Guided Diffusion Models for Plug-and-Play Controllable Generation,
        https://proceedings.mlr.press/v202/song23k.html
            Jiaming Song, Qinsheng Zhang, Hongxu Yin, Morteza Mardani, Ming-Yu Liu, Jan Kautz,
            Yongxin Chen, Arash Vahdat
    """

    samples: int = 8
    name = "lgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, self.name)
        if self.samples < 1:
            raise ValueError(f"lgd: there must be at least one sample, not {self.samples}")

    @property
    def traits(self) -> Traits:
        return replace(super().traits, reads_target=True, repeats=self.samples - 1)

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        energy = smoothed(self.loss_of(live), live, self.samples, spread(live.step.t))
        gradient = live.gradient(energy, *predictions)
        return expand(displacing(live.step), gradient) * gradient, live.state
