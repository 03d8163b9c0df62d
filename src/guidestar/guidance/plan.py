"""Plans: the passes of a run, known before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass

from ..core.passes import Pass


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The passes of one step.

    Args:
        index: of the step.
        rho: its noise ratio; that of the first sample, if they differ.
        passes: the number of samples of each pass (the largest, if that depends on the samples).
            The passes of later rounds are not known yet, so they are counted by a name.
        fewest: the smallest number of evaluations of all samples.
        gradients: number of gradients, summed over the samples.
        repeats: what terms repeat beside the network (`Traits.repeats`), likewise.
        batch: number of samples.
    """

    index: int
    rho: float
    passes: Mapping[Pass | str, int]
    fewest: int
    gradients: int
    repeats: int
    batch: int

    @property
    def nfe(self) -> float:
        """Network evaluations a sample, on average over the batch: the largest number."""
        return sum(self.passes.values()) / self.batch

    @property
    def least(self) -> float:
        """The smallest number; below `nfe` if a guidance may stop for some samples."""
        return self.fewest / self.batch


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All passes of a run, step by step; prints as a table."""

    steps: tuple[StepPlan, ...]

    @property
    def nfe(self) -> float:
        """Network evaluations a sample over the run, on average: the largest number."""
        return sum(step.nfe for step in self.steps)

    @property
    def least(self) -> float:
        """The smallest number."""
        return sum(step.least for step in self.steps)

    @property
    def gradients(self) -> float:
        """Gradients a sample over the whole run."""
        return sum(step.gradients / step.batch for step in self.steps)

    def __str__(self) -> str:
        lines = [f"{'step':>4}  {'rho':>9}  {'NFE':>5}  passes"]
        labels = label_passes([p for s in self.steps for p in s.passes])
        for s in self.steps:
            names = [
                labels[p] if n == s.batch else f"{labels[p]} ({n} of {s.batch})"
                for p, n in s.passes.items()
            ]
            names += [f"gradient x {s.gradients / s.batch:g}"] if s.gradients else []
            row = f"{s.index:>4}  {s.rho:>9.4g}  {_span(s.least, s.nfe):>5}"
            lines.append(f"{row}  {', '.join(names) or 'none'}")
        total = _span(self.least, self.nfe, " to ")
        lines.append(f"total NFE {total} a sample, gradients {self.gradients:g}")
        return "\n".join(lines)


def label_passes(passes: Iterable[Pass | str]) -> dict[Pass | str, str]:
    """Name passes, each differently: by the arguments of their perturbations or edits that differ.

    Passes of later rounds are names already.
    """
    alike: dict[str, list[Pass | str]] = {}
    for p in dict.fromkeys(passes):
        alike.setdefault(str(p), []).append(p)
    labels: dict[Pass | str, str] = {}
    for name, group in alike.items():
        if len(group) == 1:
            labels[group[0]] = name
            continue
        told = [_arguments(p) for p in group]
        names = [k for k in told[0] if any(one.get(k) != told[0][k] for one in told)]
        shown = [", ".join(f"{k}={one[k]!r}" for k in names if k in one) for one in told]
        distinct = len(set(shown)) == len(shown) and all(shown)
        for i, p in enumerate(group):
            labels[p] = f"{name}[{shown[i] if distinct else i + 1}]"
    return labels


def _arguments(p: Pass | str) -> dict[str, object]:
    changes = () if isinstance(p, str) else (p.perturb, p.edit)
    return {
        f.name: getattr(change, f.name)
        for change in changes
        if is_dataclass(change) and not isinstance(change, type)
        for f in fields(change)
    }


def _span(low: float, high: float, between: str = "-") -> str:
    return f"{high:.6g}" if low == high else f"{low:.6g}{between}{high:.6g}"
