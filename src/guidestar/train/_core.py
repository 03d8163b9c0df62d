"""The training loop: objectives, averaged weights, checkpoints, and `fit`."""

from __future__ import annotations

import copy
import math
import pickle
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..draw import Draw
from ..files import whole_or_not
from ._safely import held_back


class Objective(ABC):
    """A training objective: one loss a sample, never reduced."""

    @abstractmethod
    def __call__(self, net: Any, x0: Tensor, target: Any, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of ``net`` on clean data ``x0 [B, *S]`` and its target or condition."""


class EMA:
    """Exponentially averaged weights: ``a ← d a + (1 − d) w``, ``d = min(decay, (1 + n)/(10 + n))``."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the weights of ``module``."""
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(averages, weights, share)  # pyright: ignore[reportPrivateImportUsage]
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(buffer)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long and how fast to train.

    Args:
        steps: optimiser steps.
        batch: samples a step.
        rate: learning rate after the warm-up; it falls to 0 by a cosine.
        warmup: steps of linear warm-up.
        clip: largest gradient norm.
        decay: of the averaged weights.
        weight_decay: AdamW's.
        precision: "float32", or "bfloat16" for autocast.
        seed: of data order, noise and dropout.
    """

    steps: int
    batch: int = 64
    rate: float = 1e-3
    warmup: int = 200
    clip: float = 1.0
    decay: float = 0.999
    weight_decay: float = 0.0
    precision: str = "float32"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training stands after a step: how far, its loss, the seconds and samples it took so far, its averaged weights."""

    step: int
    loss: float
    seconds: float
    samples: int
    ema: nn.Module


def order(position: int, count: int, size: int, seed: int) -> Tensor:
    """Return the data indices of positions ``position … position + count − 1`` of an endless stream.

    Each pass over the data is a permutation of its own, and what is left of one pass in a batch
    is filled from the next: the stream depends on the seed and the position alone.
    """
    passes = range(position // size, (position + count - 1) // size + 1)
    perms = [torch.randperm(size, generator=torch.Generator().manual_seed(seed * 1_000_003 + p)) for p in passes]
    start = position - passes[0] * size
    return torch.cat(perms)[start : start + count]


class NotFinite(RuntimeError):
    """The loss or its gradient stopped being a number; weights and the last checkpoint are intact."""


class Trainer:
    """Everything of a training that a checkpoint holds, and its one step.

    Args:
        module: the network (float32); its averaged copy is ``ema.module``.
        objective: the loss of each sample.
        data: clean samples ``[N, *S]`` and targets ``[N]``.
        settings: how long and how fast.
        made_from: what else shaped the training (the network, the objective), as plain numbers and
            words by name: a checkpoint that was made from anything else is refused.
    """

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        data: tuple[Tensor, Tensor],
        settings: Settings,
        made_from: Mapping[str, Any] | None = None,
    ) -> None:
        self.module, self.objective, self.data, self.settings = module, objective, data, settings
        self.made_from = dict(made_from or {})
        self.ema, self.done, self.seconds = EMA(module, settings.decay), 0, 0.0
        self.optimiser = torch.optim.AdamW(module.parameters(), settings.rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay, foreach=True)

    def rate(self) -> float:
        """Return this step's learning rate: linear warm-up, then a cosine to 0."""
        s = self.settings
        ahead = (self.done - s.warmup) / max(1, s.steps - s.warmup)
        return s.rate * min((self.done + 1) / max(1, s.warmup), 0.5 + 0.5 * math.cos(math.pi * max(0.0, ahead)))

    def step(self) -> float:
        """Train on one batch and return its mean loss."""
        s, (x, y) = self.settings, self.data
        rows = order(self.done * s.batch, s.batch, len(x), s.seed)
        draw = Draw([s.seed * 1_000_003 + i for i in rows.tolist()], self.done)
        device = next(self.module.parameters()).device
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        torch.manual_seed(s.seed * 1_000_003 + self.done)  # for dropout layers alone
        with torch.autocast(device.type, torch.bfloat16, enabled=s.precision == "bfloat16"):
            loss = self.objective(self.module, x[rows].to(device), y[rows].to(device), draw).mean()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NotFinite(f"the loss became {value} at step {self.done}")
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), s.clip))
        if not math.isfinite(norm):  # one such step would spoil every weight, and the next checkpoint with them
            raise NotFinite(f"the gradient's norm became {norm} at step {self.done}")
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.ema.update(self.module)
        self.done += 1
        return value

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all.

        Raises:
            OSError: it cannot be written; the former checkpoint is intact.
        """
        state = {
            "module": self.module.state_dict(),
            "ema": self.ema.module.state_dict(),
            "updates": self.ema.updates,
            "optimiser": self.optimiser.state_dict(),
            "done": self.done,
            "seconds": self.seconds,
            "settings": vars(self.settings),
            "made_from": self.made_from,
            "threads": torch.get_num_threads(),
        }
        with whole_or_not(path) as beside, beside.open("wb") as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        """Take up a checkpoint.

        Raises:
            ValueError: it is damaged, or was written under other settings (named).
        """
        state = _read(path)
        changed = _changed(state["settings"], vars(self.settings)) + _changed(state.get("made_from", self.made_from), self.made_from)
        if changed:
            raise ValueError(f"{path} was trained with other settings ({', '.join(changed)}); give another --out, or the recipe it was started with")
        try:
            self.module.load_state_dict(state["module"])
            self.ema.module.load_state_dict(state["ema"])
            self.optimiser.load_state_dict(state["optimiser"])
        except RuntimeError as error:
            raise ValueError(f"{path} holds the weights of another network; give another --out, or the recipe it was started with") from error
        self.ema.updates, self.done, self.seconds = state["updates"], state["done"], state["seconds"]


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a checkpoint, or a damaged one; remove it to start again") from error
    if not isinstance(state, dict) or not {"module", "ema", "updates", "optimiser", "done", "seconds", "settings"} <= state.keys():
        raise ValueError(f"{path} is not a checkpoint of a training; remove it to start again")
    return state


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name the entries in which two mappings differ."""
    absent = object()
    return sorted(k for k in old.keys() | new.keys() if old.get(k, absent) != new.get(k, absent))


def fit(
    trainer: Trainer,
    checkpoint: Path | None = None,
    *,
    every: float = 60.0,
    after: Callable[[Trainer], None] = lambda trainer: None,
) -> Generator[Progress, None, None]:
    """Train to the end, yielding after each step; closing the generator stops and saves.

    An interrupt waits for the end of the step. A step that fails is not saved: the last checkpoint
    stays, and the training goes on from there.

    Args:
        trainer: what to train; taken up from ``checkpoint`` where that exists.
        checkpoint: file to write, every ``every`` seconds and at the end.
        every: seconds between checkpoints.
        after: called after each step, as part of it: where it fails the step is done again (so a
            snapshot is never skipped).
    """
    if checkpoint and checkpoint.exists():
        trainer.load(checkpoint)
    trainer.module.train()
    saved_at, saved_step, whole = time.monotonic(), trainer.done, True
    try:
        while trainer.done < trainer.settings.steps:
            with held_back():
                start, whole = time.monotonic(), False
                loss = trainer.step()
                trainer.seconds += time.monotonic() - start
                after(trainer)
                whole = True
            yield Progress(step=trainer.done, loss=loss, seconds=trainer.seconds, samples=trainer.done * trainer.settings.batch, ema=trainer.ema.module)
            if checkpoint and time.monotonic() - saved_at > every:
                trainer.save(checkpoint)
                saved_at, saved_step = time.monotonic(), trainer.done
    finally:
        if checkpoint and whole and trainer.done > saved_step:
            trainer.save(checkpoint)
