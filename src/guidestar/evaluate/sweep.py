"""The same seeds under many guidances, measured."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from .accuracy import Accuracy
from .class_shares import LeastShare
from .diversity import DiversityRatio
from .frechet import Frechet
from .metric import FeatureClassifier, JudgeOutput, Metric, run_judge

METRICS: dict[str, Callable[[JudgeOutput], Metric]] = {
    "accuracy": lambda reference: Accuracy(),
    "frechet": Frechet,
    "diversity": DiversityRatio,
    "least_share": lambda reference: LeastShare(),
}
"""Every metric a sweep reports by default: its name, and how it is made from a reference."""

Expression = TypeVar("Expression")


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """What one guidance gave.

    Args:
        expression: the guidance.
        scores: by the names of the metrics.
        seconds: that drawing took.
    """

    expression: str
    scores: dict[str, float]
    seconds: float


def sweep(
    draw: Callable[[Expression, Sequence[int]], Tensor],
    expressions: Iterable[Expression],
    seeds: Sequence[int],
    judge: FeatureClassifier,
    reference: JudgeOutput,
    *,
    wanted: Tensor | None = None,
    metrics: Mapping[str, Callable[[JudgeOutput], Metric]] = METRICS,
) -> Iterator[SweepRow]:
    """Draw from the same seeds under each guidance, measure, and yield a row for each.

    Args:
        draw: returns samples ``[N, C, H, W]`` of an expression and ``seeds``; it alone is timed
            (seconds, until the samples are on the CPU).
        expressions: guidances, as anything ``draw`` takes and ``str`` names.
        seeds: one integer for each sample.
        judge: predicts classes and features (see `run_judge`); it must guide nothing.
        reference: what this judge predicts of real images, with their true classes.
        wanted: the class that ``draw`` conditions each seed on, ``[N]``; None groups samples by the
            predicted class, as unconditional samples need.
        metrics: what to measure: names, and how each is made from the reference.
    """
    fresh = {name: make(reference) for name, make in metrics.items()}
    for expression in expressions:
        start = time.perf_counter()
        images = draw(expression, seeds).cpu()
        seconds = time.perf_counter() - start
        output = run_judge(judge, images, wanted)
        yield SweepRow(
            expression=str(expression),
            scores={name: _measure(m, output) for name, m in fresh.items()},
            seconds=seconds,
        )


def _measure(fresh: Metric, output: JudgeOutput) -> float:
    metric = copy.deepcopy(fresh)  # a reference's statistics are costly, so they are taken once
    metric.update(output)
    return metric.compute()
