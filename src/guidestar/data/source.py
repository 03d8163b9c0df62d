"""Data to train on: clean samples, and what is known of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.rng import Draw

ColumnKind = Literal["class", "vector", "text"]
"""What a column holds: the index of a class, real numbers, or a caption."""

Targets = Mapping[str, "Tensor | list[str]"]
"""What is known of each sample of a batch, by column: classes ``[B]`` (int64), vectors ``[B, D]``
(float32), or captions.
"""

Held = Mapping[str, "Tensor | list[str] | list[tuple[str, ...]]"]
"""What is known of all samples: as `Targets`, but a sample may have several captions."""


def pick(held: Held, rows: Sequence[int], draw: Draw) -> dict[str, Tensor | list[str]]:
    """Return what is known at ``rows``; of several captions the one that the draw's "caption"
    says.
    """
    where = torch.as_tensor(rows)
    return {
        name: t[where] if isinstance(t, Tensor) else _said([t[r] for r in rows], draw)
        for name, t in held.items()
    }


def _said(captions: Sequence[str | tuple[str, ...]], draw: Draw) -> list[str]:
    if all(isinstance(c, str) for c in captions):
        return list(captions)  # type: ignore[arg-type]
    at = draw.uniform("caption").tolist()
    return [
        c if isinstance(c, str) else c[int(u * len(c))] for c, u in zip(captions, at, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one column says of each sample.

    Args:
        kind: "class" (an index), "vector" (real numbers) or "text" (a caption).
        classes: names of the classes in the order of their indices.
        width: how many numbers a vector has.
    """

    kind: ColumnKind
    classes: tuple[str, ...] = ()
    width: int = 0


class Source(ABC):
    """Clean samples of one shape, by row.

    Attributes:
        shape: of one sample, as `batch` gives it.
        size: how many samples there are; None for a stream, whose rows are positions that rise.
        columns: what is known of each sample, by name.
    """

    shape: tuple[int, ...]
    size: int | None
    columns: Mapping[str, Column]

    @abstractmethod
    def batch(self, rows: Sequence[int], draw: Draw) -> tuple[Tensor, Targets]:
        """Return samples ``[B, *shape]`` (float32; images in [−1, 1]) and what is known of each.

        Args:
            rows: which samples (of a stream: positions that rise from call to call; an earlier one
                starts the stream again).
            draw: one stream of random numbers a row, for flips and crops.
        """


@dataclass(frozen=True, kw_only=True)
class Subset(Source):
    """Some rows of another source: ``batch(rows)`` is ``source.batch(kept[rows])``."""

    source: Source
    kept: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.source.shape

    @property
    def size(self) -> int:
        """How many samples are kept."""
        return len(self.kept)

    @property
    def columns(self) -> Mapping[str, Column]:
        """What is known of each sample."""
        return self.source.columns

    def batch(self, rows: Sequence[int], draw: Draw) -> tuple[Tensor, Targets]:
        """Return the samples at ``rows`` of the kept ones."""
        return self.source.batch([self.kept[r] for r in rows], draw)


def split(source: Source, share: float, seed: int = 0) -> tuple[Source, Subset | None]:
    """Set a share of the samples aside for measuring; which ones depends on ``seed`` and their
    number alone.

    Returns:
        What is left to train on, and the held-out part (None where ``share`` is 0).

    Raises:
        ValueError: of a stream, or nothing would be left of one part.
    """
    if not share:
        return source, None
    if source.size is None:
        raise ValueError(
            "a stream has no end, so no share of it can be held out; give a folder of its own to "
            "measure on"
        )
    aside = round(share * source.size)
    if not 0 < aside < source.size:
        raise ValueError(
            f"a held-out share of {share:g} of {source.size} samples leaves one part empty"
        )
    mixed = torch.randperm(source.size, generator=torch.Generator().manual_seed(seed)).tolist()
    return Subset(source=source, kept=tuple(sorted(mixed[aside:]))), Subset(
        source=source, kept=tuple(sorted(mixed[:aside]))
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class InMemory(Source):
    """Samples held as tensors.

    Args:
        x: ``[N, *S]``: uint8 images (given out as ``x / 127.5 − 1``), or floating point, given out
            as it is.
        targets: classes ``[N]``, vectors ``[N, D]`` or captions (of a sample: one, or a tuple of
            which one is drawn each time), by column.
        columns: their descriptions.
        flip: mirror each image left to right with probability ½ (by the draw's "flip").
    """

    x: Tensor
    targets: Held
    columns: Mapping[str, Column]
    flip: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x.shape[1:])

    @property
    def size(self) -> int:
        """How many samples there are."""
        return len(self.x)

    def batch(self, rows: Sequence[int], draw: Draw) -> tuple[Tensor, Targets]:
        """Return the samples at ``rows``."""
        where = torch.as_tensor(rows)
        x = self.x[where]
        x = x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x
        if self.flip:
            x = torch.where(
                (draw.uniform("flip") < 0.5).view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x
            )
        return x, pick(self.targets, rows, draw)
