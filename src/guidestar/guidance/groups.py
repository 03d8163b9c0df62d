"""Groups of samples: select their states, and join their guided steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

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
