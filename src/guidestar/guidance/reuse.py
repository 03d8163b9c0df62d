"""Reuse: a term's push is evaluated at some steps, and carried over at those in between.

A push is a difference of clean estimates. What is carried is that difference in another space,
``Δ = k Δx0`` with ``k`` of the level (`guidestar.core.prediction.slope`), as it changes less along
a run in some spaces than in others. At a step that evaluates nothing the push is ``Δ/k`` there.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..core.levels import Level, Step, Value, expand, inverse_or_zero
from ..core.passes import Pass
from ..core.prediction import Prediction, slope
from ..core.rounds import Group
from ..core.slopes import Slope
from .bases.statistics import norm, safe
from .context import Live, TermState

if TYPE_CHECKING:
    from .term import Direction, Pushed, Rounds, Traits

CARRIES = ("x0", "eps", "velocity")
"""Spaces in which a push may be carried."""

_PUSH, _AT, _BEFORE, _BEFORE_AT, _RATE = (
    f"reuse.{name}" for name in ("push", "at", "before", "before_at", "rate")
)


class Pusher(Protocol):
    """Computes the push of a term."""

    def slope(self, group: Group) -> Slope | None:
        """Return a gradient at x_t that it needs beside its passes, if any."""
        ...

    def push(self, live: Live, *predictions: Prediction) -> Pushed | Rounds:
        """Return the push of x0 and the new state, or the rounds of passes that it takes."""
        ...


@dataclass(frozen=True, eq=False)
class TermPart:
    """Some samples of a term: those that evaluate its push, or those that carry it over."""

    pusher: Pusher
    traits: Traits
    weight: Value
    rows: Tensor | None
    passes: tuple[Pass, ...]


def check_reuse(term: Direction) -> None:
    """Refuse settings of reuse that are out of range, or that have no meaning for a term.

    Raises:
        ValueError: the term and the argument are named.
    """
    name = term.name
    if isinstance(term.every, bool) or term.every not in range(1, 1001):
        raise ValueError(
            f"{name}: every must be a whole number from 1 to 1,000, not {term.every!r}"
        )
    if term.reuse is not None and not (
        isinstance(term.reuse, int | float)
        and not isinstance(term.reuse, bool)
        and 0 < term.reuse < math.inf
    ):
        raise ValueError(
            f"{name}: reuse must be a positive relative change, e.g. 0.02, not {term.reuse!r}"
        )
    if term.carry not in CARRIES:
        raise ValueError(f"{name}: carry must be {', '.join(CARRIES)}, not {term.carry!r}")
    if not isinstance(term.extrapolate, bool):
        raise ValueError(f"{name}: extrapolate must be True or False, not {term.extrapolate!r}")
    if term.every > 1 and term.reuse is not None:
        raise ValueError(f"{name}: give every or reuse, not both")
    if not reuses(term):
        return
    from .term import Direction

    kind = type(term)
    if kind.may_stop is not Direction.may_stop or kind.around is not Direction.around:
        raise ValueError(
            f"{name} decides itself when it is evaluated, so every and reuse have no meaning for "
            "it; use cfg"
        )
    if term.traits.reads_target:
        raise ValueError(
            f"{name} depends on the level that a step leads to, so its push cannot be carried to "
            "another step; leave every and reuse out"
        )


def reuses(term: Direction) -> bool:
    """Return whether a term carries its push over at some steps."""
    return term.every > 1 or term.reuse is not None


def initial_state(term: Direction, x_t: Tensor) -> TermState:
    """Return the state of a term before the first step, with what reuse keeps."""
    state = term.start(x_t)
    if not reuses(term):
        return state
    never = torch.full((len(x_t),), math.nan, dtype=torch.float64)
    state = {**state, _PUSH: torch.zeros_like(x_t), _AT: never}
    if term.extrapolate:
        state |= {_BEFORE: torch.zeros_like(x_t), _BEFORE_AT: never}
    if term.reuse is not None:
        state |= {_RATE: torch.full_like(never, math.inf)}
    return state


def split_term(
    term: Direction,
    traits: Traits,
    step: Step,
    rows: Tensor | None,
    chosen: tuple[Value, Tensor | None],
    size: int,
    state: TermState | None,
    *,
    fewest: bool = False,
) -> list[TermPart]:
    """Split the samples of a term into those that evaluate its push and those that carry it.

    Args:
        term: bound to the run.
        traits: of the term.
        step: of the group at hand.
        rows: which samples of the run the group has (None: all).
        chosen: the weights that are not 0, and their rows in the group (None: all).
        size: how many samples the group has.
        state: what the term keeps of the group; None where a plan is made.
        fewest: whether a plan is of the fewest evaluations.
    """
    weight, local = chosen
    if not reuses(term):
        return [TermPart(term, traits, weight, local, term.passes(step))]
    due = _due(term, step, rows, size, state, fewest)
    if local is not None:
        due = due[local]
    carrying = replace(traits, gradients=0, repeats=0, differentiates=None, later=0, instead=())
    parts: list[TermPart] = []
    for chosen_rows, fresh in ((due, True), (~due, False)):
        if not bool(chosen_rows.any()):
            continue
        picked = None if bool(chosen_rows.all()) else chosen_rows.nonzero().flatten()
        own = weight[picked] if isinstance(weight, Tensor) and picked is not None else weight
        where = local if picked is None else picked if local is None else local[picked]
        parts.append(
            TermPart(_Fresh(term), traits, own, where, term.passes(step))
            if fresh
            else TermPart(_Carried(term), carrying, own, where, ())
        )
    return parts


def _due(
    term: Direction,
    step: Step,
    rows: Tensor | None,
    size: int,
    state: TermState | None,
    fewest: bool,
) -> Tensor:
    """Return which samples of a group evaluate the push, ``[B]``."""
    before = _active_before(term, step, rows, size)
    if term.reuse is None:
        due = before % term.every == 0
    elif state is None:
        due = before < 2 if fewest else torch.ones(size, dtype=torch.bool)
    else:
        gap = (_half_log_snr(step.t, size) - state[_AT]).abs()
        due = ~(state[_RATE] * gap <= term.reuse)  # true also where it is not a number
    return due if state is None else due | state[_AT].isnan()


def _active_before(term: Direction, step: Step, rows: Tensor | None, size: int) -> Tensor:
    """Count the earlier steps of the grid at which the term acts, for each sample of a group."""
    count = torch.zeros(size, dtype=torch.int64)
    for index in range(step.index):
        earlier = step.grid.step(index)
        weight = term.weight(earlier if rows is None else earlier.take(rows), rows)
        count += (torch.as_tensor(weight) != 0).long()
    return count


def _half_log_snr(level: Level, size: int) -> Tensor:
    return (torch.as_tensor(level.log_snr, dtype=torch.float64) / 2).expand(size)


@dataclass(frozen=True, eq=False)
class _Fresh:
    """Evaluates the push of a term, and keeps it."""

    term: Direction

    def slope(self, group: Group) -> Slope | None:
        return self.term.slope(group)

    def push(self, live: Live, *predictions: Prediction) -> Pushed | Rounds:
        found = self.term.push(live, *predictions)
        if isinstance(found, Generator):
            return self._later(live, found)
        return self._keep(live, *found)

    def _later(self, live: Live, rounds: Rounds) -> Rounds:
        push, state = yield from rounds
        return self._keep(live, push, state)

    def _keep(self, live: Live, push: Tensor, state: TermState) -> Pushed:
        term, old = self.term, live.state
        here = _half_log_snr(live.step.t, len(push)).clone()
        carried = (expand(slope(live.step.t, term.carry), push) * push).to(old[_PUSH].dtype)
        new = {**state, _PUSH: carried, _AT: here}
        if term.extrapolate:
            new |= {_BEFORE: old[_PUSH], _BEFORE_AT: old[_AT]}
        if term.reuse is not None:
            missed = norm(carried - _estimate(term, old, here)) / safe(norm(carried))
            rate = missed.flatten().to("cpu", torch.float64) / (here - old[_AT]).abs()
            new |= {_RATE: torch.where(rate.isnan(), math.inf, rate)}
        return push, new


@dataclass(frozen=True, eq=False)
class _Carried:
    """Carries the last push of a term to another level."""

    term: Direction

    def slope(self, group: Group) -> None:
        return None

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        here = _half_log_snr(live.step.t, len(live.x_t))
        carried = _estimate(self.term, live.state, here)
        scale = inverse_or_zero(slope(live.step.t, self.term.carry))
        return expand(scale, carried) * carried, {}


def _estimate(term: Direction, state: TermState, here: Tensor) -> Tensor:
    """Return the carried push at λ ``here [B]``: the last one, or on the line through the last two.

    With one push before, it is that one.
    """
    last = state[_PUSH]
    if not term.extrapolate:
        return last
    share = (here - state[_AT]) / (state[_AT] - state[_BEFORE_AT])
    share = torch.where(share.isfinite(), share, 0.0)
    return last + expand(share, last) * (last - state[_BEFORE])
