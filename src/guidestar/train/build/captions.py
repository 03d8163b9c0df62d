"""The captions of data."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.rng import Draw
from ...data.source import Source


def text_column(source: Source) -> str:
    """Return the name of the first column of captions.

    Raises:
        ValueError: the data have no captions.
    """
    found = next((n for n, c in source.columns.items() if c.kind == "text"), None)
    if found is None:
        raise ValueError(
            "CLIP needs captions; the data's columns are "
            f"{', '.join(f'{n} ({c.kind})' for n, c in source.columns.items()) or 'none'}; add a "
            "column of text, or leave the CLIPs out of the recipe"
        )
    return found


def captions(source: Source, most: int = 20_000) -> list[str]:
    """Return captions of the first ``most`` samples; of several, those of eight draws."""
    name, found = text_column(source), {}
    rows = list(range(min(source.size or most, most)))
    for round_ in range(8 if source.size is not None else 1):
        found |= dict.fromkeys(source.batch(rows, Draw(rows, round_))[1][name])
    return list(found)


def captions_of(source: Source, rows: Sequence[int], *, shortest: bool = False) -> list[str]:
    """Return one caption of each row: the first, or the shortest.

    Args:
        source: the data; no stream.
        rows: of the samples.
        shortest: return the shortest caption, which names the picture alone.

    Raises:
        ValueError: the data have no captions, or are a stream.
    """
    every = source.captions(text_column(source), rows)
    return [min(captions, key=len) if shortest else captions[0] for captions in every]
