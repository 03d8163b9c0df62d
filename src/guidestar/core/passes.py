"""Network passes: which network is evaluated, under which condition, with which changes.

A pass is hashable, so equal passes of several guidances are evaluated once
(`guidestar.core.evaluation`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor

from .denoiser import Condition, Denoiser
from .levels import Level, Step, Value
from .perturbation import Rows
from .rng import Draw


class Slot(Enum):
    """The conditions every run has: the requested one, none at all, and the negative (none by
    default).
    """

    COND = "cond"
    NULL = "uncond"
    NEGATIVE = "neg"

    __hash__ = object.__hash__  # each is one object, and passes are hashed often


@dataclass(frozen=True, eq=False)
class Point:
    """Another place to look at: ``x [b, *S]`` for the rows of the term that asks, at its own
    level.
    """

    x: Tensor
    level: Level


@dataclass(frozen=True)
class Part:
    """A part of the requested condition; what else it says is not known.

    Args:
        name: a part as the encoder names it ("image=…; text=…"), or a tensor of the condition.
    """

    name: str


def seeded(streams: Draw | None) -> Draw:
    """Return the streams of random numbers of a run that has seeds.

    Raises:
        ValueError: it has none.
    """
    if streams is None:
        raise ValueError(
            "this guidance draws random numbers, a stream for each sample; give Guided the seeds "
            "of the samples, seeds="
        )
    return streams


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """The inputs of the network in one pass beside x: what edits change and perturbations read.

    Args:
        cond: the condition of the pass's samples.
        t: the time (alpha and sigma, and so what the output means, stay as they are).
        step: the step of these samples.
        streams: their random numbers at this step, where the run has seeds.
    """

    cond: Condition
    t: Value
    step: Step
    streams: Draw | None = None

    @property
    def draw(self) -> Draw:
        """The samples' streams of random numbers.

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
"""A change of the network's inputs; hashable, so that equal passes stay equal."""


class Perturbation(Hashable, Protocol):
    """A change of a network that lasts for one call, in some of its rows.

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
            rows: which rows of its next call (None: all).
            inputs: of these rows: their condition, step and random streams (None: unknown).
        """
        ...


Key = Slot | Part | Condition | str | int
"""What names a condition."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One network evaluation.

    Args:
        cond: a `Slot`, a `Part` of the requested condition, a `Condition` of 1 or B samples, or a
            name or prompt for the encoder.
        net: which network.
        perturb: a change of the network for this pass.
        against: another condition, that the perturbation contrasts this one with; the network gets
            it as arguments whose names begin with ``against_``.
        point: another x and level than the step's (unique to the term that asks for it).
        edit: changes the network's inputs: its condition or the time.
    """

    cond: Key = Slot.COND
    net: str = "main"
    perturb: Perturbation | None = None
    against: Slot | Condition | str | int | None = None
    point: Point | None = None
    edit: Edit | None = None

    def __str__(self) -> str:
        what = self.cond.value if isinstance(self.cond, Slot) else self._words()
        marks = [
            self.net if self.net != "main" else "",
            getattr(self.perturb, "name", "perturbed") if self.perturb else "",
            "elsewhere" if self.point else "",
            "edited" if self.edit else "",
        ]
        return " ".join([what, *(m for m in marks if m)])

    def _words(self) -> str:
        if isinstance(self.cond, Part):
            return f"{self.cond.name} of cond"
        return "condition" if isinstance(self.cond, Condition) else repr(self.cond)


COND, NULL, NEGATIVE = Pass(cond=Slot.COND), Pass(cond=Slot.NULL), Pass(cond=Slot.NEGATIVE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Net:
    """A denoiser with the conditions of this run.

    Args:
        denoiser: the network.
        cond: the requested condition, of 1 or B samples; none for an unconditional run.
        null: its "no condition"; none for a network that takes no condition at all.
        negative: what ``neg`` and cfg's negative mean; the null by default.
        encode: turns names or prompts into conditions; called once for each.
        part: returns the requested condition with one part of it alone, by the part's name; without
            it a part is a tensor of ``cond``, and the other tensors are the null's.
    """

    denoiser: Denoiser
    cond: Condition | None = None
    null: Condition | None = None
    negative: Condition | None = None
    encode: Callable[[Sequence[str | int]], Condition] | None = None
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
        """Return the condition a pass means, for ``batch`` samples, of the network ``name``.

        Raises:
            ValueError: it has none, or one of another number of samples; a network beside the main
                one is named.
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
        if key not in self._encoded:
            # Kept for later runs, which may differentiate: inference tensors could not take part.
            with torch.inference_mode(False), torch.no_grad():
                self._encoded[key] = self.encode([key])
        return self._encoded[key]

    def _only(self, key: Part) -> Condition:
        if key not in self._encoded:
            with torch.inference_mode(False), torch.no_grad():
                self._encoded[key] = (
                    self.part(key.name) if self.part else self._only_tensor(key.name)
                )
        return self._encoded[key]

    def _only_tensor(self, name: str) -> Condition:
        cond, null = self._resolve(Slot.COND), self._resolve(Slot.NULL)
        if name not in cond:
            raise ValueError(f"the condition has no part {name!r}; it has {', '.join(cond)}")
        return Condition(
            {
                k: v if k == name else null[k].expand(len(v), *null[k].shape[1:])
                for k, v in cond.items()
            }
        )

    def _resolve(self, key: Key) -> Condition:
        if isinstance(key, Part):
            return self._only(key)
        if not isinstance(key, Slot):
            return key if isinstance(key, Condition) else self._encode(key)
        if key is Slot.COND and self.cond is None:
            raise ValueError(
                "no condition was given, but the guidance asks for the conditional pass; give "
                "cond=, or start it with 'uncond'"
            )
        null = Condition() if self.null is None and self.cond is None else self.null
        found = (
            self.cond if key is Slot.COND else null if key is Slot.NULL else self.negative or null
        )
        if found is None:
            raise ValueError(
                "the guidance asks for the unconditional pass, but the model has no null "
                "condition; give null="
            )
        return found

    def canonical(self, p: Pass) -> Pass:
        """Name a pass so that equal passes are equal: no negative is the null."""
        if p.cond is not Slot.NEGATIVE or self.negative:
            return p
        return NULL if p == NEGATIVE else replace(p, cond=Slot.NULL)


def by_name(
    nets: Denoiser | Net | Mapping[str, Net | Denoiser], own: Mapping[str, Any]
) -> Mapping[str, Net]:
    """Return networks by name, one of them "main"; a denoiser among them is a `Net` without
    conditions.
    """
    if not isinstance(nets, Mapping | Net):
        return {"main": Net(denoiser=nets, **own)}
    if own:
        raise ValueError(f"with networks by name, {', '.join(own)} belongs in each Net")
    nets = {"main": nets} if isinstance(nets, Net) else nets
    if "main" not in nets:
        raise ValueError(
            "one of the networks must be named 'main', the one that is guided; these are "
            f"{', '.join(sorted(nets)) or 'none'}"
        )
    if not isinstance(nets, dict):  # networks that come later, as in a pipeline
        return nets  # type: ignore[return-value]
    return {name: net if isinstance(net, Net) else Net(denoiser=net) for name, net in nets.items()}
