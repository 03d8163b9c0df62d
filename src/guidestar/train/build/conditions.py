"""Build the encoders of a recipe's conditions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...core.rng import Draw
from ...data.latents import pictures_of
from ...data.source import Column, Source
from ...diffusers.read.clip import find_text
from ...diffusers.read.text_encoder import TextEncoder
from ...motion.body import SHORTEST
from ...networks.condition_encoders import ClassEncoder, LabelEncoder, VectorEncoder
from ...networks.conditions import check_condition_name
from ...networks.lengths import FRAMES, LengthEncoder
from ...networks.low_resolution import LOW, LowResolution
from ..recipe.schema import Recipe
from ..recipe.tables import ConditionSpec
from .clips import fresh_clip


def chosen_conditions(recipe: Recipe, columns: Mapping[str, Column]) -> dict[str, ConditionSpec]:
    """Return the conditions of the model: those of the recipe, or every column; lengths always.

    Raises:
        ValueError: the recipe names a column that the data lack.
    """
    lengths = {name: ConditionSpec() for name, c in columns.items() if c.kind == "length"}
    chosen = (
        {name: ConditionSpec() for name in columns}
        if recipe.conditions is None
        else {**recipe.conditions, **lengths}
    )
    strange = [name for name in chosen if name not in columns]
    if strange:
        raise ValueError(
            f"the recipe's condition {strange[0]!r} is not a column of the data, which "
            f"{'are ' + ', '.join(columns) if columns else 'have none'}; correct [conditions]"
        )
    for name in chosen:
        check_condition_name(name)
    return chosen


def low_resolution(recipe: Recipe, net: nn.Module, source: Source) -> dict[str, nn.Module]:
    """Return the condition of a super-resolution stage, by its name; none of other models.

    Raises:
        ValueError: the size of the smaller pictures does not fit the data.
    """
    spec, shape = recipe.upscale, source.shape
    if spec is None:
        return {}
    to = shape[-1]
    if shape[1:] != (to, to) or to % spec.size or to == spec.size:
        raise ValueError(
            f"upscale.size: samples of {list(shape)} must be a multiple of the smaller pictures, "
            f"and larger, not {spec.size} pixels a side"
        )
    return {
        LOW: LowResolution(
            channels=shape[0],
            size=spec.size,
            to=to,
            width=_condition_width(net),
            largest=spec.augmentation,
            droppable=spec.dropout > 0,
        )
    }


def build_text(
    recipe: Recipe, name: str, spec: ConditionSpec, source: Source, out: Path | None
) -> TextEncoder:
    """Return the encoder of a condition that is text."""
    if spec.encoder is None:
        raise ValueError(
            f"the condition {name!r} is text: name the CLIP that encodes it, "
            f'conditions.{name}.encoder = "clip" (the recipe\'s own), or a name or folder'
        )
    if spec.encoder == "clip" and recipe.clip is not None:
        clip = fresh_clip(recipe.clip, "clip", pictures_of(source), out)
        return TextEncoder(
            clip.text.requires_grad_(False), clip.tokenizer, layer=spec.layer, output=spec.output
        )
    found = find_text(spec.encoder)
    return TextEncoder(found.text, found.tokenizer, layer=spec.layer, output=spec.output)


def build_encoder(column: Column, name: str, net: nn.Module, source: Source) -> nn.Module:
    """Return the encoder of a condition of classes, numbers or lengths."""
    if type(net).__name__ == "DiTTransformer2DModel":
        if column.kind != "class":
            raise ValueError(
                f"DiT takes a class, not the {column.kind} {name!r}; leave it out of the "
                "conditions, or use another network"
            )
        return LabelEncoder(column.classes, _null_of(net, column))
    if column.kind == "length":
        _check_masked(net, name)
        return LengthEncoder(column.width, SHORTEST)
    width = _condition_width(net)
    if column.kind == "class":
        return ClassEncoder(column.classes, width)
    mean, std = statistics_of(source, name, column.width)
    return VectorEncoder(column.width, width, mean, std)


def _check_masked(net: nn.Module, name: str) -> None:
    """Refuse a network that does not take the mask of frames."""
    if FRAMES not in inspect.signature(net.forward).parameters:
        raise ValueError(
            f"a {type(net).__name__} takes no {FRAMES!r}, so it cannot tell motions from "
            f"their padding (the column {name!r}); "
            'write network = "motion", or add that argument'
        )


def _null_of(net: Any, column: Column) -> int | None:
    """Return the label that means no class in a DiT of more labels than there are classes.

    Raises:
        ValueError: it has fewer.
    """
    count = net.config["num_embeds_ada_norm"]
    if count < len(column.classes):
        raise ValueError(
            f"model.config: num_embeds_ada_norm must be at least the {len(column.classes)} classes "
            f"of the data, not {count}"
        )
    return None if count == len(column.classes) else count


def _condition_width(net: nn.Module) -> int:
    known = getattr(net, "condition_width", None)
    if isinstance(known, int):
        return known
    blocks = getattr(net, "config", {}).get("block_out_channels")
    if blocks:
        return 4 * blocks[0]
    raise ValueError(
        f"{type(net).__name__} has no attribute condition_width, the width of a condition's "
        "embedding; add it"
    )


def statistics_of(
    source: Source, name: str, width: int, most: int = 4096
) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation by dimension, of up to ``most`` samples."""
    if source.size is None:
        return [0.0] * width, [1.0] * width
    rows = torch.linspace(0, source.size - 1, min(most, source.size)).long().unique().tolist()
    values = torch.as_tensor(source.batch(rows, Draw(rows))[1][name]).double()
    return values.mean(0).tolist(), values.std(0, correction=0).clamp_min(1e-8).tolist()
