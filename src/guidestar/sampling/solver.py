"""Solvers: how a run steps from one level to the next.

A step is a generator: it yields the points where it needs a prediction, and receives it. Nothing
here knows about guidance, and nothing here reads back from a device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from ..core.arguments import WORDS, check_arguments
from ..core.levels import Grid, Step
from ..core.prediction import Prediction
from ..core.rng import Draw
from ..core.rounds import Asking, GuidedStep, States


@runtime_checkable
class Asker(Protocol):
    """Predicts by rounds of passes, which several runs can share: a `Guided`."""

    def ask(
        self, x_t: Tensor, step: Step, state: States | None = None, *, explain: bool = False
    ) -> Asking[GuidedStep]:
        """Yield rounds of passes, receive their predictions, and return the guided step."""
        ...


Predict = Asker | Callable[[Tensor, Step, Any], GuidedStep | tuple[Prediction, Any]]
"""A `Guided`, or ``predict(x_t, step, state) -> (Prediction, state)``; the first state is {}."""


class Point(NamedTuple):
    """A point where a solver needs a prediction: ``x [B, *S]`` at the level ``step.t``."""

    x: Tensor
    step: Step


Memory = Mapping[str, Any]
"""What a solver keeps between steps, by name."""

Moving = Generator[Point, Prediction, tuple[Tensor, Memory]]
"""Yields points, receives their predictions, and returns ``x_s`` and the solver's memory."""


class _Declared(ABC):
    """What a class of solvers declares, or a setting of one solver decides; no fields by itself."""

    order: int
    accepts_split: bool = True


@dataclass(frozen=True, kw_only=True)
class Solver(_Declared):
    """One way to step from a level to the next.

    It is written in the pair (x0, eps), so that a split prediction means what its method says. A
    solver for which a split has no meaning has ``accepts_split = False``; one that keeps earlier
    steps has ``history = True``.
    """

    name: ClassVar[str]
    history: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse settings of another kind than their annotation, in one line."""
        check_arguments(self, self.name, *(setting.name for setting in fields(self)))

    @abstractmethod
    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        """Move ``x_t [B, *S]`` from ``step.t`` to ``step.s``.

        A generator: it yields each `Point` where it needs a prediction, and returns ``x_s`` and
        its memory for the next step.

        Args:
            x_t: the samples.
            step: from one level to the next.
            memory: as the last step returned it; empty at the first.
            draw: the random streams of this step.
        """

    def evaluations(self, step: Step) -> Sequence[Step]:
        """Return the steps at whose levels ``t`` the network is evaluated within ``step``."""
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
        """Refuse a guidance or grid that this solver cannot serve; the term is named.

        Args:
            predict: a `Guided`, or any ``predict(x_t, step, state)``, which is not checked.
            grid: the levels of the run.

        Raises:
            ValueError: a split prediction, a term that reads the target level, or a term that works
                only with another solver or another setting.
        """
        splits: Sequence[str] = getattr(predict, "splits", ())
        targets: Sequence[str] = getattr(predict, "reads_target", ())
        only: Mapping[str, tuple[str, Mapping[str, object]]] = getattr(predict, "only_solvers", {})
        for term, (solver, settings) in only.items():
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


WORDS.update({Solver: "a solver, e.g. DDPM()"})
