"""Gaussian mixtures: data of which everything is known exactly, at every noise level.

Noised by ``x_t = αx_0 + σε``, a mixture ``Σ_n π_n N(m_n, Σ_n)`` stays a mixture, with means
``αm_n`` and covariances ``C_n = α²Σ_n + σ²I``. So the score, the denoiser and the noise-aware
classifier are
closed forms: a ground truth for guidance without any training.

References:
    Diffusion Models Beat GANs on Image Synthesis (classifier guidance),
    https://arxiv.org/abs/2105.05233
    Tweedie's Formula and Selection Bias, https://doi.org/10.1198/jasa.2011.tm11181
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..core.denoiser import Condition
from ..core.levels import Level, expand


class Streams(Protocol):
    """Per-sample random numbers: a `guidestar.Draw`."""

    def uniform(self, tag: str) -> Tensor:
        """Draw ``[B]``, uniform in [0, 1)."""
        ...

    def normal(self, tag: str, shape: Sequence[int]) -> Tensor:
        """Draw standard normals ``[B, *shape]``."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """A Gaussian mixture ``p(x_0) = Σ_n π_n N(m_n, Σ_n)`` whose components belong to K classes.

    Everything is computed in float64 on the device of ``x`` and returned in its dtype, is
    differentiable, and takes any level with (alpha, sigma) not both 0: floats, or CPU float64
    tensors ``[B]``. ``labels`` of a call are int64 ``[B]``, a class 0 … K − 1 for each sample, or K
    for no class (the null); without labels all samples are unconditional.

    The mixture is itself a denoiser, ``mixture(x_t, level, cond)``, and a noise-aware classifier
    (``log_prob``): `Guided` takes it as both.

    Args:
        weights: π ``[N]``, positive; normalised to sum 1.
        means: m ``[N, d]``.
        covariances: Σ ``[N, d, d]``, symmetric and positive definite.
        classes: the class of each component, int64 ``[N]``, using all of 0 … K − 1; by default each
            component is a class of its own.

    Raises:
        ValueError: shapes that disagree, weights, covariances or classes out of range; in a call,
            ``x`` that is not ``[B, d]`` or a label out of range.

    Example:
        >>> import torch
        >>> from guidestar import Guided, VP, uniform
        >>> mixture, grid = blobs(), uniform(VP.linear(), 4)
        >>> x = torch.ones(2, 2, dtype=torch.float64)
        >>> run = dict(cond=mixture.condition([0, 2]), null=mixture.null())
        >>> judge = dict(classifiers={"classifier": mixture}, target=torch.tensor([0, 2]))
        >>> bayes = Guided("uncond + classifier(3)", mixture, **run, **judge)
        >>> free = Guided("cfg(3)", mixture, **run)
        >>> torch.allclose(bayes(x, grid.step(1))[0].x0, free(x, grid.step(1))[0].x0, atol=1e-12)
        True
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    classes: Tensor | None = None
    _variances: Tensor = field(init=False, repr=False)
    _axes: Tensor = field(init=False, repr=False)
    _member: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_shapes()
        # Made here and not at first use: that may be inside torch.inference_mode(), whose tensors
        # no gradient can pass.
        variances, axes = torch.linalg.eigh(self.covariances.double())
        classes = torch.arange(len(self.weights)) if self.classes is None else self.classes
        if not bool((variances > 0).all()) or not torch.allclose(
            self.covariances, self.covariances.mT
        ):
            raise ValueError("the covariances of a mixture must be symmetric and positive definite")
        if not classes.unique().equal(torch.arange(int(classes.max()) + 1)):
            raise ValueError(
                "the classes of a mixture must use all of 0 … K − 1, not "
                f"{classes.unique().tolist()}"
            )
        member = classes == torch.arange(int(classes.max()) + 1)[:, None]
        made = {
            "_variances": variances,
            "_axes": axes,
            "_member": torch.cat([member, torch.ones_like(member[:1])]),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def _check_shapes(self) -> None:
        if self.weights.ndim != 1 or not bool((self.weights > 0).all()):
            raise ValueError("the weights of a mixture must be positive numbers, [N]")
        n, d = len(self.weights), self.means.shape[-1]
        if (
            self.means.shape != (n, d)
            or self.covariances.shape != (n, d, d)
            or (self.classes is not None and self.classes.shape != (n,))
        ):
            raise ValueError(
                f"{n} components in {d} dimensions need means [{n}, {d}], covariances [{n}, {d}, "
                f"{d}] and classes [{n}]"
            )

    @property
    def dim(self) -> int:
        """Dimension d of the data."""
        return self.means.shape[1]

    @property
    def count(self) -> int:
        """Number K of classes, and the index of the null."""
        return len(self._member) - 1

    def condition(self, labels: Tensor | Sequence[int] | int) -> Condition:
        """Return the condition ``label`` of these classes: ``[B]``, or ``[1]`` for a single one."""
        return Condition(label=torch.as_tensor(labels, dtype=torch.int64).reshape(-1))

    def null(self) -> Condition:
        """Return the condition of no class: label K, ``[1]``."""
        return self.condition(self.count)

    def __call__(self, x_t: Tensor, level: Level, cond: Condition) -> Tensor:
        """Return the exact ``E[x_0 | x_t, label]`` ``[B, d]``: a `guidestar.Denoiser`.

        ``cond`` carries "label", int64 ``[B]`` (K: no class), or is empty (no class for any
        sample).
        """
        if set(cond) - {"label"}:
            raise ValueError(f"a mixture is conditioned on 'label' alone, not on {', '.join(cond)}")
        return self.denoiser(x_t, level, cond.get("label"))

    def sample(self, draw: Streams, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw data ``[B, d]`` (float64, CPU), one for each seed of ``draw``, and its class
        ``[B]``.

        ``m_n + Σ_n^½ ε`` with component n chosen with probability ``π_n``, within ``labels`` if
        given.
        """
        u = draw.uniform("mixture component")
        logits = self._within(labels, self._log_weights(u).expand(len(u), -1))
        cumulative = logits.softmax(-1).cumsum(-1)
        n = (cumulative <= u[:, None] * cumulative[:, -1:]).sum(
            -1
        )  # the last should be 1, and is but for rounding
        eps = draw.normal("mixture point", (self.dim,)).double()
        x = self.means.double()[n] + torch.einsum(
            "bij,bj->bi", self._axes[n], self._variances[n].sqrt() * eps
        )
        return x, self._member[:-1, n].int().argmax(0)

    def log_density(self, x: Tensor, level: Level, labels: Tensor | None = None) -> Tensor:
        """Return ``log p_t(x)``, or ``log p_t(x | label)``, ``[B]``.

        ``log Σ_n π_n N(x; αm_n, C_n)``, over the components of the class (with π normalised there).
        """
        seen = _Seen(self, x, level)
        prior = self._within(labels, self._log_weights(x).expand(len(x), -1)).logsumexp(-1)
        return (
            seen.log_reference + self._within(labels, seen.log_ratios).logsumexp(-1) - prior
        ).to(x.dtype)

    def score(self, x: Tensor, level: Level, labels: Tensor | None = None) -> Tensor:
        """Return ``∇_x log p_t(x)``, or ``∇_x log p_t(x | label)``, ``[B, d]``.

        ``−Σ_n r_n C_n⁻¹ (x − αm_n)``, r the responsibilities of the components; finite at both
        ends.
        """
        seen = _Seen(self, x, level)
        return self._average(seen.turned_back(-seen.z / seen.spread), seen, labels)

    def denoiser(self, x: Tensor, level: Level, labels: Tensor | None = None) -> Tensor:
        """Return ``D(x) = E[x_0 | x_t = x]``, or ``E[x_0 | x_t = x, label]``, ``[B, d]``.

        ``Σ_n r_n (m_n + αΣ_n C_n⁻¹ (x − αm_n))``: the mean at alpha = 0, ``x/α`` at sigma = 0.
        """
        seen = _Seen(self, x, level)
        gain = expand(level.alpha, seen.z) * seen.variances / seen.spread
        return self._average(seen.means + seen.turned_back(gain * seen.z), seen, labels)

    def log_posterior(self, x: Tensor, level: Level) -> Tensor:
        """Return ``log p(k | x_t = x)`` for every class, ``[B, K]``: the exact noise-aware
        classifier.
        """
        ratios = _Seen(self, x, level).log_ratios
        *classes, whole = (ratios[:, member].logsumexp(-1) for member in self._member.to(x.device))
        return (torch.stack(classes, -1) - whole[:, None]).to(x.dtype)

    def log_prob(self, x: Tensor, level: Level, target: Tensor) -> Tensor:
        """Return ``log p(target | x_t = x)``, ``[B]``, for the classes ``target``, int64 ``[B]`` or
        ``[1]``.

        By Bayes its gradient is ``∇ log p_t(x | target) − ∇ log p_t(x)``.
        """
        chosen = target.to(x.device).expand(len(x))[:, None]
        return self.log_posterior(x, level).gather(-1, chosen)[:, 0]

    def _log_weights(self, like: Tensor) -> Tensor:
        weights = self.weights.to(like.device, torch.float64)
        return (weights / weights.sum()).log()

    def _within(self, labels: Tensor | None, logits: Tensor) -> Tensor:
        """Leave only the components of each sample's class in ``logits [B, N]``."""
        if labels is None:
            return logits
        if labels.shape != logits.shape[:1] or bool(((labels < 0) | (labels > self.count)).any()):
            raise ValueError(
                f"there must be {len(logits)} labels in 0 … {self.count} ({self.count}: no "
                f"class), not {labels.tolist()}"
            )
        return logits.masked_fill(
            ~self._member.to(logits.device)[labels.to(logits.device)], -math.inf
        )

    def _average(self, values: Tensor, seen: _Seen, labels: Tensor | None) -> Tensor:
        """Average ``values [B, N, d]`` over the components, by their responsibility."""
        r = self._within(labels, seen.log_ratios).softmax(-1)
        return (r[:, :, None] * values).sum(1).to(seen.x.dtype)


class _Seen:
    """A mixture noised to ``level`` and seen from ``x [B, d]``: what all its truths are made of."""

    def __init__(self, mixture: Mixture, x: Tensor, level: Level) -> None:
        if x.ndim != 2 or x.shape[1] != mixture.dim:
            raise ValueError(
                f"a mixture in {mixture.dim} dimensions takes x of shape [B, {mixture.dim}], not "
                f"{tuple(x.shape)}"
            )
        self.x, self.level, self.log_weights = x, level, mixture._log_weights(x)
        self.means, self.variances, self.axes = (
            t.to(x.device, torch.float64)
            for t in (mixture.means, mixture._variances, mixture._axes)
        )
        self.z = torch.einsum("bni,nij->bnj", self._from(self.means), self.axes)
        self.spread = self._noised(self.variances, self.z)

    def turned_back(self, z: Tensor) -> Tensor:
        """Turn ``[B, N, d]`` from the axes of each component back to those of x."""
        return torch.einsum("nij,bnj->bni", self.axes, z)

    def _from(self, points: Tensor) -> Tensor:
        """Return ``x − α·points`` ``[B, N, d]``."""
        wide = self.x.double()[:, None]
        return wide - expand(self.level.alpha, wide) * points

    def _noised(self, variances: Tensor, like: Tensor) -> Tensor:
        """Return ``α²·variances + σ²``."""
        return expand(self.level.alpha**2, like) * variances + expand(self.level.sigma**2, like)

    @cached_property
    def reference(self) -> Tensor:
        """Variance ``v = α²λ̄ + σ²`` of one Gaussian that all components are compared with,
        ``[B or 1, 1, 1]``.
        """
        return self._noised(self.variances.mean()[None, None, None], self.z)

    @cached_property
    def log_reference(self) -> Tensor:
        """``log N(x; αm̄, vI)``, ``[B]``."""
        offset = self._from(self.means.mean(0))
        return (
            -(offset**2 / self.reference + torch.log(2 * math.pi * self.reference)).sum((1, 2)) / 2
        )

    @cached_property
    def log_ratios(self) -> Tensor:
        """``log π_n N(x; αm_n, C_n) − log N(x; αm̄, vI)``, ``[B, N]``.

        Near pure noise the components differ by O(α) only. Written relative to one common Gaussian,
        that difference keeps all its digits there (guidance divides it by alpha) and at tiny sigma.
        """
        a, v = expand(self.level.alpha, self.z), self.reference
        away, offset = self.means - self.means.mean(0), self._from(self.means.mean(0))
        excess = (
            a**2 * (self.variances - self.variances.mean()) / v
        )  # C_n's variances are v(1 + excess)
        linear = a * offset * away / v - a**2 * away**2 / (2 * v)
        return self.log_weights + (
            linear + self.z**2 * excess / (2 * self.spread) - torch.log1p(excess) / 2
        ).sum(-1)


def blobs() -> Mixture:
    """Return three overlapping classes in the plane, one long Gaussian each, turned by 120°."""
    angles = torch.tensor([90.0, 210.0, 330.0], dtype=torch.float64).deg2rad()
    out = torch.stack([angles.cos(), angles.sin()], -1)
    outer = out[:, :, None] * out[:, None, :]
    covariances = 0.45**2 * outer + 0.7**2 * (torch.eye(2, dtype=torch.float64) - outer)
    return Mixture(
        weights=torch.ones(3, dtype=torch.float64) / 3, means=1.2 * out, covariances=covariances
    )


def moons(parts: int = 6) -> Mixture:
    """Return two classes in the plane, interleaved half circles of ``parts`` round Gaussians
    each.
    """
    angles = torch.linspace(0, math.pi, parts, dtype=torch.float64)
    upper = torch.stack([angles.cos() - 0.5, angles.sin() - 0.2], -1) * 1.5
    means = torch.cat([upper, -upper])
    covariances = 0.22**2 * torch.eye(2, dtype=torch.float64).expand(2 * parts, 2, 2)
    classes = torch.arange(2).repeat_interleave(parts)
    return Mixture(
        weights=torch.ones(2 * parts, dtype=torch.float64),
        means=means,
        covariances=covariances,
        classes=classes,
    )
