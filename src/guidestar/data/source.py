"""Sources of training data: clean samples, and the values of their columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.rng import Draw

ColumnKind = Literal["class", "vector", "text", "length"]
"""What a column holds: the index of a class, real numbers, a caption, or how many frames of a
sequence are its own (the others are padding).
"""

Targets = Mapping[str, "Tensor | list[str]"]
"""Values of the samples of a batch by column: classes and lengths ``[B]`` (int64), vectors
``[B, D]`` (float32) or captions.
"""

Held = Mapping[str, "Tensor | Sequence[str | tuple[str, ...]]"]
"""Values of all samples, as `Targets`, but a sample may have several captions."""


def pick(held: Held, rows: Sequence[int], draw: Draw) -> dict[str, Tensor | list[str]]:
    """Return the values at ``rows``; of several captions one is drawn (tag "caption")."""
    where = torch.as_tensor(rows)
    return {
        name: t[where] if isinstance(t, Tensor) else _choose([t[r] for r in rows], draw)
        for name, t in held.items()
    }


def _choose(captions: Sequence[str | tuple[str, ...]], draw: Draw) -> list[str]:
    plain = [c for c in captions if isinstance(c, str)]
    if len(plain) == len(captions):
        return plain
    at = draw.uniform("caption").tolist()
    return [
        c if isinstance(c, str) else c[int(u * len(c))] for c, u in zip(captions, at, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one column holds.

    Args:
        kind: "class" (an index), "vector" (real numbers), "text" (a caption) or "length" (frames).
        classes: names of the classes, in the order of their indices.
        width: how many numbers a vector has; of a length, how many frames a sample has with its
            padding.
    """

    kind: ColumnKind
    classes: tuple[str, ...] = ()
    width: int = 0


class Source(ABC):
    """Clean samples of one shape, by row.

    Attributes:
        columns: what each column holds, by name.
    """

    columns: Mapping[str, Column]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, as `batch` returns it."""

    @property
    @abstractmethod
    def size(self) -> int | None:
        """Number of samples; None for a stream, whose rows are positions that rise."""

    @abstractmethod
    def batch(self, rows: Sequence[int], draw: Draw) -> tuple[Tensor, Targets]:
        """Return samples ``[B, *shape]`` (float32; images in [−1, 1]) and their values by column.

        Args:
            rows: which samples. Of a stream: positions that rise from call to call; an earlier one
                starts the stream again.
            draw: one stream of random numbers for each row, for flips, crops and captions.
        """

    def captions(self, column: str, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """Return all captions of the samples at ``rows`` in a column of text.

        Raises:
            ValueError: the source does not hold its captions, as a stream.
        """
        raise ValueError(
            f"a {type(self).__name__} does not hold all captions of its column {column!r}; give "
            "data that are not a stream"
        )


def captions_in(targets: Targets, column: str) -> list[str]:
    """Return the captions of a batch.

    Raises:
        ValueError: the column is not text.
    """
    values = targets[column]
    if isinstance(values, Tensor):
        raise _holds_numbers(column)
    return values


def _holds_numbers(column: str) -> ValueError:
    return ValueError(f"the column {column!r} holds numbers; name a column of captions")


def split_captions(held: Held, column: str, rows: Sequence[int]) -> list[tuple[str, ...]]:
    """Return the captions at ``rows`` of a column, each as a tuple.

    Raises:
        ValueError: the column is not text.
    """
    values = held[column]
    if isinstance(values, Tensor):
        raise _holds_numbers(column)
    found = [values[r] for r in rows]
    return [(value,) if isinstance(value, str) else tuple(value) for value in found]


@dataclass(frozen=True, kw_only=True, eq=False)
class Derived(Source, ABC):
    """Another source, changed: its size, columns and captions stay.

    Args:
        source: the other source.
    """

    source: Source

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.source.shape

    @property
    def size(self) -> int | None:
        """Number of samples; None for a stream."""
        return self.source.size

    @property
    def columns(self) -> Mapping[str, Column]:
        """What each column holds, by name."""
        return self.source.columns

    def captions(self, column: str, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """Return all captions of the samples at ``rows``."""
        return self.source.captions(column, rows)


@dataclass(frozen=True, kw_only=True)
class Subset(Derived):
    """Some rows of another source: ``batch(rows)`` is ``source.batch(kept[rows])``.

    Args:
        source: the other source.
        kept: its rows that are kept, in order.
    """

    kept: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of kept samples."""
        return len(self.kept)

    def batch(self, rows: Sequence[int], draw: Draw) -> tuple[Tensor, Targets]:
        """Return the samples at ``rows`` of the kept ones."""
        return self.source.batch([self.kept[r] for r in rows], draw)

    def captions(self, column: str, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """Return all captions of the kept samples at ``rows``."""
        return self.source.captions(column, [self.kept[r] for r in rows])


def split(source: Source, share: float, seed: int = 0) -> tuple[Source, Subset | None]:
    """Hold out a share of the samples for measuring.

    Which samples depends on ``seed`` and their number alone.

    Args:
        source: the samples.
        share: how many to hold out, in [0, 1).
        seed: of the choice.

    Returns:
        The source to train on, and the held-out one (None where ``share`` is 0).

    Raises:
        ValueError: ``source`` is a stream, or one part would be empty.
    """
    if not share:
        return source, None
    if source.size is None:
        raise ValueError(
            "a stream has no end, so no share of it can be held out; name other data to measure on "
            "(data.test)"
        )
    aside = round(share * source.size)
    if not 0 < aside < source.size:
        raise ValueError(
            f"a held-out share of {share:g} of {source.size} samples leaves one part empty; change "
            "data.holdout, or give more samples"
        )
    mixed = torch.randperm(source.size, generator=torch.Generator().manual_seed(seed)).tolist()
    return Subset(source=source, kept=tuple(sorted(mixed[aside:]))), Subset(
        source=source, kept=tuple(sorted(mixed[:aside]))
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class InMemory(Source):
    """Samples held as tensors.

    Args:
        x: ``[N, *S]``: uint8 images (returned as ``x / 127.5 − 1``), or floating point (returned
            as it is).
        targets: classes ``[N]``, vectors ``[N, D]`` or captions by column; a sample has one
            caption, or a tuple of which one is drawn each time.
        columns: what each of these columns holds.
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
        """Number of samples."""
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

    def captions(self, column: str, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """Return all captions of the samples at ``rows``."""
        return split_captions(self.targets, column, rows)
