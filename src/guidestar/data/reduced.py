"""Pictures reduced to fewer pixels, by means over squares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ..core.rng import Draw
from .source import Column, Source, Targets


@dataclass(frozen=True, kw_only=True)
class Reduced(Source):
    """Another source's pictures, reduced.

    Args:
        source: of pictures, whose side is a multiple of ``side``.
        side: pixels of a side.

    Raises:
        ValueError: its pictures cannot be reduced so.
    """

    source: Source
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

    @property
    def size(self) -> int | None:
        """Number of pictures."""
        return self.source.size

    @property
    def columns(self) -> Mapping[str, Column]:
        """What is known of each picture."""
        return self.source.columns

    def batch(self, rows: Sequence[int], draw: Draw) -> tuple[Tensor, Targets]:
        """Return the pictures at ``rows``: means over squares."""
        x, targets = self.source.batch(rows, draw)
        return F.avg_pool2d(x, x.shape[-1] // self.side), targets

    def captions(self, column: str, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """Return all captions of the pictures at ``rows``."""
        return self.source.captions(column, rows)
