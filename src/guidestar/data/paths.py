"""Trajectories of a sampler as data: the states of each run, and what it was of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.rng import Draw
from .source import Column, Source, Targets


@dataclass(frozen=True, kw_only=True, eq=False)
class Paths(Source):
    """Runs of a sampler: sample k holds the states of run k at all levels of its grid.

    Args:
        states: ``[N, n + 1, *S]``, in float16 or float32; returned in float32.
        source: the data whose columns the runs were conditioned on.
        rows: the row of ``source`` of each run.
        first_seed: run k is sampled from the seed ``first_seed + k``.
    """

    states: Tensor
    source: Source
    rows: Sequence[int]
    first_seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one run, ``[n + 1, *S]``."""
        return tuple(self.states.shape[1:])

    @property
    def size(self) -> int:
        """Number of runs."""
        return len(self.states)

    @property
    def columns(self) -> Mapping[str, Column]:
        """What each column of the data holds, by name."""
        return self.source.columns

    def draw(self, runs: Sequence[int]) -> Draw:
        """Return the random streams of runs, which do not change from batch to batch."""
        return Draw([self.first_seed + k for k in runs])

    def batch(self, rows: Sequence[int], draw: Draw) -> tuple[Tensor, Targets]:
        """Return the states of runs, their values by column, and their numbers as "path"."""
        targets = self.targets(rows)
        return self.states[torch.as_tensor(rows)].float(), {**targets, "path": torch.tensor(rows)}

    def targets(self, runs: Sequence[int]) -> Targets:
        """Return the values by column that runs are conditioned on."""
        return self.source.batch([self.rows[k] for k in runs], self.draw(runs))[1]
