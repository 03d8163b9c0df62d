"""What a term is given: what the run offers (`Context`), and the samples it acts on (`Live`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..answers import Evaluated
from ..denoiser import Condition
from ..draw import Draw
from ..levels import Step
from ..passes import COND, Pass, seeded
from ..prediction import Prediction

State = dict[str, Tensor]
"""What a term remembers between steps: tensors ``[B, …]``."""


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


@dataclass(frozen=True, kw_only=True)
class Live:
    """What a term sees: the samples for which its weight is not 0, and nothing of the others.

    Args:
        x_t: ``[b, *S]``.
        step: their step.
        answers: the evaluated passes.
        samples: how many the run has.
        local: these samples' rows within ``answers``.
        rows: which samples of the run they are (None: all).
        state: the term's memory of these samples.
        base: the pass that the terms are added to.
        streams: the randomness of all the run's samples at this step, where the run has seeds.
    """

    x_t: Tensor
    step: Step
    base: Pass
    answers: Mapping[Pass, Evaluated]
    samples: int
    local: Tensor | None
    rows: Tensor | None
    state: State
    streams: Draw | None = None

    @property
    def draw(self) -> Draw:
        """These samples' streams of random numbers.

        Raises:
            ValueError: the run has no seeds.
        """
        streams = seeded(self.streams)
        return streams if self.rows is None else streams.take(self.rows)

    def __getitem__(self, p: Pass) -> Prediction:
        return self.answers[p].at(self.local)

    def mine(self, per_sample: Tensor) -> Tensor:
        """Select these samples from a tensor of the whole run, ``[B, …]`` or ``[1, …]``."""
        if len(per_sample) not in (1, self.samples):
            raise ValueError(f"{len(per_sample)} values were given for {self.samples} samples; give one, or one for each")
        if len(per_sample) == 1 or self.rows is None:
            return per_sample.expand(len(self.x_t), *per_sample.shape[1:]) if len(per_sample) == 1 else per_sample
        return per_sample[self.rows.to(per_sample.device)]

    def slope(self, what: str, function: Callable[[Tensor], Tensor], through: Pass | None) -> Tensor:
        """Return `gradient` of a user's function, which says so where it does not return one number a sample.

        Args:
            what: the function, for the message.

        Raises:
            ValueError: it returns something else, or what cannot be differentiated.
        """
        return self.gradient(lambda x: one_each(what, function(x), x), through)

    def gradient(self, energy: Callable[[Tensor], Tensor], through: Pass | None) -> Tensor:
        """Return ``∇_{x_t} Σ energy`` ``[b, *S]``: of ``energy(x_t)``, or of ``energy(x0)`` through a pass.

        Raises:
            ValueError: the network of that pass cannot be differentiated.
        """
        with torch.enable_grad():
            if through is None:
                x = self.x_t.detach().requires_grad_()
                return torch.autograd.grad(energy(x).sum(), x)[0]
            answer, prediction = self.answers[through], self[through]
            leaf = answer.prediction.x_t
            if not prediction.x0.requires_grad:
                raise ValueError(f"the network {through.net!r} cannot be differentiated: its output has no gradient; use one that can, or a guidance that leaves it alone (mpgd)")
            gradient = torch.autograd.grad(energy(prediction.x0).sum(), leaf, retain_graph=True)[0]
        where = answer.positions(self.local)
        return gradient if where is None else gradient[where.to(gradient.device)]


def one_each(what: str, values: object, x: Tensor) -> Tensor:
    """Return what a user's function made of samples ``x [B, *S]``: one number each, which can be differentiated in them.

    Raises:
        ValueError: it is something else; a mean over samples, for one, would make each depend on the others.
    """
    if not isinstance(values, Tensor) or values.shape != (len(x),):
        told = f"a tensor {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ValueError(f"{what} must return one number for each of {len(x)} samples, not {told}")
    if not values.requires_grad:
        raise ValueError(f"{what} cannot be differentiated in the samples; it must be made of differentiable operations on them")
    return values
