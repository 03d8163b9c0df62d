"""What a run takes, known before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core.passes import Pass


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What one step takes.

    Args:
        index: of the step.
        rho: its noise ratio (of the first sample, where they differ).
        passes: each pass, and for how many of the samples (at most, where that depends on the
            samples); a later round, whose passes are not known yet, by its name.
        fewest: evaluations of all samples, at least.
        gradients: how many gradients, and for how many of the samples, summed.
        batch: how many samples there are.
    """

    index: int
    rho: float
    passes: Mapping[Pass | str, int]
    fewest: int
    gradients: int
    batch: int

    @property
    def nfe(self) -> float:
        """Network evaluations a sample, on average over the batch (at most)."""
        return sum(self.passes.values()) / self.batch

    @property
    def least(self) -> float:
        """The same, at least: less than `nfe` where a guidance decides by the samples."""
        return self.fewest / self.batch


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every pass of a run, known before anything runs."""

    steps: tuple[StepPlan, ...]

    @property
    def nfe(self) -> float:
        """Network evaluations a sample over the whole run, on average over the batch (at most)."""
        return sum(step.nfe for step in self.steps)

    @property
    def least(self) -> float:
        """The same, at least."""
        return sum(step.least for step in self.steps)

    @property
    def gradients(self) -> float:
        """Gradients a sample over the whole run."""
        return sum(step.gradients / step.batch for step in self.steps)

    def __str__(self) -> str:
        lines = [f"{'step':>4}  {'rho':>9}  {'NFE':>5}  passes"]
        for s in self.steps:
            names = [
                str(p) if n == s.batch else f"{p} ({n} of {s.batch})" for p, n in s.passes.items()
            ]
            names += [f"gradient x {s.gradients / s.batch:g}"] if s.gradients else []
            lines.append(
                f"{s.index:>4}  {s.rho:>9.4g}  {_span(s.least, s.nfe):>5}  "
                f"{', '.join(names) or 'none'}"
            )
        return "\n".join(
            [
                *lines,
                f"total NFE {_span(self.least, self.nfe, ' to ')} a sample, gradients "
                f"{self.gradients:g}",
            ]
        )


def _span(low: float, high: float, between: str = "-") -> str:
    return f"{high:.6g}" if low == high else f"{low:.6g}{between}{high:.6g}"
