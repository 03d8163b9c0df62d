"""Sampling: walk a grid of levels with a solver, one step at a time.

A solver takes any ``predict(x_t, step, gstate) -> (Prediction, gstate)``: a `Guided`, or a function
of the user's own. Nothing here knows about guidance, and nothing here reads back from a device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..draw import Draw, checked_seeds
from ..levels import Grid, Level, Step, expand
from ..prediction import Prediction

Predict = Any
"""``predict(x_t, step, gstate) -> (Prediction, gstate)``; with ``explain=True`` also each term's push."""

SState = dict[str, Any]
Stepped = tuple[Tensor, SState, dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """One way to step from a level to the next.

    Written in pair form: in x0 and eps as given, so that a split prediction means what its method
    says. A solver for which a split has no meaning says so in ``accepts_split``, and one that
    remembers earlier steps in ``history``.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    accepts_split: ClassVar[bool] = True
    history: ClassVar[bool] = False

    @abstractmethod
    def step(self, predict: Predict, x_t: Tensor, step: Step, sstate: SState, gstate: dict[str, Tensor], draw: Draw) -> Stepped:
        """Move ``x_t [B, *S]`` from ``step.t`` to ``step.s``.

        Every evaluation within the step is given ``gstate``, and the state that the *first* of
        them returns is the one that is kept. Returns ``x_s``, the solver's and the guidance's state.
        """

    def evaluations(self, step: Step) -> Sequence[Step]:
        """Return where the network is evaluated in ``step``."""
        return [step]

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise."""
        return False

    def check(self, predict: Predict, grid: Grid) -> None:
        """Refuse a guidance or grid that this solver cannot serve, by name.

        Raises:
            ValueError: a split prediction, a term that reads the target level, or one that works
                with another solver, or another setting of it, only.
        """
        splits, targets, only = (getattr(predict, n, ()) for n in ("splits", "reads_target", "only_solvers"))
        for term, (solver, settings) in dict(only).items():
            if solver != self.name:
                raise ValueError(f"{term} in this form works with the solver {solver!r} only, not with {self.name!r}")
            for key, value in settings.items():
                if getattr(self, key) != value:
                    raise ValueError(f"{term} has {key}={value!r}, but the solver {solver!r} has {key}={getattr(self, key)!r}; give both the same")
        if splits and not self.accepts_split:
            raise ValueError(f"{splits[0]} splits the prediction, which has no meaning in the solver {self.name!r}; use ddim or dpmpp-2m")
        if targets and any(len(self.evaluations(grid.step(i))) > 1 for i in range(grid.steps)):
            raise ValueError(f"{targets[0]} reads the level that a step leads to, but the solver {self.name!r} evaluates twice a step; use ddim or dpmpp-2m")


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run stands after a step.

    Args:
        x: samples ``[B, *S]`` at ``step.s``.
        step: the step that led here.
        prediction: the (first) guided prediction of that step.
        pushes: each term's weighted push of x0, if asked for.
        evaluations: network evaluations of each sample so far, where ``predict`` counts them
            (``predict.evaluations``, as a `Guided` does).
    """

    x: Tensor
    step: Step
    prediction: Prediction
    pushes: dict[str, Tensor] | None = None
    evaluations: tuple[int, ...] = ()


class _Recorder:
    """Keeps the first prediction of a step's last visit, the one that leads on, for whoever watches."""

    def __init__(self, predict: Predict, explain: bool) -> None:
        self.predict, self.explain = predict, explain
        self.visit = -1
        self.prediction: Prediction | None = None
        self.pushes: dict[str, Tensor] | None = None

    def __call__(self, x_t: Tensor, step: Step, gstate: dict[str, Tensor]) -> tuple[Prediction, dict[str, Tensor]]:
        first, self.visit = step.visit != self.visit, step.visit
        if self.explain and first:
            self.prediction, gstate, self.pushes = self.predict(x_t, step, gstate, explain=True)
            return self.prediction, gstate  # type: ignore[return-value]
        prediction, gstate = self.predict(x_t, step, gstate)
        if first:
            self.prediction = prediction
        return prediction, gstate


def trajectory(predict: Predict, x: Float[Tensor, " b *s"], *, grid: Grid, solver: Solver | str, draw: Draw, explain: bool = False) -> Iterator[State]:
    """Yield the state after each step; stop iterating to cancel.

    Args:
        predict: a `Guided`, or any ``predict(x_t, step, gstate)``.
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
    sstate: SState = {}
    gstate: dict[str, Tensor] = {}
    before = _evaluations(predict)
    for index in range(grid.steps):
        watched = _Recorder(predict, explain)
        with torch.no_grad():
            step = grid.step(index)
            x, sstate, gstate = solver.step(watched, x, step, sstate, gstate, draw.at(index))
        if index == grid.steps - 1:
            check_finite(x)
        yield State(x=x, step=step, prediction=watched.prediction, pushes=watched.pushes, evaluations=_since(before, predict))  # type: ignore[arg-type]


def check_finite(x: Tensor, what: str = "samples") -> None:
    """Refuse samples ``[B, *S]`` that are not finite; waits for the device once.

    Raises:
        FloatingPointError: which are not.
    """
    bad = (~x.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist()
    if bad:
        which = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        raise FloatingPointError(
            f"{len(bad)} of {len(x)} {what} are not finite (number {which}); lower the scale of the "
            "guidance, or take more steps"
        )


def _evaluations(predict: Predict) -> tuple[int, ...]:
    return tuple(getattr(predict, "evaluations", ()))


def _since(before: tuple[int, ...], predict: Predict) -> tuple[int, ...]:
    """Return what was evaluated since ``before``, which may be of another batch: then the count began anew."""
    now = _evaluations(predict)
    return tuple(b - a for a, b in zip(before, now, strict=True)) if len(before) == len(now) else now


def noise(shape: Sequence[int], level: Level, draw: Draw, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Float[Tensor, " b *s"]:
    """Draw where a run starts: ``σ ε``, ``[B, *shape]``."""
    eps = draw.at(-1).normal("start", shape).to(device, dtype)
    return expand(level.sigma, eps) * eps


def noised(x0: Float[Tensor, " b *s"], level: Level, draw: Draw) -> Float[Tensor, " b *s"]:
    """Noise data ``[B, *S]`` to ``level``: ``α x0 + σ ε`` (SDEdit's start, https://arxiv.org/abs/2108.01073)."""
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * draw.at(-1).normal_like("start", x0)


def sample(
    predict: Predict,
    *,
    grid: Grid,
    solver: Solver | str = "dpmpp-2m",
    seeds: Sequence[int],
    shape: Sequence[int] | None = None,
    start: Float[Tensor, " b *s"] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, " b *s"]:
    """Sample ``[B, *shape]``: one sample a seed, each depending on its own seed alone.

    Args:
        predict: a `Guided`, or any ``predict(x_t, step, gstate) -> (Prediction, gstate)``.
        grid: levels to walk, from noise (or from where ``start`` is to be taken up) to data.
        solver: a solver or its name.
        seeds: one integer a sample.
        shape: of one sample; not needed with ``start``.
        start: data ``[B, *shape]`` to start from, noised to the first level of ``grid`` (SDEdit).
        device, dtype: of the samples, where there is no ``start``.

    Raises:
        ValueError: no seeds, unknown solver, or one that cannot serve this guidance.
    """
    from . import get_solver

    draw = Draw(checked_seeds(seeds))
    if start is None and shape is None:
        raise ValueError("sample() needs the shape of one sample, or data to start from (start=)")
    if start is not None and len(start) != len(draw.seeds):
        raise ValueError(f"{len(draw.seeds)} seeds were given for {len(start)} samples to start from")
    x = noised(start, grid[0], draw) if start is not None else noise(shape or (), grid[0], draw, device=device, dtype=dtype)
    for state in trajectory(predict, x, grid=grid, solver=get_solver(solver), draw=draw):
        x = state.x
    return x
