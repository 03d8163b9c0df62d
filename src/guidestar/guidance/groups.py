"""Groups of samples: select rows and states, spread pushes, and join guided steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real

import torch
from torch import Tensor

from ..core.levels import Value, expand
from ..core.passes import Pass
from ..core.prediction import Prediction
from ..core.rounds import Group, GuidedStep, TermState


def take(state: TermState, rows: Tensor) -> TermState:
    """Select samples (``rows``: int64 indices) of the state of a term."""
    return {name: value[rows.to(value.device)] for name, value in state.items()}


def join_steps(parts: Sequence[tuple[Tensor, GuidedStep]], group: Group) -> GuidedStep:
    """Join the guided steps of parts of a group, in the order of its samples.

    Args:
        parts: rows of ``group`` (each row in one part), and their guided step.
        group: all samples.
    """
    steps = [part for _, part in parts]
    order = torch.cat([rows for rows, _ in parts]).argsort()
    joined = Prediction.join([s.prediction for s in steps], group.x_t, group.step.t).take(order)
    prediction = replace(joined, x_t=group.x_t, level=group.step.t)
    states = tuple(_ordered(own, order) for own in zip(*(s.state for s in steps), strict=True))
    counted = [torch.as_tensor(s.evaluations).expand(len(rows)) for rows, s in parts]
    counts = torch.cat(counted)[order]
    pushes = [s.pushes for s in steps if s.pushes is not None]
    return GuidedStep(prediction, states, counts, _ordered(pushes, order) if pushes else None)


def _ordered(parts: Sequence[TermState], order: Tensor) -> TermState:
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return take(joined, order)


def number_of(rows: Tensor | None, size: int) -> int:
    """Count rows (None: all ``size`` samples)."""
    return size if rows is None else len(rows)


def count_evaluations(passes: Mapping[Pass, Tensor | None], size: int) -> int | Tensor:
    """Count the evaluations of each sample: one number where it is the same for all."""
    everywhere = sum(rows is None for rows in passes.values())
    some = [rows for rows in passes.values() if rows is not None]
    return everywhere + torch.bincount(torch.cat(some), minlength=size) if some else everywhere


def select(weight: Value, size: int, name: str) -> tuple[Value, Tensor | None] | None:
    """Return the weights that are not 0 and their rows (None: all); None if there are none.

    Args:
        weight: of each of ``size`` samples, or one number for all.
        size: how many samples there are.
        name: of the term, for the message.

    Raises:
        ValueError: weights for another number of samples.
    """
    if not isinstance(weight, Tensor | Real) or (isinstance(weight, Tensor) and weight.ndim != 1):
        found = f"a tensor {tuple(weight.shape)}" if isinstance(weight, Tensor) else repr(weight)
        raise ValueError(
            f"{name}: weight must return a float, or a CPU tensor [{size}] of one number for each "
            f"sample, not {found}"
        )
    if not isinstance(weight, Tensor):
        return (weight, None) if weight else None
    if len(weight) != size:
        raise ValueError(
            f"{name} has {len(weight)} scales for {size} samples; give one number, or one for "
            "each sample"
        )
    rows = weight.nonzero().flatten()
    if len(rows) == size:
        return weight, None
    return (weight[rows], rows) if len(rows) else None


def spread_push(delta: Tensor, weight: Value, rows: Tensor | None, like: Tensor) -> Tensor:
    """Return ``weight · delta`` at ``rows`` (None: everywhere), 0 elsewhere."""
    weighted = expand(weight, delta) * delta
    if rows is None:
        return weighted
    return torch.zeros_like(like).index_add(0, rows.to(like.device), weighted)
