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
    """What one guidance gave: ``scores`` by the names of the metrics, and the seconds that drawing
    took.
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
    """Draw from the same seeds under each guidance and measure, yielding a row as soon as it is
    known.

    Args:
        draw: samples ``[N, C, H, W]`` of an expression and ``seeds``; it alone is timed (seconds,
            until the samples are on the CPU).
        expressions: guidances, as anything ``draw`` takes and ``str`` names.
        seeds: one integer for each sample.
        judge: sees classes and features (see `run_judge`); it must guide nothing.
        reference: real images as this judge sees them, with their true classes.
        wanted: the class that ``draw`` asks of each seed, ``[N]``; None groups samples by what the
            judge sees, as unconditional samples need.
        metrics: what to measure: names, and how each is made from the reference.
    """
    fresh = {name: make(reference) for name, make in metrics.items()}
    for expression in expressions:
        start = time.perf_counter()
        images = draw(expression, seeds).cpu()
        seconds = time.perf_counter() - start
        judged = run_judge(judge, images, wanted)
        yield SweepRow(
            expression=str(expression),
            scores={name: _measure(m, judged) for name, m in fresh.items()},
            seconds=seconds,
        )


def _measure(fresh: Metric, judged: JudgeOutput) -> float:
    metric = copy.deepcopy(fresh)  # a reference's statistics are costly, so they are taken once
    metric.update(judged)
    return metric.compute()
