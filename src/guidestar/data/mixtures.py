"""Gaussian mixtures: data whose score, denoiser and classifier are exact at every noise level.

Noised by ``x_t = αx_0 + σε``, a mixture ``Σ_n π_n N(m_n, Σ_n)`` stays a mixture, with means
``αm_n`` and covariances ``C_n = α²Σ_n + σ²I``. So the score, the denoiser and the noise-aware
classifier are closed forms: a ground truth for guidance without any training.

References:
    Diffusion Models Beat GANs on Image Synthesis (classifier guidance),
    https://arxiv.org/abs/2105.05233
    Tweedie's Formula and Selection Bias, https://doi.org/10.1198/jasa.2011.tm11181
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..core.denoiser import Condition
from ..core.levels import Level, expand
from .noised_mixture import NoisedMixture


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
        # Not at first use: that may be in torch.inference_mode(), whose tensors pass no gradient.
        variances, axes = torch.linalg.eigh(self.covariances.double())
        classes = torch.arange(len(self.weights)) if self.classes is None else self.classes
        if not bool((variances > 0).all()) or not torch.allclose(
            self.covariances, self.covariances.mT
        ):
            raise ValueError(
                "the covariances of a mixture must be symmetric and positive definite; symmetrise "
                "them and add a small multiple of the identity"
            )
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
            raise ValueError(
                "the weights of a mixture must be positive numbers, [N], not "
                f"{self.weights.tolist()}"
            )
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
        """Draw a point for each seed of ``draw``: ``m_n + Σ_n^½ ε``, n with probability ``π_n``.

        Args:
            draw: the streams of random numbers.
            labels: classes ``[B]`` to draw from; by default all.

        Returns:
            Points ``[B, d]`` (float64, CPU) and their classes ``[B]``.
        """
        u = draw.uniform("mixture component")
        logits = self._within(labels, self._log_weights(u).expand(len(u), -1))
        cumulative = logits.softmax(1).cumsum(1)
        # The last of the cumulative sums is 1 but for rounding.
        n = (cumulative <= u[:, None] * cumulative[:, -1:]).sum(1)
        eps = draw.normal("mixture point", (self.dim,)).double()
        x = self.means.double()[n] + torch.einsum(
            "bij,bj->bi", self._axes[n], self._variances[n].sqrt() * eps
        )
        return x, self._member[:-1, n].int().argmax(0)

    def log_density(self, x: Tensor, level: Level, labels: Tensor | None = None) -> Tensor:
        """Return ``log p_t(x)``, or ``log p_t(x | label)``, ``[B]``.

        ``log Σ_n π_n N(x; αm_n, C_n)``, over the components of the class (with π normalised there).
        """
        noised = self._at(x, level)
        prior = self._within(labels, self._log_weights(x).expand(len(x), -1)).logsumexp(1)
        return (
            noised.log_reference + self._within(labels, noised.log_ratios).logsumexp(1) - prior
        ).to(x.dtype)

    def score(self, x: Tensor, level: Level, labels: Tensor | None = None) -> Tensor:
        """Return ``∇_x log p_t(x)``, or ``∇_x log p_t(x | label)``, ``[B, d]``.

        ``−Σ_n r_n C_n⁻¹ (x − αm_n)``, r the responsibilities of the components; finite at both
        ends.
        """
        noised = self._at(x, level)
        return self._average(noised.to_space(-noised.z / noised.spread), noised, labels)

    def denoiser(self, x: Tensor, level: Level, labels: Tensor | None = None) -> Tensor:
        """Return ``D(x) = E[x_0 | x_t = x]``, or ``E[x_0 | x_t = x, label]``, ``[B, d]``.

        ``Σ_n r_n (m_n + αΣ_n C_n⁻¹ (x − αm_n))``: the mean at alpha = 0, ``x/α`` at sigma = 0.
        """
        noised = self._at(x, level)
        gain = expand(level.alpha, noised.z) * noised.variances / noised.spread
        return self._average(noised.means + noised.to_space(gain * noised.z), noised, labels)

    def log_posterior(self, x: Tensor, level: Level) -> Tensor:
        """Return ``log p(k | x_t = x)`` of every class, ``[B, K]``: the exact classifier."""
        ratios = self._at(x, level).log_ratios
        *classes, whole = (ratios[:, member].logsumexp(1) for member in self._member.to(x.device))
        return (torch.stack(classes).T - whole[:, None]).to(x.dtype)

    def log_prob(self, x: Tensor, level: Level, target: Tensor) -> Tensor:
        """Return ``log p(target | x_t = x)``, ``[B]``, of classes int64 ``[B]`` or ``[1]``.

        By Bayes' rule its gradient is ``∇ log p_t(x | target) − ∇ log p_t(x)``.
        """
        chosen = target.to(x.device).expand(len(x))[:, None]
        return self.log_posterior(x, level).gather(1, chosen)[:, 0]

    def _at(self, x: Tensor, level: Level) -> NoisedMixture:
        return NoisedMixture(
            x,
            level,
            log_weights=self._log_weights(x),
            means=self.means,
            variances=self._variances,
            axes=self._axes,
        )

    def _log_weights(self, like: Tensor) -> Tensor:
        weights = self.weights.to(like.device, torch.float64)
        return (weights / weights.sum()).log()

    def _within(self, labels: Tensor | None, logits: Tensor) -> Tensor:
        """Set ``logits [B, N]`` of components outside each sample's class to −∞."""
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

    def _average(self, values: Tensor, noised: NoisedMixture, labels: Tensor | None) -> Tensor:
        """Average ``values [B, N, d]`` over the components, weighted by their responsibilities."""
        r = self._within(labels, noised.log_ratios).softmax(1)
        return (r[:, :, None] * values).sum(1).to(noised.x.dtype)


def blobs() -> Mixture:
    """Return three overlapping classes in the plane, one long Gaussian each, turned by 120°."""
    angles = torch.tensor([90.0, 210.0, 330.0], dtype=torch.float64).deg2rad()
    out = torch.stack([angles.cos(), angles.sin()], 1)
    outer = out[:, :, None] * out[:, None, :]
    covariances = 0.45**2 * outer + 0.7**2 * (torch.eye(2, dtype=torch.float64) - outer)
    return Mixture(
        weights=torch.ones(3, dtype=torch.float64), means=1.2 * out, covariances=covariances
    )


def moons(parts: int = 6) -> Mixture:
    """Return two classes in the plane: interleaved half circles of ``parts`` round Gaussians."""
    angles = torch.linspace(0, math.pi, parts, dtype=torch.float64)
    upper = torch.stack([angles.cos() - 0.5, angles.sin() - 0.2], 1) * 1.5
    means = torch.cat([upper, -upper])
    covariances = 0.22**2 * torch.eye(2, dtype=torch.float64).expand(2 * parts, 2, 2)
    classes = torch.arange(2).repeat_interleave(parts)
    return Mixture(
        weights=torch.ones(2 * parts, dtype=torch.float64),
        means=means,
        covariances=covariances,
        classes=classes,
    )
