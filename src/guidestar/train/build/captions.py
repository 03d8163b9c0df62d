"""Captions as data hold them."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.rng import Draw
from ...data.source import Source


def text_column(source: Source) -> str:
    """Return the column of captions.

    Raises:
        ValueError: there is none.
    """
    found = next((n for n, c in source.columns.items() if c.kind == "text"), None)
    if found is None:
        raise ValueError(
            "CLIP needs captions; the data's columns are "
            f"{', '.join(f'{n} ({c.kind})' for n, c in source.columns.items()) or 'none'}"
        )
    return found


def captions(source: Source, most: int = 20_000) -> list[str]:
    """Return captions of the first samples; where a sample has several, those of eight draws."""
    name, found = text_column(source), {}
    rows = list(range(min(source.size or most, most)))
    for round_ in range(8 if source.size is not None else 1):
        found |= dict.fromkeys(source.batch(rows, Draw(rows, round_))[1][name])
    return list(found)


def captions_of(source: Source, rows: Sequence[int], *, shortest: bool = False) -> list[str]:
    """Return the first caption of each row, which asks for the picture, or the shortest, which
    names it.
    """
    name = text_column(source)
    while not hasattr(source, "targets"):
        rows = [source.kept[r] for r in rows]  # type: ignore[attr-defined]
        source = source.source  # type: ignore[attr-defined]
    held = source.targets[name]  # type: ignore[attr-defined]
    every = [(held[r],) if isinstance(held[r], str) else held[r] for r in rows]
    return [min(captions, key=len) if shortest else captions[0] for captions in every]
