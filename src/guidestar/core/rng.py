"""Randomness: one named stream for each sample.

Every random number of a run is keyed by the sample's seed, the step and a tag. So a sample depends
neither on the other samples of its batch, nor on chunks, devices or processes, nor on which other
numbers were drawn before; and a resumed run equals an unbroken one.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def _generator(seed: int, step: str, tag: str) -> torch.Generator:
    key = hashlib.blake2b(f"{seed}/{step}/{tag}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "big"))


def checked_seeds(seeds: Sequence[int]) -> list[int]:
    """Return the seeds as Python integers, one a sample.

    Raises:
        ValueError: there are no seeds, or they are no integers.
    """
    try:
        found = [operator.index(s) for s in seeds]
    except TypeError:
        raise ValueError(
            f"seeds must be a list of integers, one for each sample, not {seeds!r}; write e.g. "
            "seeds=[0, 1]"
        ) from None
    if not found:
        raise ValueError(
            "there are no seeds, so no samples; at least one seed is needed, seeds=[0]"
        )
    return found


@dataclass(frozen=True)
class Draw:
    """Per-sample random numbers, drawn on the CPU in float32 and moved to where they are needed.

    Args:
        seeds: one integer for each sample of the batch.
        step: the step of the run or of the training.
        visit: how often the run took this step before (it may travel back in time).

    Example:
        >>> one, two = Draw([7]), Draw([3, 7])
        >>> bool((one.normal("noise", (2,))[0] == two.normal("noise", (2,))[1]).all())
        True
    """

    seeds: Sequence[int]
    step: int = 0
    visit: int = 0

    def at(self, step: int) -> Draw:
        """Return the streams of another step."""
        return replace(self, step=step)

    def again(self, visit: int) -> Draw:
        """Return the streams of another visit of the same step."""
        return replace(self, visit=visit)

    def take(self, rows: Tensor) -> Draw:
        """Select samples (``rows``: int64 indices)."""
        return replace(self, seeds=[self.seeds[i] for i in rows.tolist()])

    def _each(self, tag: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        when = f"{self.step}.{self.visit}" if self.visit else f"{self.step}"
        return torch.stack([draw(_generator(seed, when, tag)) for seed in self.seeds])

    def normal(self, tag: str, shape: Sequence[int]) -> Tensor:
        """Draw standard normals ``[B, *shape]``, on the CPU in float32."""
        return self._each(tag, lambda g: torch.randn(tuple(shape), generator=g))

    def normal_like(self, tag: str, x: Tensor) -> Tensor:
        """Draw standard normals in the shape, dtype and on the device of ``x [B, *S]``."""
        return self.normal(tag, x.shape[1:]).to(x.device, x.dtype, non_blocking=True)

    def uniform(self, tag: str) -> Tensor:
        """Draw one number a sample, uniform in [0, 1): ``[B]``, CPU float64."""
        return self._each(tag, lambda g: torch.rand((), generator=g, dtype=torch.float64))

    def gaussian(self, tag: str) -> Tensor:
        """Draw one standard normal a sample: ``[B]``, CPU float64."""
        return self._each(tag, lambda g: torch.randn((), generator=g, dtype=torch.float64))
