"""One network evaluation at one level, and its equivalent views.

Knowing any of these, one knows all (Convention: ``x_t = alpha x_0 + sigma eps``):

    eps = (x_t − alpha x0) / sigma      score = −eps / sigma
    velocity = eps − x0                 v = alpha eps − sigma x0
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .levels import Level, Value, expand, inverse_or_zero

Space = Literal["x0", "eps", "score", "velocity", "v"]
SPACES: tuple[Space, ...] = ("x0", "eps", "score", "velocity", "v")


def slope(level: Level, space: Space) -> Value:
    """Return ``k`` in ``Δ_space = k·Δx0``: how a difference of clean estimates reads in ``space``.

    ``Δeps = −(α/σ)Δx0``, ``Δscore = (α/σ²)Δx0``, ``Δvelocity = −((α+σ)/σ)Δx0``,
    ``Δv = −((α²+σ²)/σ)Δx0``; all 0 where sigma is 0.
    """
    a, s = level.alpha, level.sigma
    per = inverse_or_zero(s)
    return {
        "x0": a * 0 + 1.0,
        "eps": -a * per,
        "score": a * per * per,
        "velocity": -(a + s) * per,
        "v": -(a * a + s * s) * per,
    }[space]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A pair (x0, eps) at ``x_t``, linked by ``x_t = alpha x0 + sigma eps`` unless guidance split it.

    Shapes: ``x_t``, ``x0``, ``eps`` and ``log_var`` are ``[B, *S]``. ``log_var`` is the network's
    own reverse variance as Improved DDPM parametrises it: a share in [−1, 1] between the log of
    the small and of the large posterior variance (networks of 2C channels only).
    """

    x_t: Tensor
    level: Level
    x0: Tensor
    eps: Tensor
    log_var: Tensor | None = None

    @classmethod
    def from_x0(cls, x_t: Float[Tensor, " b *s"], level: Level, x0: Float[Tensor, " b *s"]) -> Prediction:
        """Complete a clean estimate: ``eps = (x_t − alpha x0)/sigma``, 0 where sigma is 0."""
        eps = (x_t - expand(level.alpha, x_t) * x0) * expand(inverse_or_zero(level.sigma), x_t)
        return cls(x_t=x_t, level=level, x0=x0, eps=eps)

    def view(self, space: Space) -> Tensor:
        """Return the prediction in ``space``: one of x0, eps, score, velocity, v."""
        if space == "x0":
            return self.x0
        if space == "eps":
            return self.eps
        if space == "score":
            return -expand(inverse_or_zero(self.level.sigma), self.eps) * self.eps
        if space == "velocity":
            return self.eps - self.x0
        if space == "v":
            return expand(self.level.alpha, self.eps) * self.eps - expand(self.level.sigma, self.x0) * self.x0
        raise ValueError(f"unknown space {space!r}; the spaces are {', '.join(SPACES)}")

    def shifted(self, delta: Float[Tensor, " b *s"], *, linked: bool = True) -> Prediction:
        """Add ``delta`` to x0; eps follows if ``linked``, else it stays (a split prediction)."""
        if not linked:
            return replace(self, x0=self.x0 + delta)
        eps = self.eps + expand(slope(self.level, "eps"), delta) * delta
        return replace(self, x0=self.x0 + delta, eps=eps)

    def with_x0(self, x0: Float[Tensor, " b *s"]) -> Prediction:
        """Return a linked prediction with another clean estimate."""
        return self.shifted(x0 - self.x0)

    def to_x0(self, delta: Float[Tensor, " b *s"], space: Space) -> Float[Tensor, " b *s"]:
        """Carry a difference from ``space`` to x0 (0 where that space cannot tell, at its ends)."""
        return expand(inverse_or_zero(slope(self.level, space)), delta) * delta

    def take(self, rows: Tensor) -> Prediction:
        """Select samples (``rows``: int64 indices)."""
        on_device = rows.to(self.x_t.device)
        log_var = None if self.log_var is None else self.log_var[on_device]
        return Prediction(x_t=self.x_t[on_device], level=self.level.take(rows), x0=self.x0[on_device], eps=self.eps[on_device], log_var=log_var)

    @staticmethod
    def join(parts: list[Prediction], x_t: Tensor, level: Level) -> Prediction:
        """Concatenate chunks of one batch back into a prediction at ``x_t``.

        Raises:
            ValueError: some parts tell a variance and some do not.
        """
        told = any(p.log_var is not None for p in parts)
        return Prediction(
            x_t=x_t,
            level=level,
            x0=torch.cat([p.x0 for p in parts]),
            eps=torch.cat([p.eps for p in parts]),
            log_var=torch.cat([_share(p) for p in parts]) if told else None,
        )


def _share(part: Prediction) -> Tensor:
    """Return what a part tells of its variance; 0 of clean rows, of which no network is asked."""
    if part.log_var is not None:
        return part.log_var
    if bool((torch.as_tensor(part.level.sigma) != 0).any()):
        raise ValueError("some rows of this batch come with a predicted variance and some without; a network should tell it for all, or for none")
    return torch.zeros_like(part.x0)


__all__ = ["SPACES", "Prediction", "Space", "slope"]
