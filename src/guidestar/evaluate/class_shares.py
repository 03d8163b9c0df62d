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
    """Share of the rarest class that the judge predicts, in [0, 1/K]; 0: a class is missing.

    `shares` returns the share of each class.

    References:
        Assessing Generative Models via Precision and Recall (class histograms show dropped
        modes), https://arxiv.org/abs/1806.00035
    """

    def __init__(self) -> None:
        self.predicted: list[Tensor] = []
        self.classes: int

    def update(self, samples: JudgeOutput) -> None:
        self.predicted.append(samples.predicted)
        self.classes = samples.logits.shape[1]

    def shares(self) -> Tensor:
        """Return the share of each class that the judge predicts: ``[K]``, float64."""
        if not self.predicted:
            raise ValueError(
                "class shares need at least one sample, and there is none; call update first"
            )
        return class_shares(torch.cat(self.predicted), self.classes)

    def compute(self) -> float:
        return float(self.shares().min())
