"""Describe a training, and draw its first batch, without training anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..core.rng import Draw
from ..data.latents import pictures_of
from ..data.source import Source
from .build.data import sources
from .build.networks import build_part, source_of
from .build.trial import foresee
from .loop.memory import activations, training_memory
from .objectives.objective import Built
from .recipe.schema import Recipe
from .snapshots import (
    train_settings,
)

if TYPE_CHECKING:
    pass


def dry_run(
    recipe: Recipe, only: Sequence[str] | None = None, say: Callable[[str], None] | None = None
) -> tuple[list[str], Tensor]:
    """Describe a training in lines, and draw its first batch, without training anything.

    Returns:
        The lines, and the first samples ``[B, *S]`` (of a latent model, pictures).
    """
    source, aside = sources(recipe, say)
    count = "a stream" if source.size is None else f"{source.size:,} samples"
    columns = (
        ", ".join(
            f"{n} ({c.kind}{f', {len(c.classes)} classes' if c.classes else ''})"
            for n, c in source.columns.items()
        )
        or "none"
    )
    lines = [
        f"data: {count} of "
        f"{list(source.shape)}{'' if aside is None else f', {aside.size:,} held out'}; columns: "
        f"{columns}"
    ]
    rows = list(range(min(recipe.model.train.batch, source.size or recipe.model.train.batch)))
    first = source.batch(rows, Draw(rows))[0]
    shown = first if recipe.data.vae is None else pictures_of(source).batch(rows, Draw(rows))[0]
    lines[0] += (
        f"; the first batch has mean {first.mean():.3g} and standard deviation "
        f"{first.std(correction=0):.3g}"
    )
    built = {part: build_part(recipe, part, source) for part in recipe.parts(only)}
    foresee(recipe, built, source)
    return lines + [
        _line(recipe, part, b, source_of(part, source)) for part, b in built.items()
    ], shown


def _line(recipe: Recipe, part: str, built: Built, source: Source) -> str:
    s = train_settings(recipe, part)
    held, each = training_memory(built.module, s, source.shape), activations(built, source)
    at_once = -(-s.batch // s.accumulate)
    passes = (
        ""
        if source.size is None
        else f", {s.steps * s.batch / source.size:.1f} passes over the data"
    )
    total = sum(held.values()) + at_once * each
    parameters = sum(p.numel() for p in built.module.parameters())
    return (
        f"{part}: {parameters:,} parameters; {s.steps:,} steps of {s.batch}{passes}; about "
        f"{total:,.0f} MB of memory in one process"
    )
