"""Network passes: one evaluation of a network under a condition, with its changes.

A pass is hashable, so equal passes of several terms are evaluated once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from .denoiser import Condition, Denoiser
from .levels import Level, Step, Value
from .perturbation import Rows
from .rng import Draw


class Slot(Enum):
    """The conditions of every run: the requested one, the null, and the negative."""

    COND = "cond"
    NULL = "uncond"
    NEGATIVE = "neg"

    __hash__ = object.__hash__  # each is one object, and passes are hashed often


@dataclass(frozen=True, eq=False)
class NoisyPoint:
    """Another noisy sample than the step's: ``x [b, *S]`` for the rows of a term, and its level."""

    x: Tensor
    level: Level


@dataclass(frozen=True)
class Part:
    """One part of the requested condition, with the null in the place of all other parts.

    Args:
        name: the encoder's name of the part ("image=…; text=…"), or a tensor of the condition.
    """

    name: str


def seeded(streams: Draw | None) -> Draw:
    """Return the random streams of a run.

    Raises:
        ValueError: the run has no seeds.
    """
    if streams is None:
        raise ValueError(
            "this guidance draws random numbers; give Guided one seed for each sample, seeds="
        )
    return streams


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """The inputs of the network in one pass, beside x. Edits change them; perturbations read them.

    Args:
        cond: the condition of the pass's samples.
        t: the time that the network gets; alpha and sigma of the level stay as they are.
        step: the step of these samples.
        streams: their random streams at this step, if the run has seeds.
    """

    cond: Condition
    t: Value
    step: Step
    streams: Draw | None = None

    @property
    def draw(self) -> Draw:
        """The samples' random streams.

        Raises:
            ValueError: the run has no seeds.
        """
        return seeded(self.streams)

    def take(self, rows: Tensor) -> Inputs:
        """Select samples (``rows``: int64 indices)."""
        return Inputs(
            cond=self.cond.take(rows),
            t=self.t[rows] if isinstance(self.t, Tensor) else self.t,
            step=self.step.take(rows),
            streams=self.streams and self.streams.take(rows),
        )


Edit = Callable[[Inputs], Inputs]
"""Changes the network's inputs; hashable, so that equal passes stay equal."""


class Perturbation(Hashable, Protocol):
    """A change of a network for one call, in some of its rows.

    A perturbation that observes the network returns a list from its context, to which each call of
    the network adds a tensor ``[rows, …]`` (`Prediction.observed`). A plan names a pass by the
    ``name`` of its perturbation.
    """

    def __call__(
        self, denoiser: Denoiser, rows: Rows | None = None, inputs: Inputs | None = None
    ) -> AbstractContextManager[list[Tensor] | None]:
        """Return a context in which ``denoiser`` is perturbed.

        Args:
            denoiser: the network.
            rows: the rows of its next call (None: all).
            inputs: condition, step and random streams of these rows (None: unknown).
        """
        ...


Key = Slot | Part | Condition | str | int
"""Names a condition of a run."""

Encode = Callable[[Sequence[str | int]], Condition]
"""Turns names or prompts into a condition of as many samples."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One network evaluation.

    Args:
        cond: a `Slot`, a `Part` of the requested condition, a `Condition` of 1 or B samples, or a
            name or prompt for the encoder.
        net: which network.
        perturb: changes the network for this pass.
        against: the condition that the perturbation contrasts this one with; the network gets it as
            arguments whose names begin with ``against_``.
        point: another x and level than the step's, for the rows of one term.
        edit: changes the network's inputs: its condition or the time.
    """

    cond: Key = Slot.COND
    net: str = "main"
    perturb: Perturbation | None = None
    against: Slot | Condition | str | int | None = None
    point: NoisyPoint | None = None
    edit: Edit | None = None

    def __str__(self) -> str:
        words = [
            self._condition_name(),
            self.net if self.net != "main" else "",
            getattr(self.perturb, "name", "perturbed") if self.perturb else "",
            "elsewhere" if self.point else "",
            "edited" if self.edit else "",
        ]
        return " ".join(filter(None, words))

    def _condition_name(self) -> str:
        if isinstance(self.cond, Slot):
            return self.cond.value
        if isinstance(self.cond, Part):
            return f"{self.cond.name} of cond"
        return "condition" if isinstance(self.cond, Condition) else repr(self.cond)


COND, NULL, NEGATIVE = Pass(cond=Slot.COND), Pass(cond=Slot.NULL), Pass(cond=Slot.NEGATIVE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Net:
    """A denoiser with the conditions of this run.

    Args:
        denoiser: the network.
        cond: the requested condition, of 1 or B samples; None for an unconditional run.
        null: stands for no condition; None for a network that takes no condition at all.
        negative: the condition of ``neg`` and of cfg's negative; by default the null.
        encode: turns names or prompts into conditions; called once for each.
        part: returns the requested condition with one part alone, by the part's name; without it
            a part is a tensor of ``cond``, and the other tensors are those of the null.

    Raises:
        TypeError: the denoiser is not callable, or a condition is no `Condition`.
    """

    denoiser: Denoiser
    cond: Condition | None = None
    null: Condition | None = None
    negative: Condition | None = None
    encode: Encode | None = None
    part: Callable[[str], Condition] | None = None
    _encoded: dict[str | int | Part, Condition] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if not callable(self.denoiser):
            raise TypeError(
                "a denoiser must be callable as denoiser(x_t, level, cond), not "
                f"{self.denoiser!r}; give a function or a Network"
            )
        for name in ("cond", "null", "negative"):
            if not isinstance(value := getattr(self, name), Condition | None):
                raise TypeError(
                    f"{name} must be a Condition, not {type(value).__name__}; write "
                    "Condition(NAME=tensor), with the network's own name for it"
                )

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions that were given."""
        return tuple(c for c in (self.cond, self.null, self.negative) if c is not None)

    def condition(self, key: Key, batch: int, name: str = "main") -> Condition:
        """Return a condition for ``batch`` samples.

        Args:
            key: names the condition.
            batch: number of samples.
            name: of this network, for the message.

        Raises:
            ValueError: there is no such condition, or it is for another number of samples.
        """
        try:
            return self._resolve(key).repeat(batch)
        except ValueError as error:
            if name == "main":
                raise
            raise ValueError(
                f"the network {name!r}: {error} (each Net has its own: Net(denoiser=…, cond=…))"
            ) from error

    def _encode(self, key: str | int) -> Condition:
        if self.encode is None:
            raise ValueError(
                f"the condition {key!r} needs an encoder: give encode=, or a Condition in its place"
            )
        return self.encode([key])

    def _part(self, name: str) -> Condition:
        if self.part is not None:
            return self.part(name)
        cond, null = self._resolve(Slot.COND), self._resolve(Slot.NULL)
        if name not in cond:
            raise ValueError(f"the condition has no part {name!r}; it has {', '.join(cond)}")
        others = {k: null[k].expand(len(v), *null[k].shape[1:]) for k, v in cond.items()}
        return Condition({**others, name: cond[name]})

    def _resolve(self, key: Key) -> Condition:
        if isinstance(key, Condition):
            return key
        if isinstance(key, Slot):
            return self._slot(key)
        if key not in self._encoded:
            # Kept for later runs, which may differentiate: inference tensors could not take part.
            with torch.inference_mode(False), torch.no_grad():
                made = self._part(key.name) if isinstance(key, Part) else self._encode(key)
            self._encoded[key] = made
        return self._encoded[key]

    def _slot(self, slot: Slot) -> Condition:
        if slot is Slot.COND and self.cond is None:
            raise ValueError(
                "no condition was given, but the guidance needs the conditional pass; give cond=, "
                "or start the guidance with 'uncond'"
            )
        null = Condition() if self.null is None and self.cond is None else self.null
        found = self.cond if slot is Slot.COND else null
        if slot is Slot.NEGATIVE and self.negative:
            found = self.negative
        if found is None:
            raise ValueError(
                "the guidance needs the unconditional pass, but the model has no null condition; "
                "give null="
            )
        return found

    def canonical(self, p: Pass) -> Pass:
        """Return the pass under its one name: without a negative condition, that is the null."""
        if p.cond is not Slot.NEGATIVE or self.negative:
            return p
        return NULL if p == NEGATIVE else replace(p, cond=Slot.NULL)


def by_name(
    nets: Denoiser | Net | Mapping[str, Net | Denoiser],
    conditions: Mapping[str, Any] | None = None,
) -> Mapping[str, Net]:
    """Return networks by name, one of them "main"; a denoiser becomes a `Net`.

    Args:
        nets: networks by name, or the main one.
        conditions: of a single denoiser: cond, null, negative and encode of its `Net`.

    Raises:
        ValueError: conditions beside a `Net` or networks by name, or no network named "main".
    """
    if not isinstance(nets, Mapping | Net):
        return {"main": Net(denoiser=nets, **conditions or {})}
    if names := [name for name, value in (conditions or {}).items() if value is not None]:
        raise ValueError(f"with networks by name, {', '.join(names)} belongs in each Net")
    nets = {"main": nets} if isinstance(nets, Net) else nets
    if "main" not in nets:
        raise ValueError(
            "one network must be named 'main', the one that is guided; these are "
            f"{', '.join(sorted(nets)) or 'none'}"
        )
    if not isinstance(nets, dict):  # a pipeline's networks, which are known only later
        return cast("Mapping[str, Net]", nets)
    return {name: net if isinstance(net, Net) else Net(denoiser=net) for name, net in nets.items()}
