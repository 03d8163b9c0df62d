"""Randomness: one named stream for each sample.

Every random number of a run is keyed by (the sample's seed, the step, a tag). So sample k does not
depend on who else is in its batch, on chunking, on the number of devices or processes, nor on which
other numbers were drawn before, and a resumed run equals an unbroken one.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def _generator(seed: int, step: str, tag: str) -> torch.Generator:
    key = hashlib.blake2b(f"{seed}/{step}/{tag}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "big"))


def checked_seeds(seeds: Sequence[int]) -> list[int]:
    """Return one integer a sample; refuse anything else.

    Raises:
        ValueError: there is none, or they are no integers.
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
        visit: which time this step is taken, where a run travels back and takes it again.

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

    @property
    def _when(self) -> str:
        return f"{self.step}.{self.visit}" if self.visit else f"{self.step}"

    def take(self, rows: Tensor) -> Draw:
        """Select samples (``rows``: int64 indices)."""
        return replace(self, seeds=[self.seeds[i] for i in rows.tolist()])

    def normal(self, tag: str, shape: Sequence[int]) -> Tensor:
        """Draw standard normals ``[B, *shape]``, on the CPU in float32."""
        return torch.stack(
            [
                torch.randn(tuple(shape), generator=_generator(s, self._when, tag))
                for s in self.seeds
            ]
        )

    def normal_like(self, tag: str, x: Tensor) -> Tensor:
        """Draw standard normals in the shape, dtype and on the device of ``x [B, *S]``."""
        return self.normal(tag, x.shape[1:]).to(x.device, x.dtype, non_blocking=True)

    def uniform(self, tag: str) -> Tensor:
        """Draw one number a sample, uniform in [0, 1): ``[B]``, CPU float64."""
        return torch.stack(
            [
                torch.rand((), generator=_generator(s, self._when, tag), dtype=torch.float64)
                for s in self.seeds
            ]
        )

    def gaussian(self, tag: str) -> Tensor:
        """Draw one standard normal a sample: ``[B]``, CPU float64."""
        return torch.stack(
            [
                torch.randn((), generator=_generator(s, self._when, tag), dtype=torch.float64)
                for s in self.seeds
            ]
        )
