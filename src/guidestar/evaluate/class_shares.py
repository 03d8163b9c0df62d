"""Are all classes among the samples?"""

from __future__ import annotations

import torch
from torch import Tensor

from .metric import JudgeOutput, Metric


def class_shares(labels: Tensor, classes: int) -> Tensor:
    """Return the share of each class among labels ``[N]``: ``[K]`` float64, of sum 1.

    Example:
        >>> class_shares(torch.tensor([2, 0, 2, 2]), 4).tolist()
        [0.25, 0.0, 0.75, 0.0]
    """
    return torch.bincount(labels, minlength=classes).double() / len(labels)


class LeastShare(Metric):
    """Share of the rarest class the judge sees, in [0, 1/K]: 0 says that a class is missing.

    `shares` has them all.

    References:
        Assessing Generative Models via Precision and Recall (class histograms show dropped
        modes), https://arxiv.org/abs/1806.00035
    """

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.classes = 0

    def update(self, samples: JudgeOutput) -> None:
        self.seen.append(samples.seen)
        self.classes = samples.logits.shape[-1]

    def shares(self) -> Tensor:
        """Return the share of each class the judge sees: ``[K]`` float64."""
        if not self.seen:
            raise ValueError("class shares need at least one sample")
        return class_shares(torch.cat(self.seen), self.classes)

    def compute(self) -> float:
        return float(self.shares().min())
