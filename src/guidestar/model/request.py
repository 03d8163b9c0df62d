"""A run of a model: its arguments, and everything that determines it resolved once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TypedDict

from torch import Tensor

from ..core.denoiser import Condition
from ..core.levels import Grid
from ..guidance import ExpressionError, Guidance, losses_of, parse
from ..guidance.losses import Loss
from ..guidance.term import Direction
from ..sampling import Potential, Solver, get_solver, write_solver
from .blame import blaming

Names = str | int | Sequence[str | int]

CUSTOM = "custom"
"""The name of a grid that was made in Python."""


class SteerArguments(TypedDict, total=False):
    """The named arguments of a run, whether it is steered or not; `Model.sample` explains them."""

    guidance: str | Guidance | Direction | None
    seeds: Sequence[int]
    negative: str | int | None
    scale: float | Sequence[float] | None
    steps: int | None
    solver: str | Solver | None
    grid: str | Grid | None
    losses: Mapping[str, Loss] | None
    max_rows: int | None


class RunArguments(SteerArguments, total=False):
    """The named arguments of a run; `Model.sample` explains them."""

    start: Tensor | None
    start_rho: float | None
    checkpoint: bool


def check_names(given: Mapping[str, object], known: type, run: str = "a run") -> None:
    """Refuse arguments that a run does not have.

    Args:
        given: arguments by name.
        known: `RunArguments` or `SteerArguments`.
        run: what has these arguments, for the message.

    Raises:
        TypeError: a name is unknown; the close ones are named.
    """
    names = known.__annotations__
    for name in given:
        if name not in names:
            close = get_close_matches(name, names, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(names)}"
            raise TypeError(f"{run} has no argument {name!r}{hint}")


@blaming("start")
def checked_start(start: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """Refuse data to start from of another shape than ``[B, *S]``."""
    if start is not None and tuple(start.shape) != shape:
        raise ValueError(
            f"start must have the shape {shape}, one for each seed, not {tuple(start.shape)}"
        )
    return start


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One run: `Model.request` makes it, `Model.run` and `Model.states` carry it out.

    Args:
        names: the condition of each sample, by name (None: unconditional).
        guidance: as it was read.
        seeds: one integer a sample.
        solver: how to step.
        levels: the levels of the run, from the first that is evaluated.
        grid: the name of their spacing, or "custom".
        negative: what cfg moves away from (None: the null).
        scale: of each sample, of a student that takes its guidance scale as an input.
        encoded: the condition of each sample, encoded, in the place of ``names``.
        start: data ``[B, *S]`` to start from (SDEdit).
        start_rho: the noise ratio at which ``levels`` were cut, if they were.
        losses: losses of the clean estimate, by name.
        max_rows: the most rows of one network call.
        checkpoint: whether to keep only the inputs of blocks where a network is differentiated.
    """

    names: tuple[str | int, ...] | None
    guidance: Guidance
    seeds: tuple[int, ...]
    solver: Solver
    levels: Grid
    grid: str
    negative: str | int | None = None
    scale: tuple[float, ...] | None = None
    encoded: Condition | None = None
    start: Tensor | None = None
    start_rho: float | None = None
    losses: Mapping[str, Loss] | None = None
    max_rows: int | None = None
    checkpoint: bool = False

    def take(self, part: slice, losses: Mapping[str, Loss] | None = None) -> Request:
        """Return the run of some of the samples, with the losses of these."""
        return replace(
            self,
            names=self.names and self.names[part],
            scale=self.scale and self.scale[part],
            seeds=self.seeds[part],
            start=None if self.start is None else self.start[part],
            losses=losses,
        )

    @property
    def solver_is_named(self) -> bool:
        """Whether the solver's name, with its settings as text, gives it back."""
        try:
            return get_solver(write_solver(self.solver)) == self.solver
        except ValueError:
            return False

    def lacking(self) -> tuple[str, ...]:
        """Name what a picture of this run cannot carry: losses, and functions or tensors in its
        guidance, solver, grid or condition.
        """
        found = [f"the loss {name!r}" for name in losses_of(self.guidance)]
        try:
            parse(str(self.guidance))
        except ExpressionError:
            found.append("what its guidance was given in Python")
        if not self.solver_is_named:
            found.append("the solver it was given in Python")
        if self.grid == CUSTOM:
            found.append("the grid it was given in Python")
        if self.start_rho is not None and self.start is None:
            found.append("the level it started at (start_rho)")
        if self.encoded is not None:
            found.append("the condition it was given in Python")
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Steering:
    """How the particles of a run are weighed and resampled; as in `guidestar.steer`."""

    particles: int
    strength: float
    potential: Potential
    every: int | None
    threshold: float
