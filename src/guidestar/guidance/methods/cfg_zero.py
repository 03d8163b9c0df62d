"""CFG-Zero*: classifier-free guidance for flows, with a rescaled null and a start at rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.arguments import check_counts
from ...core.denoiser import Condition
from ...core.levels import Step, expand, inverse_or_zero
from ...core.prediction import HOLDS, Prediction, Unguided
from ...core.rounds import Asking, Group, GuidedStep
from ..bases.conditional_contrast import Conditioned
from ..bases.statistics import dot, safe
from ..context import Count, States, SumEngine
from ..expression import register
from ..groups import join_steps, select, take
from ..term import Live, Pushed


@register
@dataclass(frozen=True)
class CFGZero(Conditioned):
    """CFG-Zero*: ``v̂ = a u + s(c − a u)`` with ``a = ⟨c, u⟩/‖u‖²``, in velocity (``ε − x0``).

    In the first K steps the velocity is 0: no pass of any term is evaluated, and no post acts. The
    pair is then ``x0 = ε = x_t/(α + σ)``, so ``x/(α + σ)`` does not move, which in a flow is x. A
    multistep solver uses that estimate for one more step.

    Args:
        scale: s, as in cfg.
        zero: K, a number of steps; by default ``max(1, round(0.04 n))`` of n, as in the paper.
        negative: as in cfg.

    2 evaluations a step, 0 in the first K. The product and the norm are per sample.

    References:
        CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models,
        https://arxiv.org/abs/2503.18886
            Weichen Fan, Amber Yijia Zheng, Raymond A. Yeh, Ziwei Liu
    """

    zero: int | None = None
    negative: str | int | Condition | None = None
    name = "cfg_zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, self.name)
        if self.zero is not None and self.zero < 0:
            raise ValueError(
                f"cfg_zero: zero must be a number of steps, 0 or more, not {self.zero!r}"
            )

    def holds(self, step: Step) -> bool:
        """Return whether ``step`` is one of the first K."""
        count = max(1, round(0.04 * step.grid.steps)) if self.zero is None else self.zero
        return step.index < count

    def around(self, engine: SumEngine, key: int) -> SumEngine:
        return HeldStart(engine, self, key)

    def shape(self, good: Prediction, bad: Prediction, live: Live) -> Pushed:
        c, u = good.view("velocity"), bad.view("velocity")
        share = dot(c, u) / safe(dot(u, u))
        return good.to_x0(c - share * u, "velocity"), live.state


@dataclass(frozen=True)
class HeldStart:
    """An engine that gives samples of a `CFGZero` velocity 0 in its first steps, without passes.

    Args:
        inner: the engine of the other samples.
        term: the term.
        key: its index in the sum.
    """

    inner: SumEngine
    term: CFGZero
    key: int

    @property
    def names(self) -> Sequence[str]:
        """The terms' expressions."""
        return self.inner.names

    def ask(self, group: Group, states: States, explain: bool) -> Asking[GuidedStep]:
        """Yield the rounds of the other samples, and return the guided step of all."""
        size = len(group.x_t)
        held = self._held(group.step, group.rows, size)
        if not len(held):
            return (yield from self.inner.ask(group, states, explain))
        if len(held) == size:
            return self._rest(group, states, explain)
        moving = _others(size, held)
        some = lambda rows: (group.take(rows), tuple(take(state, rows) for state in states))
        moved = yield from self.inner.ask(*some(moving), explain)
        rest = self._rest(*some(held), explain)
        return join_steps([(moving, moved), (held, rest)], group)

    def count(self, step: Step, rows: Tensor, stopped: bool = False) -> Count:
        """Count the passes of the samples that move."""
        moving = rows[_others(len(rows), self._held(step.take(rows), rows, len(rows)))]
        return self.inner.count(step, moving, stopped) if len(moving) else Count({})

    def _held(self, step: Step, rows: Tensor | None, size: int) -> Tensor:
        """Return the held samples: those of the term, in its first steps."""
        if not self.term.holds(step):
            return torch.arange(0)
        chosen = select(self.term.weight(step, rows), size, self.term.name)
        if chosen is None:
            return torch.arange(0)
        return torch.arange(size) if chosen[1] is None else chosen[1]

    def _rest(self, group: Group, states: States, explain: bool) -> GuidedStep:
        """Return the pair whose velocity is 0: ``x0 = eps = x_t/(alpha + sigma)``."""
        level, x_t = group.step.t, group.x_t
        x = expand(inverse_or_zero(level.alpha + level.sigma), x_t) * x_t
        pushes = dict.fromkeys(self.names, torch.zeros_like(x)) if explain else None
        unguided = Unguided(x0=x, eps=x, terms=(HOLDS,) * len(states))
        prediction = Prediction(x_t=x_t, level=level, x0=x, eps=x, unguided=unguided)
        return GuidedStep(prediction, states, 0, pushes)


def _others(size: int, rows: Tensor) -> Tensor:
    everyone = torch.arange(size)
    return everyone[~torch.isin(everyone, rows)]
