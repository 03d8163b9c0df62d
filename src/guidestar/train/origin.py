"""What shapes a part's weights, which a checkpoint keeps to be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..io.documents import JSONObject
from .recipe.parts import AutoencoderPart, CLIPPart, DecoderPart
from .recipe.schema import Recipe

if TYPE_CHECKING:
    pass

_IDLE = ("cache", "test", "max_bad", "about")
"""Keys of data that shape no weights; neither does their path, in whose place is their identity."""


def _unset(recipe: Recipe) -> set[str]:
    """Return newer keys that are not used, which older checkpoints lack."""
    return {key for key in ("reduced", "motion") if getattr(recipe.data, key) is None}


def describe_origin(recipe: Recipe, part: str) -> dict[str, object]:
    """Return all that shapes a part's weights besides its settings, by dotted names."""
    spec = getattr(recipe, part)
    own = spec.model_dump(
        exclude={"train", "snapshots", "calibrate"}
    )  # which snapshots are kept shapes nothing
    if isinstance(spec, AutoencoderPart | DecoderPart):  # they take no condition, and no noise
        idle = {"path", *_IDLE, "vae", "columns", "classes", *_unset(recipe)}
        data = recipe.data.model_dump(exclude=idle)
        own.pop("spread", None)
        return _dotted({"data": data, part: own})
    noise = (
        {}
        if part == "judge" or isinstance(spec, CLIPPart)
        else {
            "schedule": recipe.schedule.model_dump(),
            "levels": recipe.levels.model_dump(),
            "objective": recipe.objective.model_dump(
                exclude={"motion"} if recipe.objective.motion is None else None
            ),
        }
    )
    conditions = {name: spec.model_dump() for name, spec in (recipe.conditions or {}).items()}
    tables = {
        **noise,
        "data": recipe.data.model_dump(exclude={"path", *_IDLE, *_unset(recipe)}),
        "conditions": conditions,
        part: own,
        "": {"joint_dropout": recipe.joint_dropout},
    }
    if recipe.upscale is not None:
        tables["upscale"] = recipe.upscale.model_dump()
    return _dotted(tables)


def _dotted(tables: Mapping[str, JSONObject]) -> JSONObject:
    return {
        f"{table}.{key}".strip("."): _plain(value)
        for table, values in tables.items()
        for key, value in values.items()
    }


def _plain(value: object) -> object:
    """Return a value with dicts and lists in the place of mappings and tuples."""
    return (
        {str(k): _plain(v) for k, v in value.items()}
        if isinstance(value, Mapping)
        else [_plain(v) for v in value]
        if isinstance(value, list | tuple)
        else value
    )
