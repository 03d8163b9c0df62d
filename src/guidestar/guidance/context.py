"""The inputs of a term: what the run offers (`Context`), and the samples it acts on (`Live`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.denoiser import Condition
from ..core.evaluation import Asking, Group, GuidedStep, State, States
from ..core.levels import Step
from ..core.passes import COND, Pass, seeded
from ..core.prediction import Prediction
from ..core.rng import Draw


class Count(NamedTuple):
    """What a step takes: for how many samples each pass is evaluated (by name where it is not known
    yet), and gradients.
    """

    passes: dict[Pass | str, int]
    gradients: int


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a run offers to the terms that are bound to it.

    Args:
        classifiers: objects with ``log_prob(x, level, target) -> [B]``, by name.
        target: the requested class of each sample, ``[B]`` or ``[1]``, or its numbers, ``[B, D]``.
        index: turns a class name into its index.
        conditional: whether a condition was requested.
        nets: names of the denoisers.
        prompts: the requested caption of each sample, or of all.
        losses: losses of a clean estimate, by name.
        base: the pass that the terms are added to.
        encode: turns names or prompts into conditions.
    """

    classifiers: Mapping[str, Any] = field(default_factory=dict)
    target: Tensor | None = None
    index: Callable[[str | int], int] | None = None
    conditional: bool = True
    nets: Sequence[str] = ("main",)
    prompts: Sequence[str] | None = None
    losses: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    base: Pass = COND
    encode: Callable[[Sequence[str | int]], Condition] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Live:
    """The inputs of a term: the samples for which its weight is not 0, and nothing of the others.

    Args:
        x_t: ``[b, *S]``.
        step: their step.
        batch: how many samples the run has.
        rows: which samples of the run these are (None: all).
        state: what the term keeps of these samples.
        base: the prediction that the terms are added to.
        streams: the random streams of all the run's samples at this step, where it has seeds.
    """

    x_t: Tensor
    step: Step
    batch: int
    rows: Tensor | None
    state: State
    base: Prediction
    streams: Draw | None = None

    @classmethod
    def of(cls, group: Group, base: Prediction, state: State) -> Live:
        """Return the inputs of a term for the samples of ``group``."""
        return cls(
            x_t=group.x_t,
            step=group.step,
            batch=group.batch,
            rows=group.rows,
            state=state,
            base=base,
            streams=group.streams,
        )

    @property
    def draw(self) -> Draw:
        """These samples' streams of random numbers.

        Raises:
            ValueError: the run has no seeds.
        """
        streams = seeded(self.streams)
        return streams if self.rows is None else streams.take(self.rows)

    def mine(self, per_sample: Tensor) -> Tensor:
        """Select these samples from a tensor of the whole run, ``[B, …]`` or ``[1, …]``.

        Raises:
            ValueError: it is for another number of samples.
        """
        if len(per_sample) not in (1, self.batch):
            raise ValueError(
                f"{len(per_sample)} values were given for {self.batch} samples; give one, or one "
                "for each"
            )
        if len(per_sample) == 1:
            return per_sample.expand(len(self.x_t), *per_sample.shape[1:])
        return per_sample if self.rows is None else per_sample[self.rows.to(per_sample.device)]

    def slope(
        self, what: str, function: Callable[[Tensor], Tensor], through: Prediction | None
    ) -> Tensor:
        """Return `gradient` of a user's function, which is checked to return one number a sample.

        Args:
            what: the function, for the message.

        Raises:
            ValueError: it returns something else, or what cannot be differentiated.
        """
        return self.gradient(lambda x: one_each(what, function(x), x), through)

    def gradient(self, energy: Callable[[Tensor], Tensor], through: Prediction | None) -> Tensor:
        """Return ``∇_{x_t} Σ energy`` ``[b, *S]``: of ``energy(x_t)``, or of ``energy(x0)`` through
        a prediction.

        Raises:
            ValueError: the network of that prediction cannot be differentiated.
        """
        with torch.enable_grad():
            if through is None:
                x = self.x_t.detach().requires_grad_()
                return torch.autograd.grad(energy(x).sum(), x)[0]
            root = through.root
            if root is None or not through.x0.requires_grad:
                name = repr(root.net) if root else "of this pass"
                raise ValueError(
                    f"the network {name} cannot be differentiated: its output has no gradient; "
                    "use one that can, or a guidance that leaves it alone (mpgd)"
                )
            gradient = torch.autograd.grad(energy(through.x0).sum(), root.leaf, retain_graph=True)[
                0
            ]
        return gradient if root.rows is None else gradient[root.rows]


class Engine(Protocol):
    """Evaluates a guided sum for samples of a run, and counts what that takes."""

    @property
    def names(self) -> Sequence[str]:
        """The terms' expressions."""
        ...

    def ask(self, group: Group, states: States, explain: bool) -> Asking[GuidedStep]:
        """Yield the rounds of passes that are needed, and return the guided step of ``group``."""
        ...

    def count(self, step: Step, rows: Tensor, stopped: bool = False) -> Count:
        """Count the passes and gradients at ``step`` for samples ``rows`` of the run.

        Args:
            step: of these samples.
            rows: int64 indices, at least one.
            stopped: whether terms that may have stopped have.
        """
        ...


def one_each(what: str, values: object, x: Tensor) -> Tensor:
    """Return what a user's function made of samples ``x [B, *S]``: one number each, which can be
    differentiated in them.

    Raises:
        ValueError: it is something else; a mean over samples, for one, would make each depend on
            the others.
    """
    if not isinstance(values, Tensor) or values.shape != (len(x),):
        found = (
            f"a tensor {tuple(values.shape)}"
            if isinstance(values, Tensor)
            else f"a {type(values).__name__}"
        )
        raise ValueError(f"{what} must return one number for each of {len(x)} samples, not {found}")
    if not values.requires_grad:
        raise ValueError(
            f"{what} cannot be differentiated in the samples; it must be made of differentiable "
            "operations on them"
        )
    return values
