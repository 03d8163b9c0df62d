"""Pictures reduced to fewer pixels, by means over squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ..core.rng import Draw
from .source import Derived, Targets


@dataclass(frozen=True, kw_only=True)
class Reduced(Derived):
    """Another source's pictures, reduced.

    Args:
        source: of pictures, whose side is a multiple of ``side``.
        side: pixels of a side.

    Raises:
        ValueError: its pictures cannot be reduced so.
    """

    side: int

    def __post_init__(self) -> None:
        shape = self.source.shape
        if shape[1:] != (shape[-1],) * 2 or shape[-1] % self.side:
            raise ValueError(
                f"samples of {list(shape)} cannot be reduced to {self.side} x {self.side} pixels; "
                "choose a size that divides theirs"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one reduced picture."""
        return (self.source.shape[0], self.side, self.side)

    def batch(self, rows: Sequence[int], draw: Draw) -> tuple[Tensor, Targets]:
        """Return the pictures at ``rows``: means over squares."""
        x, targets = self.source.batch(rows, draw)
        return F.avg_pool2d(x, x.shape[-1] // self.side), targets
