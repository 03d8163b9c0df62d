"""Predictions: what one network evaluation gives at one level, in each of its equivalent forms.

With ``x_t = alpha x_0 + sigma eps``, each form follows from any other:

    eps = (x_t − alpha x0) / sigma      score = −eps / sigma
    velocity = eps − x0                 v = alpha eps − sigma x0
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .levels import Level, Value, expand, inverse_or_zero

Space = Literal["x0", "eps", "score", "velocity", "v"]
SPACES: tuple[Space, ...] = ("x0", "eps", "score", "velocity", "v")


def slope(level: Level, space: Space) -> Value:
    """Return ``k`` in ``Δ_space = k·Δx0``, which turns a difference of x0 into one of ``space``.

    ``Δeps = −(α/σ)Δx0``, ``Δscore = (α/σ²)Δx0``, ``Δvelocity = −((α+σ)/σ)Δx0``,
    ``Δv = −((α²+σ²)/σ)Δx0``; all 0 where sigma is 0.
    """
    a, s = level.alpha, level.sigma
    if space == "x0":
        return a * 0 + 1.0
    per = inverse_or_zero(s)
    if space == "eps":
        return -a * per
    if space == "score":
        return a * per * per
    return -(a + s) * per if space == "velocity" else -(a * a + s * s) * per


class Root(NamedTuple):
    """The start of a prediction's graph: the leaf ``x_t``, its rows (None: all), the network."""

    leaf: Tensor
    rows: Tensor | None
    net: str


HOLDS = -1.0
"""What `Unguided.terms` has for samples that are held in the place of the base."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Unguided:
    """What a guided prediction was before its terms were added, and which of them act.

    Args:
        x0: the clean estimate of the base ``[B, *S]``.
        eps: the noise estimate of the base ``[B, *S]``.
        terms: for each term 1 where it acts, 0 where its weight is 0 and `HOLDS` where it puts
            something else in the place of the base: one number, or one for each sample.
    """

    x0: Tensor
    eps: Tensor
    terms: tuple[Value, ...]

    def take(self, rows: Tensor) -> Unguided:
        """Select samples (``rows``: int64 indices)."""
        here = rows.to(self.x0.device)
        terms = tuple(t[rows] if isinstance(t, Tensor) else t for t in self.terms)
        return Unguided(x0=self.x0[here], eps=self.eps[here], terms=terms)

    @staticmethod
    def join(parts: Sequence[Unguided]) -> Unguided:
        """Concatenate parts of one batch."""
        sizes = [len(p.x0) for p in parts]

        def join(values: Sequence[Value]) -> Tensor:
            wide = [torch.as_tensor(v, dtype=torch.float64) for v in values]
            return torch.cat([v.expand(n) for v, n in zip(wide, sizes, strict=True)])

        terms = tuple(map(join, zip(*(p.terms for p in parts), strict=True)))
        x0, eps = torch.cat([p.x0 for p in parts]), torch.cat([p.eps for p in parts])
        return Unguided(x0=x0, eps=eps, terms=terms)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A pair (x0, eps), linked by ``x_t = alpha x0 + sigma eps`` unless a guidance splits it.

    Args:
        x_t: noisy samples ``[B, *S]``.
        level: their level.
        x0: the clean estimate ``[B, *S]``.
        eps: the noise estimate ``[B, *S]``.
        log_var: the learned reverse variance ``[B, *S]`` of networks of 2C channels, as in Improved
            DDPM: a share in [−1, 1] between the logs of the small and large posterior variance.
        observed: the values ``[B, …]`` of a perturbation that observes the network.
        root: the leaf in which a gradient is taken, if the pass was differentiable.
        unguided: of a guided prediction, what it was before its terms were added.
    """

    x_t: Tensor
    level: Level
    x0: Tensor
    eps: Tensor
    log_var: Tensor | None = None
    observed: Tensor | None = None
    root: Root | None = None
    unguided: Unguided | None = None

    @classmethod
    def from_x0(cls, x_t: Tensor, level: Level, x0: Tensor) -> Prediction:
        """Complete a clean estimate: ``eps = (x_t − alpha x0)/sigma``, 0 where sigma is 0.

        Raises:
            ValueError: x0 has another shape than x_t, which torch would broadcast.
        """
        if x0.shape != x_t.shape:
            raise ValueError(
                f"x0 must have the shape of x_t, {tuple(x_t.shape)}, not {tuple(x0.shape)}"
            )
        eps = (x_t - expand(level.alpha, x_t) * x0) * expand(inverse_or_zero(level.sigma), x_t)
        return cls(x_t=x_t, level=level, x0=x0, eps=eps)

    def view(self, space: Space) -> Tensor:
        """Return the prediction ``[B, *S]`` in ``space``: one of x0, eps, score, velocity, v.

        Raises:
            ValueError: an unknown space.
        """
        if space == "x0":
            return self.x0
        if space == "eps":
            return self.eps
        if space == "score":
            return -expand(inverse_or_zero(self.level.sigma), self.eps) * self.eps
        if space == "velocity":
            return self.eps - self.x0
        if space == "v":
            a, s = expand(self.level.alpha, self.eps), expand(self.level.sigma, self.x0)
            return a * self.eps - s * self.x0
        raise ValueError(f"unknown space {space!r}; the spaces are {', '.join(SPACES)}")

    def shifted(self, delta: Tensor, *, linked: bool = True) -> Prediction:
        """Add ``delta [B, *S]`` to x0; eps follows if ``linked``, else the prediction is split."""
        eps = self.eps + expand(slope(self.level, "eps"), delta) * delta if linked else self.eps
        x0 = self.x0 + delta
        return Prediction(x_t=self.x_t, level=self.level, x0=x0, eps=eps, log_var=self.log_var)

    def with_x0(self, x0: Tensor) -> Prediction:
        """Return a linked prediction with another clean estimate."""
        return self.shifted(x0 - self.x0)

    def to_x0(self, delta: Tensor, space: Space) -> Tensor:
        """Turn a difference in ``space`` into one of x0; 0 where the slope of ``space`` is 0."""
        return expand(inverse_or_zero(slope(self.level, space)), delta) * delta

    def detach(self, x_t: Tensor) -> Prediction:
        """Return this prediction at ``x_t`` without its graph."""
        log_var = None if self.log_var is None else self.log_var.detach()
        x0, eps = self.x0.detach(), self.eps.detach()
        return Prediction(x_t=x_t, level=self.level, x0=x0, eps=eps, log_var=log_var)

    def take(self, rows: Tensor) -> Prediction:
        """Select samples (``rows``: int64 indices)."""
        here, root = rows.to(self.x_t.device), self.root
        observed = self.observed
        with torch.enable_grad() if root else nullcontext():  # the graph leads to its root
            return Prediction(
                x_t=self.x_t[here],
                level=self.level.take(rows),
                x0=self.x0[here],
                eps=self.eps[here],
                log_var=None if self.log_var is None else self.log_var[here],
                observed=None if observed is None else observed[rows.to(observed.device)],
                root=root and root._replace(rows=here if root.rows is None else root.rows[here]),
                unguided=self.unguided and self.unguided.take(rows),
            )

    @staticmethod
    def join(parts: list[Prediction], x_t: Tensor, level: Level) -> Prediction:
        """Concatenate parts of one batch into a prediction at ``x_t``.

        Raises:
            ValueError: some parts have a learned variance and some have none.
        """
        learned = any(p.log_var is not None for p in parts)
        observed = [p.observed for p in parts if p.observed is not None]
        unguided = [p.unguided for p in parts if p.unguided is not None]
        return Prediction(
            x_t=x_t,
            level=level,
            x0=torch.cat([p.x0 for p in parts]),
            eps=torch.cat([p.eps for p in parts]),
            log_var=torch.cat([_share(p) for p in parts]) if learned else None,
            observed=torch.cat(observed) if observed else None,
            unguided=Unguided.join(unguided) if unguided else None,
        )


def _share(part: Prediction) -> Tensor:
    """Return a part's learned variance; 0 for clean rows, which no network evaluates."""
    if part.log_var is not None:
        return part.log_var
    if bool((torch.as_tensor(part.level.sigma) != 0).any()):
        raise ValueError(
            "some rows of this batch have a learned variance and some have none; a network must "
            "predict it for all rows, or for none"
        )
    return torch.zeros_like(part.x0)
