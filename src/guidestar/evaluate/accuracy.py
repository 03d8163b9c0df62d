"""Does a sample show the wanted class?"""

from __future__ import annotations

from .metric import JudgeOutput, Metric


class Accuracy(Metric):
    """Share of the samples in which the judge predicts the wanted class, in [0, 1].

    ``mean(argmax logits = wanted)``

    References:
        Classification Accuracy Score for Conditional Generative Models (the converse measure:
        train on samples, test on data), https://arxiv.org/abs/1905.10887
    """

    def __init__(self) -> None:
        self.right = self.count = 0

    def update(self, samples: JudgeOutput) -> None:
        self.right += int((samples.predicted == samples.wanted).sum())
        self.count += len(samples.wanted)

    def compute(self) -> float:
        if not self.count:
            raise ValueError(
                "accuracy needs at least one sample, and there is none; call update first"
            )
        return self.right / self.count
