"""Rounds: passes that are needed at the same time, and the predictions that answer them.

Whatever needs predictions (a guided sum, a solver's step, a whole run) is a generator. It yields a
`Round` and receives the `Answers`. `guidestar.core.evaluation` runs such generators.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, overload

import torch
from torch import Tensor

from .forms import PLAIN, SampleForm
from .levels import Step
from .passes import Net, Pass, seeded
from .prediction import Prediction
from .rng import Draw
from .slopes import Slope

Outcome = TypeVar("Outcome")

TermState = dict[str, Tensor]
"""What a term keeps between steps: tensors ``[B, …]``."""

States = tuple[TermState, ...]
"""What all terms of a sum keep, in their order."""


@dataclass(frozen=True, eq=False)
class GuidedStep:
    """The result of one guided evaluation; it unpacks as ``(prediction, state)``.

    Args:
        prediction: the guided prediction, ``[B, *S]``.
        state: what the terms keep for the next step.
        evaluations: network evaluations of each sample: one number, or int64 ``[B]``.
        pushes: each term's weighted push of x0 ``[B, *S]``, by its expression, with ``explain``.
    """

    prediction: Prediction
    state: States = ()
    evaluations: int | Tensor = 0
    pushes: dict[str, Tensor] | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.prediction, self.state))

    @overload
    def __getitem__(self, index: Literal[0]) -> Prediction: ...
    @overload
    def __getitem__(self, index: Literal[1]) -> States: ...
    def __getitem__(self, index: int) -> Prediction | States:
        return (self.prediction, self.state)[index]


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Samples of one run that are evaluated together at one step: all of them, or some.

    Args:
        x_t: samples ``[b, *S]``.
        step: the step of these samples.
        batch: how many samples the run has.
        rows: which samples of the run these are (None: all).
        streams: the random streams of all the run's samples at this step, if the run has seeds.
        form: how the samples lie.
    """

    x_t: Tensor
    step: Step
    batch: int
    rows: Tensor | None = None
    streams: Draw | None = None
    form: SampleForm = PLAIN

    @property
    def draw(self) -> Draw:
        """The random streams of these samples.

        Raises:
            ValueError: the run has no seeds.
        """
        streams = seeded(self.streams)
        return streams if self.rows is None else streams.take(self.rows)

    def own_rows(self, per_sample: Tensor) -> Tensor:
        """Select these samples from a tensor of the whole run, ``[B, …]`` or ``[1, …]``.

        Raises:
            ValueError: the tensor is for another number of samples.
        """
        if len(per_sample) not in (1, self.batch):
            raise ValueError(
                f"{len(per_sample)} values were given for {self.batch} samples; give one, or one "
                "for each"
            )
        if len(per_sample) == 1:
            return per_sample.expand(len(self.x_t), *per_sample.shape[1:])
        return per_sample if self.rows is None else per_sample[self.rows.to(per_sample.device)]

    def take(self, rows: Tensor) -> Group:
        """Select samples (``rows``: int64 indices within this group)."""
        x_t, step = self.x_t[rows.to(self.x_t.device)], self.step.take(rows)
        return replace(self, x_t=x_t, step=step, rows=self.absolute(rows))

    def absolute(self, rows: Tensor | None) -> Tensor | None:
        """Return which samples of the run the ``rows`` of this group are (None: all)."""
        return rows if self.rows is None else self.rows if rows is None else self.rows[rows]


class Evaluated(NamedTuple):
    """The prediction of one pass, for ``rows`` of a group (rising local indices; None: all)."""

    rows: Tensor | None
    prediction: Prediction

    def at(self, rows: Tensor | None) -> Prediction:
        """Select the prediction at ``rows`` of the group."""
        if rows is None or (self.rows is not None and rows.equal(self.rows)):
            return self.prediction
        local = rows if self.rows is None else torch.searchsorted(self.rows, rows)
        return self.prediction.take(local)


Answers = Mapping[Pass, Evaluated]
"""The predictions of a round's passes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """Passes that are needed at the same time, for one group of samples.

    Args:
        group: the samples.
        passes: the rows of each pass (rising local indices; None: all of the group).
        nets: networks by name.
        slopes: gradients that are needed too; they are filled in, here or where they are read.
        through: passes whose predictions must be differentiable in their ``x_t``; these are never
            cut into several calls.
        needs_grad: whether predictions will be part of a graph (else passes run in inference mode).
        max_rows: the most rows of one network call.
        checkpoint: compute the blocks of a differentiated network again instead of keeping them.
        check: refuse outputs that are not finite (costs a synchronisation for each pass).
    """

    group: Group
    passes: Mapping[Pass, Tensor | None]
    nets: Mapping[str, Net]
    slopes: tuple[Slope, ...] = ()
    through: frozenset[Pass] = frozenset()
    needs_grad: bool = False
    max_rows: int | None = None
    checkpoint: bool = False
    check: bool = False


Asking = Generator[Round, Answers, Outcome]
"""Yields rounds of passes, receives their predictions, and returns a result."""


class Evaluator(Protocol):
    """Evaluates rounds, each of another run or group."""

    def __call__(self, *rounds: Round) -> Sequence[Answers]:
        """Return the predictions of each round's passes."""
        ...


def union(rows: Sequence[Tensor | None], batch: int) -> Tensor | None:
    """Join selections of rows; None stands for all ``batch`` rows."""
    selections = [r for r in rows if r is not None]
    if len(selections) < len(rows):
        return None
    joined = torch.unique(torch.cat(selections)) if len(selections) > 1 else selections[0]
    return None if len(joined) == batch else joined
