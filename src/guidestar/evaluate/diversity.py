"""Diversity: do samples of one class differ from each other?"""

from __future__ import annotations

import torch
from torch import Tensor

from .metric import JudgeOutput, Metric

_ROWS = 512  # distances are taken for so many samples at a time, to bound memory


def mean_distance(x: Tensor) -> Tensor:
    """Return the mean of ``‖x_i − x_j‖`` over pairs ``i ≠ j`` of ``x [N, d]``."""
    # Matrix multiplication would lose the distances of near neighbours to rounding.
    sums = [
        torch.cdist(rows, x, compute_mode="donot_use_mm_for_euclid_dist").sum()
        for rows in x.split(_ROWS)
    ]
    return torch.stack(sums).sum() / (len(x) * (len(x) - 1))


def within_class_distances(features: Tensor, labels: Tensor) -> dict[int, float]:
    """Return, for each class of at least two samples, its mean pairwise distance.

    ``d_c = mean over i ≠ j in class c of ‖f_i − f_j‖``: Euclidean, in the units of ``features
    [N, d]``, computed in float64. Its expectation does not depend on the number of samples.
    """
    counts = torch.bincount(labels)
    return {
        int(c): float(mean_distance(features[labels == c].double()))
        for c in (counts > 1).nonzero().flatten()
    }


class Diversity(Metric):
    """Within-class diversity: the mean of `within_class_distances` over the wanted classes."""

    def __init__(self) -> None:
        self.features: list[Tensor] = []
        self.wanted: list[Tensor] = []

    def update(self, samples: JudgeOutput) -> None:
        self.features.append(samples.features)
        self.wanted.append(samples.wanted)

    def by_class(self) -> dict[int, float]:
        """Return the mean distance of each class that has at least two samples."""
        found = (
            within_class_distances(torch.cat(self.features), torch.cat(self.wanted))
            if self.features
            else {}
        )
        if not found:
            raise ValueError(
                "diversity needs at least two samples of one class, and no class has two; draw "
                "more samples"
            )
        return found

    def compute(self) -> float:
        found = self.by_class()
        return sum(found.values()) / len(found)


class DiversityRatio(Metric):
    """Within-class diversity as a share of a reference's: ``Σ_c d_c / Σ_c d_c(reference)``.

    Over the classes of which both have at least two samples. 1 says that samples of a class differ
    as much as real images do; strong guidance narrows it.

    Args:
        reference: real images, with their true classes as wanted.

    References:
        Classifier-Free Diffusion Guidance (the trade between fidelity and diversity),
        https://arxiv.org/abs/2207.12598
    """

    def __init__(self, reference: JudgeOutput) -> None:
        self.reference = within_class_distances(reference.features, reference.wanted)
        self.samples = Diversity()

    def update(self, samples: JudgeOutput) -> None:
        self.samples.update(samples)

    def compute(self) -> float:
        found = self.samples.by_class()
        shared = found.keys() & self.reference.keys()
        if not shared:
            raise ValueError(
                "samples and reference share no class of which both have at least two; draw more "
                "samples of the reference's classes"
            )
        return sum(found[c] for c in shared) / sum(self.reference[c] for c in shared)
