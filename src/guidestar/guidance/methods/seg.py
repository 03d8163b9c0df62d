"""Smoothed-energy guidance."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...core.arguments import check_arguments
from ...core.denoiser import Denoiser
from ...core.passes import Inputs, Perturbation
from ...core.perturbation import Attention, Rows, layers_of
from ..bases.blur import blur
from ..bases.perturbation_contrast import Perturbed
from ..expression import register


@register
@dataclass(frozen=True)
class SEG(Perturbed):
    """Smoothed-energy guidance: away from a network whose attention has blurred queries.

    ``D̂ = c + s (c − c_p)``. In c_p the queries of some layers of self-attention are blurred over
    the picture: ``softmax((G_σ Q) Kᵀ/√d) V``. As σ → ∞ every token has the mean query.

    Args:
        scale: s, usually 3.
        layers: names of layers of self-attention; by default those of the middle block.
        of: as in pag.
        sigma: σ of the Gaussian, in tokens, cut off at 3σ and mirrored about the tokens at the
            edges, as in the paper's code; by default infinite, the mean of all queries. Some public
            code does not change the queries at σ = ∞, so its extra pass equals c.

    1 evaluation more than the other terms. Linear, so it is the same in every space.

    References:
        Smoothed Energy Guidance: Guiding Diffusion Models with Reduced Energy Curvature of
        Attention,
        https://arxiv.org/abs/2408.00760
            Susung Hong
    """

    sigma: float = math.inf
    name = "seg"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_arguments(self, self.name, "sigma")
        if not self.sigma > 0:
            raise ValueError(f"seg: sigma must be positive, not {self.sigma!r}")

    def change(self) -> Perturbation:
        return BlurredQueries(layers=tuple(self.layers), sigma=self.sigma)


@dataclass(frozen=True, kw_only=True)
class BlurredQueries:
    """Blurs the queries of self-attention over the picture.

    Args:
        layers: names of layers of self-attention.
        sigma: σ of the Gaussian, in tokens.
    """

    layers: tuple[str, ...] = ()
    sigma: float = math.inf
    name: ClassVar[str] = "seg"

    def __call__(
        self, denoiser: Denoiser, rows: Rows | None = None, inputs: Inputs | None = None
    ) -> AbstractContextManager[None]:
        return layers_of(denoiser).attending(self.layers, self._attend, rows)

    def _attend(self, a: Attention) -> Tensor:
        return a.with_query(a.replace(a.query, self._blur(a.query[:, :, a.image], a)))

    def _blur(self, query: Tensor, a: Attention) -> Tensor:
        if math.isinf(self.sigma):
            return query.mean(2, keepdim=True).expand_as(query)
        # From 16 times the side of the picture on, the Gaussian is flat, and the blur is the mean.
        radius = min(math.ceil(3 * self.sigma), 16 * max(a.grid))
        dims = range(2, 2 + len(a.grid))
        return blur(query.unflatten(2, a.grid), self.sigma, radius, dims).flatten(2, dims[-1])
