"""The inputs of a term: the run that it is bound to (`Context`), and its samples (`Live`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.forms import SampleForm
from ..core.levels import Step
from ..core.passes import COND, Encode, Pass
from ..core.prediction import Prediction
from ..core.rng import Draw
from ..core.rounds import Asking, Group, GuidedStep, States, TermState
from ..core.slopes import Slope

Loss = Callable[[Tensor], Tensor]
"""A loss of a clean estimate: ``loss(x0 [B, *S]) -> [B]``."""


class Count(NamedTuple):
    """The cost of a step: the number of samples of each pass, and of gradients and repeats.

    A pass of a later round is not known yet, so it is counted by a name.
    """

    passes: dict[Pass | str, int]
    gradients: int = 0
    repeats: int = 0


@dataclass(frozen=True, kw_only=True)
class Context:
    """The parts of a run that its terms can be bound to.

    Args:
        classifiers: classifiers, CLIP models and discriminators, by name.
        target: the requested class of each sample, ``[B]`` or ``[1]``, or its numbers, ``[B, D]``.
        index: turns a class name into its index.
        conditional: whether the run has a condition.
        nets: names of the networks.
        prompts: the requested caption of each sample, or one for all.
        losses: losses of a clean estimate, ``loss(x0 [B, *S]) -> [B]``, by name.
        base: the pass that the terms are added to.
        encode: turns names or prompts into conditions.
    """

    classifiers: Mapping[str, object] = field(default_factory=dict[str, object])
    target: Tensor | None = None
    index: Callable[[str | int], int] | None = None
    conditional: bool = True
    nets: Sequence[str] = ("main",)
    prompts: Sequence[str] | None = None
    losses: Mapping[str, Loss] = field(default_factory=dict[str, Loss])
    base: Pass = COND
    encode: Encode | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Live:
    """The inputs of a term: the samples for which its weight is not 0.

    Args:
        group: the samples.
        state: the term's state of these samples.
        base: the prediction that the terms are added to.
        requested_slope: the slope that the term requested with its passes.
        name: of the term, for messages.
    """

    group: Group
    state: TermState
    base: Prediction
    requested_slope: Slope | None = None
    name: str = ""

    @property
    def x_t(self) -> Tensor:
        """Noisy samples ``[b, *S]``."""
        return self.group.x_t

    @property
    def step(self) -> Step:
        """The step of these samples."""
        return self.group.step

    @property
    def form(self) -> SampleForm:
        """How the samples lie."""
        return self.group.form

    @property
    def draw(self) -> Draw:
        """The random streams of these samples.

        Raises:
            ValueError: the run has no seeds.
        """
        return self.group.draw

    def own_rows(self, per_sample: Tensor) -> Tensor:
        """Select these samples from a tensor of the whole run, ``[B, …]`` or ``[1, …]``.

        Raises:
            ValueError: the tensor is for another number of samples.
        """
        return self.group.own_rows(per_sample)

    def slope(
        self, what: str, function: Callable[[Tensor], Tensor], through: Prediction | None
    ) -> Tensor:
        """Return the `gradient` of a user's function, after a check of its result.

        Args:
            what: name of the function, for the message.
            function: returns one number a sample, ``[b]``.
            through: the prediction to differentiate through (None: the function gets x_t).

        Raises:
            ValueError: the function does not return one number a sample, or has no gradient.
        """
        return self.gradient(lambda x: one_each(what, function(x), x), through)

    def gradient(self, energy: Callable[[Tensor], Tensor], through: Prediction | None) -> Tensor:
        """Return ``∇_{x_t} Σ energy`` ``[b, *S]``.

        Args:
            energy: maps samples to one number each, ``[b]``.
            through: the prediction whose x0 ``energy`` gets (None: it gets x_t).

        Raises:
            ValueError: the network of that prediction cannot be differentiated, or the term does
                not declare that it differentiates its pass.
        """
        traits = f"{self.name or 'a term'} takes a gradient; give its class traits = Traits("
        if torch.is_inference_mode_enabled():
            raise ValueError(
                f"{traits}gradients=1), and differentiates=… with the pass that it differentiates, "
                "if any"
            )
        if through is not None and through.root is None:
            raise ValueError(
                f"{traits}gradients=1, differentiates=…) with the pass of this prediction, e.g. "
                "differentiates=gs.COND"
            )
        with torch.enable_grad():
            if through is None:
                x = self.x_t.detach().requires_grad_()
                return torch.autograd.grad(energy(x).sum(), x)[0]
            root = through.root
            if root is None or not through.x0.requires_grad:
                name = repr(root.net) if root else "of this pass"
                raise ValueError(
                    f"the network {name} cannot be differentiated: its output has no gradient; "
                    "use one that can, or a guidance that does not differentiate it (mpgd)"
                )
            total = energy(through.x0).sum()
            (gradient,) = torch.autograd.grad(total, root.leaf, retain_graph=True)
        return gradient if root.rows is None else gradient[root.rows]


class SumEngine(Protocol):
    """Evaluates a guided sum for samples of a run, and counts its passes."""

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
            stopped: count as if all terms that may have stopped had done so.
        """
        ...


def one_each(what: str, values: object, x: Tensor) -> Tensor:
    """Return the result of a user's function for samples ``x [B, *S]``: one number each, ``[B]``.

    A mean over samples, for example, would make each depend on the others.

    Args:
        what: name of the function, for the message.
        values: its result.
        x: the samples.

    Raises:
        ValueError: it is something else, on another device, or has no gradient in the samples.
    """
    if not isinstance(values, Tensor) or values.shape != (len(x),):
        tensor = isinstance(values, Tensor)
        found = f"a tensor {tuple(values.shape)}" if tensor else f"a {type(values).__name__}"
        raise ValueError(f"{what} must return one number for each of {len(x)} samples, not {found}")
    if values.device != x.device:
        raise ValueError(
            f"{what} is on {values.device}, but the samples are on {x.device}; move its network "
            f"there, .to('{x.device}')"
        )
    if not values.requires_grad:
        raise ValueError(
            f"{what} cannot be differentiated in the samples; use differentiable operations on them"
        )
    return values
