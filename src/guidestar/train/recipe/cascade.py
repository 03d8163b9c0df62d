"""Recipes of cascades: one ordinary recipe for each stage, of the same data and conditions."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, ValidationError, model_validator

from ...io.documents import JSONObject
from ...io.files import check_name
from .parts import ClassifierPart, CLIPPart, NetworkPart
from .schema import CommonRecipe, Recipe, checked, explain, suggestion
from .strict import Pixels, Rate, Strict
from .tables import Export, Levels, Noise, PreviewTable, TargetTable

WORK = "stages"
"""The folder under ``--out`` in which each stage is trained."""
_PIXELS = "cfg(2) | threshold(0.995)"
"""The guidance of a stage where the recipe names none: of pixels, so thresholded as Imagen's."""
_SHARED = ("schedule", "objective", "levels", "preview", "export")


class Stage(Strict):
    """A stage of a cascade.

    Args:
        size: pixels of a side of its pictures.
        augmentation: the largest level of the noise in the smaller picture; not of the first.
        dropout: how often the smaller picture is left out in training.
        model, weak: its networks.
        schedule, objective, levels, preview, export: in the place of the recipe's own tables.
    """

    size: Pixels
    augmentation: float | None = Field(default=None, ge=0, le=1)
    dropout: Rate = 0.0
    model: NetworkPart
    weak: NetworkPart | None = None
    schedule: Noise | None = None
    objective: TargetTable | None = None
    levels: Levels | None = None
    preview: PreviewTable | None = None
    export: Export | None = None


class CascadeRecipe(CommonRecipe):
    """The training of a cascade: what its stages share, and a table ``[stages.NAME]`` for each."""

    reserved: ClassVar[frozenset[str]] = frozenset((WORK, "batch.png", ".lock"))

    preview: PreviewTable = PreviewTable()
    export: Export = Export()
    clip: CLIPPart | None = None
    classifier: ClassifierPart | None = None
    judge: ClassifierPart | None = None
    measuring_clip: CLIPPart | None = None
    stages: Annotated[dict[str, Stage], Field(min_length=2, max_length=16)]

    @model_validator(mode="after")
    def _check(self) -> CascadeRecipe:
        if self.data.vae is not None or self.data.reduced is not None:
            raise ValueError(
                "data: the stages of a cascade learn pixels; leave vae and reduced out"
            )
        for name in self.stages:
            check_name(name, "the name of a stage", taken=frozenset(("readme.md", "cascade.json")))
        for (one, low), (other, high) in itertools.pairwise(self.stages.items()):
            if high.size <= low.size or high.size % low.size:
                raise ValueError(
                    f"stages.{other}.size must be a multiple of that of {one!r} before it "
                    f"({low.size}), not {high.size}"
                )
        first, largest = next(iter(self.stages)), list(self.stages.values())[-1].size
        if self.stages[first].augmentation is not None or self.stages[first].dropout:
            raise ValueError(
                f"stages.{first}: the first stage enlarges nothing; leave augmentation and dropout "
                "out"
            )
        full = 28 if self.data.kind == "fashion-mnist" else self.data.size
        if largest != full:
            raise ValueError(
                f"data.size: the last stage makes pictures of {largest} pixels a side, so the data "
                f"must be of as many, not {full}"
            )
        return self

    def chosen(self, only: list[str] | None) -> list[str]:
        """Return the stages to train, in order.

        Raises:
            ValueError: ``only`` names a stage that is not there.
        """
        strange = [n for n in only or () if n not in self.stages]
        if strange:
            raise ValueError(
                f"the recipe {self.name!r} has no stage {strange[0]!r}"
                f"{suggestion(strange[0], list(self.stages))}; its stages are "
                f"{', '.join(self.stages)}"
            )
        return [n for n in self.stages if only is None or n in only]

    def recipe(self, stage: str, out: Path) -> Recipe:
        """Return the recipe of one stage.

        A clip is trained with the first stage; the others take its text encoder from the folder of
        that stage's model under ``out``.
        """
        names, table = list(self.stages), self.stages[stage]
        at = names.index(stage)
        content: JSONObject = self.model_dump(
            exclude={"stages", "clip", "classifier", "judge", "measuring_clip"},
            exclude_unset=True,
        )
        for key in _SHARED:
            if getattr(table, key) is not None:
                content[key] = getattr(table, key).model_dump(exclude_unset=True)
        content["export"] = {"guidance": _PIXELS, **content.get("export", {})}
        content |= {
            "name": stage,
            "summary": f"{self.summary or self.name}: the stage {stage}, {table.size} pixels",
            "seed": (self.seed + 1009 * at) % 2**32,
        }
        for part, of in (
            ("model", table.model),
            ("weak", table.weak),
            ("clip", self.clip if at == 0 else None),
            ("classifier", self.classifier if at == 0 else None),
            ("judge", self.judge if at == len(names) - 1 else None),
            ("measuring_clip", self.measuring_clip if at == len(names) - 1 else None),
        ):
            if of is not None:
                content[part] = of.model_dump(exclude_unset=True)
        largest = list(self.stages.values())[-1].size
        if table.size != largest:
            content["data"] = {**content["data"], "reduced": table.size}
        if at:
            largest_level = 0.5 if table.augmentation is None else table.augmentation
            content["upscale"] = {
                "size": self.stages[names[at - 1]].size,
                "augmentation": largest_level,
                "dropout": table.dropout,
            }
            base = str(out / self.name / names[0])
            for condition in content.get("conditions", {}).values():
                if condition.get("encoder") == "clip":
                    condition["encoder"] = base
        return checked(content, f"stages.{stage}", trust=True)


def read_cascade(path: Path | str) -> CascadeRecipe | None:
    """Read a recipe that has stages; None of any other, or what is no recipe at all.

    Raises:
        ValueError: it has stages, and a key is unknown, missing or out of range.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None  # `read_recipe` says why
    if "stages" not in content:
        return None
    try:
        spec = CascadeRecipe.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, CascadeRecipe)}") from error
    for name, stage in spec.stages.items():
        if ":" in stage.model.network:
            raise ValueError(f"{path}: stages.{name}: a stage's network is not made by code")
    return spec
