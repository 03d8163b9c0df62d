"""Calibration: is a noise-aware classifier as confident as it is accurate?

An over-confident classifier guides badly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.levels import Level, Schedule, expand
from ..core.rng import Draw

Classifying = Callable[[Tensor, Level], Tensor]


@dataclass(frozen=True, kw_only=True)
class AtLevel:
    """Figures at one noise ratio.

    Args:
        accuracy: share of samples whose class is predicted, in [0, 1].
        nll: mean negative log-likelihood, nats.
        ece: expected calibration error, in [0, 1].
    """

    accuracy: float
    nll: float
    ece: float


def expected_calibration_error(logits: Tensor, target: Tensor, bins: int = 15) -> float:
    """Return ``Σ_b (n_b/N)·|accuracy_b − confidence_b|`` over equal bins of confidence, in [0, 1].

    Args:
        logits: ``[N, K]``.
        target: the classes ``[N]``, int64.
        bins: number of bins.

    References:
        On Calibration of Modern Neural Networks, https://arxiv.org/abs/1706.04599
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    right = (predicted == target).double()
    where = (confidence * bins).ceil().long() - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, where, right - confidence)
    return float(gaps.abs().sum() / len(target))


def _logits(
    classifier: Classifying,
    data: tuple[Tensor, Tensor],
    schedule: Schedule,
    rhos: Sequence[float],
    seed: int,
    batch: int,
) -> Iterator[tuple[float, Tensor]]:
    """Yield the logits of noised data at each ratio, all with the same noise."""
    x = data[0]
    noise = Draw([seed * 1_000_003 + i for i in range(len(x))]).normal_like("noise", x)
    for rho in rhos:
        level = schedule.at_rho(float(rho))
        noised = expand(level.alpha, x) * x + expand(level.sigma, x) * noise
        yield (
            float(rho),
            torch.cat([classifier(part, level).double() for part in noised.split(batch)]),
        )


@torch.no_grad()
def by_level(
    classifier: Classifying,
    data: tuple[Tensor, Tensor],
    schedule: Schedule,
    rhos: Sequence[float],
    *,
    seed: int = 0,
    batch: int = 500,
) -> dict[float, AtLevel]:
    """Measure a classifier on noised samples at each noise ratio.

    Args:
        classifier: gives logits ``[B, K]`` of ``x_t`` at a level; in evaluation mode.
        data: clean samples ``[N, *S]`` and classes ``[N]`` that it was not trained on.
        schedule: where the levels come from.
        rhos: noise ratios.
        seed: of the noise.
        batch: samples at a time.
    """
    return {
        rho: _at_level(logits, data[1])
        for rho, logits in _logits(classifier, data, schedule, rhos, seed, batch)
    }


def _at_level(logits: Tensor, target: Tensor) -> AtLevel:
    accuracy = float((logits.argmax(1) == target).double().mean())
    return AtLevel(
        accuracy=accuracy,
        nll=float(F.cross_entropy(logits, target)),
        ece=expected_calibration_error(logits, target),
    )


@dataclass(frozen=True, kw_only=True)
class RegressionAtLevel:
    """Figures of a regressor at one noise ratio.

    Args:
        unexplained: mean squared error divided by the variance of the numbers, averaged over
            dimensions; 1 is no better than their mean.
        surprise: mean squared error divided by the predicted variance; above 1 the regressor is too
            confident. Variances multiplied by it make the samples most likely.
    """

    unexplained: float
    surprise: float


@torch.no_grad()
def regression_by_level(
    regressor: Classifying,
    data: tuple[Tensor, Tensor],
    schedule: Schedule,
    rhos: Sequence[float],
    *,
    seed: int = 0,
    batch: int = 500,
) -> dict[float, RegressionAtLevel]:
    """Measure a regressor on noised samples at each noise ratio.

    Args:
        regressor: gives means and log-variances ``[B, 2D]`` of ``x_t`` at a level; in evaluation
            mode.
        data: clean samples ``[N, *S]`` and numbers ``[N, D]`` that it was not trained on.
        schedule: where the levels come from.
        rhos: noise ratios.
        seed: of the noise.
        batch: samples at a time.
    """
    found, y = {}, data[1].double()
    for rho, out in _logits(regressor, data, schedule, rhos, seed, batch):
        mean, log_var = out.chunk(2, 1)
        error = (y - mean).square()
        unexplained = (error.mean(0) / y.var(0, correction=0).clamp_min(1e-12)).mean()
        found[rho] = RegressionAtLevel(
            unexplained=float(unexplained), surprise=float((error * (-log_var).exp()).mean())
        )
    return found


@torch.no_grad()
def fit_temperatures(
    classifier: Classifying,
    data: tuple[Tensor, Tensor],
    schedule: Schedule,
    rhos: Sequence[float],
    *,
    seed: int = 1,
    batch: int = 500,
    bound: float = 20.0,
) -> dict[float, float]:
    """Find, at each noise ratio, the T for which ``softmax(logits/T)`` is most likely.

    The negative log-likelihood is convex in 1/T.

    Args:
        classifier: as in `by_level`.
        data: held-out samples and classes, as in `by_level`.
        schedule: where the levels come from.
        rhos: noise ratios.
        seed: of the noise.
        batch: samples at a time.
        bound: T is between ``1/bound`` and ``bound``.

    References:
        On Calibration of Modern Neural Networks, https://arxiv.org/abs/1706.04599
    """
    return {
        rho: best_temperature(logits, data[1], bound)
        for rho, logits in _logits(classifier, data, schedule, rhos, seed, batch)
    }


def best_temperature(logits: Tensor, target: Tensor, bound: float = 20.0) -> float:
    """Return the T in [1/bound, bound] that minimises ``−Σ log softmax(logits/T)[target]``.

    By golden-section search in ln T.
    """
    low, high, golden = -math.log(bound), math.log(bound), (math.sqrt(5) - 1) / 2

    def loss(log_t: float) -> float:
        return float(F.cross_entropy(logits * math.exp(-log_t), target))

    a, b = high - golden * (high - low), low + golden * (high - low)
    at_a, at_b = loss(a), loss(b)
    while high - low > 1e-4:
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - golden * (high - low)
            at_a = loss(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + golden * (high - low)
            at_b = loss(b)
    return math.exp((low + high) / 2)
