"""Runs: walk a grid of levels with a solver, one step at a time.

Predictions come from a `Guided`, or from any ``predict(x_t, step, state) -> (Prediction, state)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.evaluation import drive
from ..core.levels import Grid, Level, Step, expand
from ..core.prediction import Prediction
from ..core.rng import Draw, checked_seeds
from ..core.rounds import Asking, GuidedStep, States
from .solver import Asker, Memory, Point, Predict, Solver


@dataclass(frozen=True, kw_only=True)
class State:
    """The state of a run after a step.

    Args:
        x: samples ``[B, *S]`` at ``step.s``.
        step: the step that led here.
        prediction: the (first) guided prediction of that step.
        pushes: each term's weighted push of x0 ``[B, *S]``, by its expression, with ``explain``.
        evaluations: network evaluations of each sample so far, as a `Guided` counts them.
        memory: the state of the solver.
        kept: the state of the guidance.
    """

    x: Tensor
    step: Step
    prediction: Prediction
    pushes: dict[str, Tensor] | None = None
    evaluations: tuple[int, ...] = ()
    memory: Memory = field(default_factory=dict, repr=False)
    kept: States = field(default=(), repr=False)


def advance(
    predict: Predict,
    solver: Solver,
    x: Tensor,
    step: Step,
    draw: Draw,
    before: State | None = None,
    explain: bool = False,
) -> Asking[State]:
    """Take one step of a run: a generator for `guidestar.core.evaluation.drive`.

    All predictions within a step get the same state of the guidance, and the state that the first
    of them returns is kept. The reported prediction is the first one of the last visit.

    Args:
        predict: a `Guided`, or any ``predict(x_t, step, state)``.
        solver: how to step.
        x: samples ``[B, *S]`` at ``step.t``.
        step: from one level to the next.
        draw: the samples' random streams.
        before: the state that the last step returned (None: this is the first).
        explain: also carry each term's push.
    """
    memory: Memory = before.memory if before else {}
    kept: Any = before.kept if before else {}
    counted: int | Tensor = 0
    first = shown = None
    visit = -1
    with torch.no_grad():
        moving = solver.move(x, step, memory, draw.at(step.index))
        point = next(moving)
    while True:
        leads = point.step.visit != visit
        found = yield from _ask(predict, point, kept, explain and leads)
        counted, visit = counted + found.evaluations, point.step.visit
        first, shown = first or found, found if leads or shown is None else shown
        try:
            with torch.no_grad():
                point = moving.send(found.prediction)
        except StopIteration as end:
            x, memory = end.value
            break
    counts = counted.tolist() if isinstance(counted, Tensor) else [counted] * len(x)
    past = before.evaluations if before else (0,) * len(x)
    return State(
        x=x,
        step=step,
        prediction=shown.prediction,
        pushes=shown.pushes,
        evaluations=tuple(a + b for a, b in zip(past, counts, strict=True)),
        memory=memory,
        kept=first.state,
    )


def _ask(predict: Predict, point: Point, kept: Any, explain: bool) -> Asking[GuidedStep]:
    """Return the guided step at a point."""
    if isinstance(predict, Asker):
        return (yield from predict.ask(point.x, point.step, kept, explain=explain))
    with torch.no_grad():
        found = predict(point.x, point.step, kept)
    return found if isinstance(found, GuidedStep) else GuidedStep(*found)


def walk(predict: Predict, x: Tensor, *, grid: Grid, solver: Solver, draw: Draw) -> Asking[Tensor]:
    """Walk a whole grid, and return the samples ``[B, *S]`` at its last level.

    A generator, so that runs of other guidance, solvers and grids can be driven side by side:
    ``drive(walk(…), walk(…))``. Arguments as in `trajectory`.
    """
    solver.check(predict, grid)
    state = None
    for index in range(grid.steps):
        state = yield from advance(predict, solver, x, grid.step(index), draw, state)
        x = state.x
    return x


def trajectory(
    predict: Predict,
    x: Tensor,
    *,
    grid: Grid,
    solver: Solver | str,
    draw: Draw,
    explain: bool = False,
) -> Iterator[State]:
    """Yield the state after each step; stop iterating to cancel.

    Args:
        predict: a `Guided`, or any ``predict(x_t, step, state)``.
        x: samples ``[B, *S]`` at the first level of ``grid``.
        grid: levels to walk.
        solver: how to step: a solver or its name.
        draw: random streams of the stochastic solvers.
        explain: also carry each term's push in the states.

    Raises:
        ValueError: the solver is unknown, or cannot serve this guidance.
        FloatingPointError: after the last step, samples are not finite.
    """
    from . import get_solver

    solver = get_solver(solver)
    solver.check(predict, grid)
    state = None
    for index in range(grid.steps):
        x = state.x if state else x
        (state,) = drive(advance(predict, solver, x, grid.step(index), draw, state, explain))
        if index == grid.steps - 1:
            check_finite(state.x)
        yield state


def check_finite(x: Tensor, what: str = "samples") -> None:
    """Refuse samples ``[B, *S]`` that are not finite; waits for the device once.

    Args:
        x: the samples.
        what: their name in the message.

    Raises:
        FloatingPointError: some samples are not finite; they are numbered.
    """
    bad = (~x.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if bad:
        which = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        raise FloatingPointError(
            f"{len(bad)} of {len(x)} {what} are not finite (number {which}); lower the scale of "
            "the guidance, or take more steps"
        )


def noise(
    shape: Sequence[int],
    level: Level,
    draw: Draw,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw the noise that a run starts from: ``σ ε`` with ``ε ~ N(0, I)``, ``[B, *shape]``."""
    eps = draw.at(-1).normal("start", shape).to(device, dtype)
    return expand(level.sigma, eps) * eps


def noised(x0: Tensor, level: Level, draw: Draw) -> Tensor:
    """Noise data ``[B, *S]`` to ``level``: ``α x0 + σ ε``.

    References:
        SDEdit, https://arxiv.org/abs/2108.01073
    """
    eps = draw.at(-1).normal_like("start", x0)
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps


def sample(
    predict: Predict,
    *,
    grid: Grid,
    solver: Solver | str = "dpmpp-2m",
    seeds: Sequence[int],
    shape: Sequence[int] | None = None,
    start: Tensor | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sample ``[B, *shape]``: one sample a seed, each depending on its own seed alone.

    Args:
        predict: a `Guided`, or any ``predict(x_t, step, state) -> (Prediction, state)``.
        grid: levels to walk, from noise (with ``start``: from its first level) to data.
        solver: a solver or its name.
        seeds: one integer a sample.
        shape: of one sample; not needed with ``start``.
        start: data ``[B, *shape]`` to start from, noised to the first level of ``grid`` (SDEdit).
        device: of the samples, where there is no ``start``.
        dtype: of the samples, where there is no ``start``.

    Raises:
        ValueError: no seeds, an unknown solver, or one that cannot serve this guidance.
    """
    draw = Draw(checked_seeds(seeds))
    if start is None and shape is None:
        raise ValueError("sample() needs the shape of one sample, or data to start from (start=)")
    if start is not None and len(start) != len(draw.seeds):
        raise ValueError(
            f"{len(draw.seeds)} seeds were given for {len(start)} samples to start from"
        )
    x = (
        noised(start, grid[0], draw)
        if start is not None
        else noise(shape or (), grid[0], draw, device=device, dtype=dtype)
    )
    for state in trajectory(predict, x, grid=grid, solver=solver, draw=draw):
        x = state.x
    return x
