"""The teacher of a distillation: what guidance predicts, for data of any condition."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, NotRequired, Protocol, TypedDict

import torch
from torch import Tensor

from ...core.denoiser import Condition, Denoiser
from ...core.levels import Grid, Level, Schedule, Step
from ...core.passes import Net
from ...core.prediction import Prediction
from ...core.rng import Draw
from ...guidance import Guidance, Guided, parse
from ...guidance.reuse import initial_state
from ...networks.conditions import Conditions
from ...networks.guidance_scale import KEY
from .denoising import dropped

_W = re.compile(r"(?<![\w.])w(?![\w.])")
"""The scale of each sample, in the text of an expression."""


def takes_scale(guidance: str) -> bool:
    """Return whether an expression holds ``w``, the scale that is an input of the student."""
    return bool(_W.search(guidance))


def with_scale(guidance: str, scale: Sequence[float] | float) -> str:
    """Put a scale, or one for each sample, in the place of ``w``.

    Example:
        >>> with_scale("cfg(w, interval=(0.1, 1))", 2.0)
        'cfg(2.0, interval=(0.1, 1))'
    """
    text = str(scale) if isinstance(scale, float | int) else str([float(s) for s in scale])
    return _W.sub(text, guidance)


class Batch(TypedDict):
    """What a student learns a batch under."""

    rows: Mapping[str, Tensor]
    """Of the condition encoder, by name."""
    prompts: NotRequired[Sequence[str]]
    """The captions, where a CLIP guides."""


class PathBatch(Batch):
    """The same, where runs of the teacher are learned."""

    path: Tensor
    """The number of each run of the teacher ``[B]`` (int64)."""


class StudentModel(Protocol):
    """A denoiser and the encoder of its conditions."""

    @property
    def denoiser(self) -> Denoiser:
        """Estimates clean data."""
        ...

    @property
    def encoder(self) -> Conditions:
        """Makes its conditions."""
        ...


class Conditioning(NamedTuple):
    """What each sample of a batch is of: conditions, scales, and the requests of classifiers.

    Args:
        rows: of the condition encoder, by name.
        drop: which samples are unconditional, ``[B]``.
        scale: of each sample ``[B]`` (float64, CPU), where the student takes it.
        draw: the samples' random streams.
        prompts: their captions, where a CLIP guides.
    """

    rows: Mapping[str, Tensor]
    drop: Tensor
    scale: Tensor | None
    draw: Draw
    prompts: tuple[str, ...] | None = None

    def take(self, at: Tensor) -> Conditioning:
        """Select samples (``at``: int64 indices)."""
        return Conditioning(
            rows={name: t[at.to(t.device)] for name, t in self.rows.items()},
            drop=self.drop[at],
            scale=None if self.scale is None else self.scale[at],
            draw=self.draw.take(at),
            prompts=self.prompts and tuple(self.prompts[i] for i in at.tolist()),
        )


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A denoiser with its guidance, evaluated at any levels of any samples, without gradients.

    Args:
        denoiser: the network that is guided.
        encoder: of its conditions; without parts, of an unconditional one.
        guidance: the expression, in which ``w`` stands for the scale of each sample.
        schedule: its noise levels.
        nets: further networks by name, each with its encoder.
        classifiers: by name.
        target: which condition is the target of classifiers, if any.
        is_student: the scale is an input of its network; the expression has no ``w``.
        context: entered while it predicts (a LoRA that is off).
    """

    denoiser: Denoiser
    encoder: Conditions
    guidance: str
    schedule: Schedule
    nets: Mapping[str, tuple[Denoiser, Conditions]] = field(default_factory=dict)
    classifiers: Mapping[str, object] = field(default_factory=dict)
    target: str | None = None
    is_student: bool = False
    context: Callable[[], AbstractContextManager[object]] = nullcontext

    def expression(self, scale: Tensor | None) -> Guidance:
        """Return the expression with the scales of some samples.

        Raises:
            ValueError: it does not parse.
        """
        text = self.guidance
        return parse(text if scale is None else with_scale(text, scale.tolist()))

    def check(self) -> None:
        """Refuse what a student cannot learn.

        Raises:
            ValueError: a term keeps a state from step to step, splits the prediction, reads the
                level a step leads to, or changes along the steps; it is named.
        """
        scale = torch.ones(1, dtype=torch.float64) if takes_scale(self.guidance) else None
        guidance = self.expression(scale)
        for term in guidance.terms:
            reason = (
                "splits the prediction"
                if not term.traits.linked
                else "depends on the level that a step leads to"
                if term.traits.reads_target
                else "changes its weight along the steps of a run (schedule)"
                if term.schedule is not None
                else "keeps a state from step to step"
                if initial_state(term, torch.zeros(1, 1))
                else None
            )
            if reason:
                raise ValueError(
                    f"{term.name} {reason}, so one pass of a student cannot give it; distil the "
                    "expression without it"
                )

    @torch.no_grad()
    def predict(self, x_t: Tensor, step: Step, conditioning: Conditioning) -> Prediction:
        """Return the guided prediction at ``x_t [B, *S]``; the plain one of dropped samples.

        Args:
            x_t: at the levels ``step.t``.
            step: its levels are numbers or one for each sample.
            conditioning: what the samples are of.
        """
        with self.context():
            return self._predict(x_t, step, conditioning)

    def _predict(self, x_t: Tensor, step: Step, conditioning: Conditioning) -> Prediction:
        given, free = (
            (~conditioning.drop).nonzero().flatten(),
            conditioning.drop.nonzero().flatten(),
        )
        if not len(free):
            return _plain(self._guided(x_t, step, conditioning))
        x0 = torch.empty_like(x_t)
        if len(given):
            here = given.to(x_t.device)
            x0[here] = self._guided(x_t[here], _take(step, given), conditioning.take(given)).x0
        there = free.to(x_t.device)
        x0[there] = self._free(x_t[there], step.t.take(free))
        return Prediction.from_x0(x_t, step.t, x0)

    def _free(self, x_t: Tensor, level: Level) -> Tensor:
        out = self.denoiser(x_t, level, self.encoder.null(len(x_t)).to(x_t.device))
        return out.x0 if isinstance(out, Prediction) else out

    def _guided(self, x_t: Tensor, step: Step, conditioning: Conditioning) -> Prediction:
        guided = Guided(
            self.expression(conditioning.scale),
            {
                name: self._net(denoiser, encoder, conditioning)
                for name, (denoiser, encoder) in {
                    "main": (self.denoiser, self.encoder),
                    **self.nets,
                }.items()
            },
            classifiers=self.classifiers,
            target=None if self.target is None else conditioning.rows[self.target].cpu(),
            prompts=conditioning.prompts,
            seeds=conditioning.draw.seeds,
        )
        return guided(x_t, step).prediction

    def _net(self, denoiser: Denoiser, encoder: Conditions, conditioning: Conditioning) -> Net:
        if not encoder.parts:
            return Net(denoiser=denoiser)
        cond, null = encoder(conditioning.rows), encoder.null(1)
        if self.is_student and conditioning.scale is not None:
            cond = with_input(cond, conditioning.scale)
            null = with_input(null, torch.ones(1))
        return Net(denoiser=denoiser, cond=cond, null=null)


def with_input(cond: Condition, scale: Tensor) -> Condition:
    """Add the scale of each sample to a condition, on its device."""
    device = next((t.device for t in cond.values()), scale.device)
    return Condition({**cond, KEY: scale.to(device, torch.float32)})


def _take(step: Step, rows: Tensor) -> Step:
    return step._replace(t=step.t.take(rows), s=step.s.take(rows))


def _plain(prediction: Prediction) -> Prediction:
    """Return a prediction whose tensors may enter a graph (those of `inference_mode` may not)."""
    x_t, x0 = prediction.x_t.clone(), prediction.x0.clone()
    return Prediction.from_x0(x_t, prediction.level, x0)


def draw_conditioning(
    x: Tensor,
    target: Batch,
    nulls: Callable[[str], Tensor],
    draw: Draw,
    *,
    rate: float,
    scale: tuple[float, float] | None,
) -> Conditioning:
    """Draw which samples of a batch are unconditional, and the scale of each.

    ``"drop all" < rate``; and with u of the stream ``"scale"``, uniform in [0, 1),

        w = low (high/low)^u          where 0 < low
        w = low + u (high − low)      elsewhere

    as a student of evenly drawn scales hardly meets small ones, whose pushes are small too.

    Args:
        x: the samples ``[B, *S]``.
        target: ``rows`` of the student's encoder by name, and ``prompts`` where a CLIP guides.
        nulls: gives the null row of a name.
        draw: their random streams.
        rate: how many of them.
        scale: the range of w, where the student takes it.
    """
    rows: Mapping[str, Tensor] = target["rows"]
    drop = (draw.uniform("drop all") < rate) if rows else torch.zeros(len(x), dtype=torch.bool)
    low, high = scale or (1.0, 1.0)
    u = draw.uniform("scale")
    w = low * (high / low) ** u if low > 0 else low + (high - low) * u
    prompts = target.get("prompts")
    return Conditioning(
        rows=dropped(rows, nulls, {}, rate, draw),
        drop=drop.cpu(),
        scale=None if scale is None else w,
        draw=draw,
        prompts=None if prompts is None else tuple(prompts),
    )


def step_between(t: Level, s: Level, schedule: Schedule) -> Step:
    """Return a step of its own from levels to levels."""
    return Step(t, s, 0, Grid(levels=(t, s), schedule=schedule))
