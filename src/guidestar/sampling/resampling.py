"""Weights of particles, and their resampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor

_T = TypeVar("_T")

Potential = Literal["difference", "max", "sum"]
"""How the weights of particles follow from their rewards on the way (`steer`)."""


def effective_size(log_weights: Tensor) -> Tensor:
    """Return ``(Σ w)²/Σ w²`` ``[…]`` of log-weights ``[…, K]``: K if all are equal, at least 1."""
    return 1 / (log_weights.softmax(-1) ** 2).sum(-1)


def systematic(weights: Tensor, u: float) -> Tensor:
    """Return K ancestors (int64 ``[K]``) by systematic resampling.

    They are those at ``(u + i)/K`` of the cumulative weights. Particle k is chosen ⌊K w⌋ or ⌈K w⌉
    times, and K w times on average over u.

    Args:
        weights: ``[K]``, with sum 1.
        u: uniform in [0, 1).
    """
    places = (u + torch.arange(len(weights), dtype=weights.dtype)) / len(weights)
    return torch.searchsorted(weights.cumsum(0), places, right=True).clamp_max(len(weights) - 1)


@dataclass(frozen=True)
class Weighing:
    """The potentials of each particle's path.

    Args:
        potential: how potentials follow from scores.
        spent: log of the product of the potentials that resampling has used, ``[B, K]``.
        record: the largest score of the path so far ("max"), or the sum ("sum"), ``[B, K]``.
    """

    potential: Potential
    spent: Tensor
    record: Tensor

    def log(self, score: Tensor, last: bool) -> Tensor:
        """Return the log of the next potential, ``[B, K]``.

        At the end it makes the product of all potentials of a path ``exp(score)``.

        Args:
            score: strength times reward of each particle, ``[B, K]``.
            last: whether this is the end of the run.
        """
        if last or self.potential == "difference":
            return score - self.spent
        return self._next_record(score)

    def _next_record(self, score: Tensor) -> Tensor:
        return torch.maximum(self.record, score) if self.potential == "max" else self.record + score

    def resample(self, score: Tensor, ancestors: Tensor, resampled: Tensor) -> Weighing:
        """Return the potentials after resampling, where each particle has its ancestor's path.

        The potential is used in the resampled samples.

        Args:
            score: strength times reward of each particle, ``[B, K]``.
            ancestors: of each particle, int64 ``[B, K]``.
            resampled: which samples were resampled, bool ``[B]``.
        """
        spent = self.spent + torch.where(resampled[:, None], self.log(score, False), 0.0)
        record = self._next_record(score).gather(1, ancestors)
        return Weighing(self.potential, spent.gather(1, ancestors), record)


def count_starts(weights: Tensor, starts: Tensor) -> Tensor:
    """Return the effective number of starts, ``1/Σ_a (Σ w of those from start a)²``, ``[B]``.

    Args:
        weights: of the particles, ``[B, K]``, with sum 1 over K.
        starts: the start of each particle, int64 ``[B, K]``.
    """
    return 1 / (torch.zeros_like(weights).scatter_add(1, starts, weights) ** 2).sum(1)


def choose_ancestors(weights: Tensor, u: Tensor, resampled: Tensor) -> Tensor:
    """Return each particle's ancestor among those of its sample, int64 ``[B, K]``.

    Args:
        weights: of the particles, ``[B, K]``, with sum 1 over K.
        u: uniform in [0, 1), ``[B]``.
        resampled: which samples are resampled, bool ``[B]``; in the others each keeps itself.
    """
    own, rows = torch.arange(weights.shape[1]), zip(weights, u, resampled, strict=True)
    return torch.stack([systematic(w, float(v)) if chosen else own for w, v, chosen in rows])


def take_particles(state: _T, rows: Tensor) -> _T:
    """Select particles of the state of a solver or guidance: of tensors with a row for each.

    Args:
        state: a tensor, a mapping or tuple of states, or any other value, which is kept.
        rows: int64 indices of the particles, as many as there are.
    """
    found: object = state
    if isinstance(state, Mapping):
        every = cast("Mapping[str, object]", state)
        found = {name: take_particles(v, rows) for name, v in every.items()}
    elif isinstance(state, tuple):
        found = tuple(take_particles(v, rows) for v in cast("tuple[object, ...]", state))
    elif isinstance(state, Tensor) and len(state) == len(rows):
        found = state[rows.to(state.device)]
    return cast("_T", found)
