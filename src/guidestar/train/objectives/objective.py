"""Objectives, the settings of a training, and its progress."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...core.rng import Draw
from ...data.source import Targets
from ..loop.ema import Power, Profile, Standard


class Objective(ABC):
    """A training objective: one loss a sample, never reduced."""

    @abstractmethod
    def __call__(self, net: Any, x0: Tensor, target: Any, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of ``net`` on clean data ``x0 [B, *S]`` and its target.

        Args:
            net: the network.
            x0: clean data ``[B, *S]``.
            target: classes, numbers, tokens or a condition, one for each sample.
            draw: the random numbers of levels, noise and shifts.
        """


@dataclass(frozen=True, kw_only=True)
class Built:
    """A part's network, and what trains it.

    Args:
        module: the network, fresh.
        objective: its loss.
        prepare: turns the targets of a batch into the objective's target.
    """

    module: nn.Module
    objective: Objective
    prepare: Callable[[Targets], object]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long and how fast to train.

    Args:
        steps: optimiser steps.
        batch: samples a step, of all processes together.
        accumulate: number of parts of a process's share of a batch, which bounds memory.
        rate: learning rate after the warm-up; it falls to 0 by a cosine.
        warmup: steps of linear warm-up.
        clip: largest gradient norm.
        decay: of the averaged weights.
        power: relative widths of further averages by EDM2's power functions, e.g. (0.05, 0.1).
        weight_decay: AdamW's.
        precision: "float32", "bfloat16" for autocast, or "float64".
        compile: compile the network (slow to start, faster on a GPU).
        seed: of data order, noise and dropout.
    """

    steps: int
    batch: int = 64
    accumulate: int = 1
    rate: float = 1e-3
    warmup: int = 200
    clip: float = 1.0
    decay: float = 0.999
    power: tuple[float, ...] = ()
    weight_decay: float = 0.0
    precision: str = "float32"
    compile: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a training after a step.

    Args:
        step: steps done.
        loss: mean over the batch, before the step.
        norm: of the gradient, before clipping.
        rate: learning rate of the step.
        seconds: spent so far.
        samples: trained on so far.
    """

    step: int
    loss: float
    norm: float
    rate: float
    seconds: float
    samples: int


def profiles(settings: TrainSettings) -> list[Profile]:
    """Return the averages that a training keeps; the first is used unless another is named."""
    return [Standard(decay=settings.decay), *(Power.of_width(w) for w in settings.power)]


class NotFinite(RuntimeError):
    """The loss or its gradient is not finite; weights and the last checkpoint are intact."""
