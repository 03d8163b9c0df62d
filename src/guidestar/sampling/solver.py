"""Sampling: walk a grid of levels with a solver, one step at a time.

A solver's step is a generator: it yields the points where it needs a prediction, and receives it.
Predictions come from a `Guided`, or from any ``predict(x_t, step, state) -> (Prediction, state)``.
Nothing here knows about guidance, and nothing here reads back from a device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ..core.evaluation import Asking, GuidedStep, drive
from ..core.levels import Grid, Level, Step, expand
from ..core.prediction import Prediction
from ..core.rng import Draw, checked_seeds


@runtime_checkable
class Asker(Protocol):
    """What makes predictions by rounds of passes, so that several runs can share them: a
    `Guided`.
    """

    def ask(
        self, x_t: Tensor, step: Step, state: Any = None, *, explain: bool = False
    ) -> Asking[GuidedStep]:
        """Yield rounds of passes, receive their predictions, and return the guided step."""
        ...


Predict = Asker | Callable[[Tensor, Step, Any], Any]
"""A `Guided`, or ``predict(x_t, step, state) -> (Prediction, state)``; the first state is empty."""


class Point(NamedTuple):
    """Where a solver needs a prediction: samples ``x [B, *S]`` at the level ``step.t``."""

    x: Tensor
    step: Step


Memory = Mapping[str, Any]
"""What a solver keeps between steps."""

Moving = Generator[Point, Prediction, tuple[Tensor, Memory]]
"""Yields points, receives their predictions, and returns ``x_s`` and what the solver keeps."""


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """One way to step from a level to the next.

    Written in pair form: in x0 and eps as given, so that a split prediction means what its method
    says. A solver for which a split has no meaning has ``accepts_split = False``, and one that
    keeps earlier steps ``history = True``.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    """Its order, which some solvers have as a setting."""
    accepts_split: ClassVar[bool] = True
    history: ClassVar[bool] = False

    @abstractmethod
    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        """Move ``x_t [B, *S]`` from ``step.t`` to ``step.s``.

        A generator: it yields each `Point` where it needs a prediction, and returns ``x_s`` and
        what it keeps for the next step. ``draw`` holds the step's random streams.
        """

    def evaluations(self, step: Step) -> Sequence[Step]:
        """Return where the network is evaluated in ``step``."""
        return [step]

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise."""
        return False

    @property
    def convergence(self) -> int:
        """Order of convergence (weak, where it draws noise) on a grid even in log-SNR."""
        return self.order

    def check(self, predict: Predict, grid: Grid) -> None:
        """Refuse a guidance or grid that this solver cannot serve, by name.

        Raises:
            ValueError: a split prediction, a term that reads the target level, or one that works
                with another solver, or another setting of it, only.
        """
        splits, targets, only = (
            getattr(predict, n, ()) for n in ("splits", "reads_target", "only_solvers")
        )
        for term, (solver, settings) in dict(only).items():
            if solver != self.name:
                raise ValueError(
                    f"{term} in this form works with the solver {solver!r} only, not with "
                    f"{self.name!r}"
                )
            for key, value in settings.items():
                if getattr(self, key) != value:
                    raise ValueError(
                        f"{term} has {key}={value!r}, but the solver {solver!r} has "
                        f"{key}={getattr(self, key)!r}; give both the same"
                    )
        if splits and not self.accepts_split:
            raise ValueError(
                f"{splits[0]} splits the prediction, which has no meaning in the solver "
                f"{self.name!r}; use ddim or dpmpp-2m"
            )
        if targets and any(len(self.evaluations(grid.step(i))) > 1 for i in range(grid.steps)):
            raise ValueError(
                f"{targets[0]} reads the level that a step leads to, but the solver "
                f"{self.name!r} evaluates twice a step; use ddim or dpmpp-2m"
            )


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run stands after a step.

    Args:
        x: samples ``[B, *S]`` at ``step.s``.
        step: the step that led here.
        prediction: the (first) guided prediction of that step.
        pushes: each term's weighted push of x0, if asked for.
        evaluations: network evaluations of each sample so far, as a `Guided` counts them.
        memory: what the solver keeps.
        kept: what guidance keeps.
    """

    x: Tensor
    step: Step
    prediction: Prediction
    pushes: dict[str, Tensor] | None = None
    evaluations: tuple[int, ...] = ()
    memory: Memory = field(default_factory=dict, repr=False)
    kept: Any = field(default=(), repr=False)


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

    Every prediction within the step starts from the same state of guidance, and the state after the
    *first* of them is kept. The prediction that is reported is the first of the last visit.

    Args:
        predict: a `Guided`, or any ``predict(x_t, step, state)``.
        solver: how to step.
        x: samples ``[B, *S]`` at ``step.t``.
        step: from one level to the next.
        draw: the samples' random streams.
        before: the state that the last step returned (None: this is the first).
        explain: also carry each term's push.
    """
    memory, kept = (before.memory, before.kept) if before else ({}, {})
    counted, first, shown, visit = 0, None, None, -1
    asker = predict if isinstance(predict, Asker) else None
    function = cast("Callable[[Tensor, Step, Any], Any]", predict)
    with torch.no_grad():
        moving = solver.move(x, step, memory, draw.at(step.index))
        point = next(moving)
    while True:
        leads = point.step.visit != visit
        if asker is not None:
            found = yield from asker.ask(point.x, point.step, kept, explain=explain and leads)
        else:
            with torch.no_grad():
                answer = function(point.x, point.step, kept)
            found = answer if isinstance(answer, GuidedStep) else GuidedStep(*answer)
        counted, visit = counted + found.evaluations, point.step.visit
        first, shown = first or found, found if leads or shown is None else shown
        try:
            with torch.no_grad():
                point = moving.send(found.prediction)
        except StopIteration as end:
            x, memory = end.value
            break
    sofar = before.evaluations if before else (0,) * len(x)
    counts = counted.tolist() if isinstance(counted, Tensor) else [counted] * len(x)
    return State(
        x=x,
        step=step,
        prediction=shown.prediction,
        pushes=shown.pushes,
        evaluations=tuple(a + b for a, b in zip(sofar, counts, strict=True)),
        memory=memory,
        kept=first.state,
    )


def walk(predict: Predict, x: Tensor, *, grid: Grid, solver: Solver, draw: Draw) -> Asking[Tensor]:
    """Walk a whole grid, and return the samples ``[B, *S]`` at its last level.

    A generator, so that runs of other guidance, solvers and grids can be driven side by side:
    ``drive(walk(…), walk(…))``. Arguments as in `trajectory`.
    """
    solver.check(predict, grid)
    state = None
    for index in range(grid.steps):
        state = yield from advance(
            predict, solver, state.x if state else x, grid.step(index), draw, state
        )
    return state.x if state else x


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
        draw: noise of the stochastic solvers.
        explain: also carry each term's push in the states.

    Raises:
        ValueError: the solver is unknown, or cannot serve this guidance.
        FloatingPointError: after the last step, samples are not finite.
    """
    if isinstance(solver, str):
        from . import get_solver

        solver = get_solver(solver)
    solver.check(predict, grid)
    state = None
    for index in range(grid.steps):
        (state,) = drive(
            advance(
                predict, solver, state.x if state else x, grid.step(index), draw, state, explain
            )
        )
        if index == grid.steps - 1:
            check_finite(state.x)
        yield state


def check_finite(x: Tensor, what: str = "samples") -> None:
    """Refuse samples ``[B, *S]`` that are not finite; waits for the device once.

    Raises:
        FloatingPointError: which are not.
    """
    bad = (~x.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist()
    if bad:
        which = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        raise FloatingPointError(
            f"{len(bad)} of {len(x)} {what} are not finite (number {which}); lower the scale of "
            "the "
            "guidance, or take more steps"
        )


def noise(
    shape: Sequence[int],
    level: Level,
    draw: Draw,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw where a run starts: ``σ ε``, ``[B, *shape]``."""
    eps = draw.at(-1).normal("start", shape).to(device, dtype)
    return expand(level.sigma, eps) * eps


def noised(x0: Tensor, level: Level, draw: Draw) -> Tensor:
    """Noise data ``[B, *S]`` to ``level``: ``α x0 + σ ε`` (SDEdit's start,
    https://arxiv.org/abs/2108.01073).
    """
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * draw.at(-1).normal_like(
        "start", x0
    )


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
        grid: levels to walk, from noise (or from where ``start`` is to be taken up) to data.
        solver: a solver or its name.
        seeds: one integer a sample.
        shape: of one sample; not needed with ``start``.
        start: data ``[B, *shape]`` to start from, noised to the first level of ``grid`` (SDEdit).
        device: of the samples, where there is no ``start``.
        dtype: of the samples, where there is no ``start``.

    Raises:
        ValueError: no seeds, unknown solver, or one that cannot serve this guidance.
    """
    from . import get_solver

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
    for state in trajectory(predict, x, grid=grid, solver=get_solver(solver), draw=draw):
        x = state.x
    return x
