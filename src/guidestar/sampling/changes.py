"""Multistep solvers where terms of a guidance begin or cease to act.

There the guided estimate jumps: ``D = B + P`` with a base B that is smooth along the run and a push
P that is suddenly there, or gone. A polynomial through estimates of both sides would take the jump
for curvature. The bases of earlier steps are known, so their estimates are replaced.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.levels import Value, expand
from .solver import Solver

AtChanges = Literal["base", "restart", "keep"]
"""What earlier estimates are replaced by, where the terms that act have changed."""

SAME, TERMS, BASE = 0.0, 1.0, 2.0
"""What has changed since the step before: nothing, which terms act, what they are added to."""


@dataclass(frozen=True, kw_only=True)
class Remembering(Solver, ABC):
    """Base of solvers that keep estimates of earlier steps.

    Args:
        at_changes: what stands for an earlier estimate D' at a step where terms of the guidance
            began or ceased to act, with D, the base B and its earlier B' known: ``B' + (D − B)``,
            which keeps the order of the base ("base"); D, so that the step is of first order
            ("restart"); or D' as it is ("keep").
    """

    at_changes: AtChanges = "keep"
    history = True


def change(before: Sequence[Value], now: Sequence[Value]) -> Value:
    """Return what has changed (`SAME`, `TERMS`, `BASE`) between `Unguided.terms` of two steps.

    Args:
        before: the terms of the step before, each one number or one for each sample.
        now: those of this step.
    """
    pairs = list(zip(before, now, strict=True))
    size = next((len(v) for pair in pairs for v in pair if isinstance(v, Tensor)), None)
    if size is None:
        return max((_change(float(a), float(b)) for a, b in pairs), default=SAME)
    found = torch.zeros(size, dtype=torch.float64)
    for pair in pairs:
        a, b = (torch.as_tensor(v, dtype=torch.float64).expand(size) for v in pair)
        own = torch.where((a < 0) == (b < 0), TERMS, BASE).double() * (a != b)
        found = torch.maximum(found, own)
    return found if bool(found.any()) else SAME


def _change(a: float, b: float) -> float:
    return SAME if a == b else TERMS if (a < 0) == (b < 0) else BASE


def where(condition: bool | Tensor, then: Tensor, otherwise: Tensor) -> Tensor:
    """Select sample by sample; a condition ``[B]`` lies on the CPU."""
    if not isinstance(condition, Tensor):
        return then if condition else otherwise
    return torch.where(torch.as_tensor(expand(condition.double(), then)) > 0, then, otherwise)
