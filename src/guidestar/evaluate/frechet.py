"""Fréchet distance: are samples distributed like the data?"""

from __future__ import annotations

import torch
from torch import Tensor

from .metric import JudgeOutput, Metric


def _root(cov: Tensor) -> Tensor:
    """Return the symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def gaussian_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Return the squared Fréchet (2-Wasserstein) distance between two Gaussians.

    ``‖μ1 − μ2‖² + Tr(Σ1 + Σ2 − 2(Σ1 Σ2)^{1/2})`` with means ``[d]`` and covariances ``[d, d]``, in
    squared units of the features. The trace of the root is the sum of the roots of the eigenvalues
    of ``Σ1^{1/2} Σ2 Σ1^{1/2}``, and those are the singular values of ``Σ1^{1/2} Σ2^{1/2}``: taken
    from there nothing is squared, so singular covariances (fewer samples than features) keep their
    digits, and no root of a matrix that is not symmetric is needed.

    References:
        The Fréchet Distance between Multivariate Normal Distributions,
        https://doi.org/10.1016/0047-259X(82)90077-X
        GANs Trained by a Two Time-Scale Update Rule (FID), https://arxiv.org/abs/1706.08500
    """
    m1, c1, m2, c2 = (t.double() for t in (mean1, cov1, mean2, cov2))
    shared = torch.linalg.svdvals(_root(c1) @ _root(c2)).sum()
    return float((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * shared)


def fit_gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean ``[d]`` and unbiased covariance ``[d, d]`` of features ``[N, d]``, in float64."""
    x = features.double()
    return x.mean(0), torch.atleast_2d(x.T.cov())


class _Moments:
    """Mean and unbiased covariance of features that arrive in batches, in float64.

    Sums are taken about ``origin``, near the mean, so that a mean far from zero costs no digits.
    """

    def __init__(self, origin: Tensor) -> None:
        self.origin, self.count = origin.double(), 0
        self.sum = torch.zeros_like(self.origin)
        self.outer = self.sum[:, None] * self.sum

    def add(self, features: Tensor) -> _Moments:
        x = features.double() - self.origin
        self.count, self.sum, self.outer = (
            self.count + len(x),
            self.sum + x.sum(0),
            self.outer + x.T @ x,
        )
        return self

    def gaussian(self) -> tuple[Tensor, Tensor]:
        if self.count < 2:
            raise ValueError(
                f"a covariance needs at least two samples, not {self.count}; draw more"
            )
        mean = self.sum / self.count
        return self.origin + mean, (self.outer - self.count * mean[:, None] * mean) / (
            self.count - 1
        )


class Frechet(Metric):
    """Squared Fréchet distance between the features of samples and of a reference.

    Gaussians are fitted to both (see `gaussian_distance`). Other samples of the same data do not
    give 0: the distance falls about as ``1/N``. So compare only figures of equal N, and give the
    floor (real samples against the reference) beside them. With Inception's features this is FID;
    the features of another judge have another scale.

    Args:
        reference: features of real images; its logits and classes are not used.

    References:
        GANs Trained by a Two Time-Scale Update Rule (FID), https://arxiv.org/abs/1706.08500
        Effectively Unbiased FID (its bias in N), https://arxiv.org/abs/1911.07023
    """

    def __init__(self, reference: JudgeOutput) -> None:
        self.mean, self.cov = (
            _Moments(reference.features.double().mean(0)).add(reference.features).gaussian()
        )
        self.samples = _Moments(self.mean)

    def update(self, samples: JudgeOutput) -> None:
        self.samples.add(samples.features)

    def compute(self) -> float:
        return gaussian_distance(*self.samples.gaussian(), self.mean, self.cov)
