"""Build a recipe's classifiers, of one column of its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...data.source import Column, Source
from ...io.documents import JSONObject
from ...networks.classifier import Classifier
from ..objectives import classification as supervised
from ..objectives.objective import Built, Objective
from ..recipe.parts import (
    ClassifierPart,
)
from ..recipe.schema import Recipe
from .conditions import statistics_of
from .limits import copies_of, within_memory
from .schedules import denoising, process


def build_classifier(
    recipe: Recipe, spec: ClassifierPart, source: Source, *, noise_aware: bool
) -> Built:
    """Build a classifier or regressor of one column, clean or of noised samples."""
    name, column = classifier_column(spec, source.columns)
    p, times = process(recipe), denoising(recipe).levels
    what: JSONObject = {"classes": column.classes}
    if column.kind == "vector":
        centre, spread = statistics_of(source, name, column.width)
        what |= {"outputs": column.width, "centre": centre, "spread": spread}
    shared = {
        "widths": spec.widths,
        "layers": spec.layers,
        "groups": 1 if len(source.shape) == 1 else spec.groups,
        "dropout": spec.dropout,
        "noise_aware": noise_aware,
    }
    channels = source.shape[0] if len(source.shape) == 3 else source.shape[-1]
    if len(source.shape) == 3:
        kind: Any = Classifier
    else:
        from ...networks.sequence_classifier import SequenceClassifier as kind
    copies = copies_of(spec.train)
    net = within_memory(lambda: kind(**what, channels=channels, **shared), copies)
    if not noise_aware:
        if column.kind != "class":
            raise ValueError(
                f"a judge predicts classes, and {name!r} is a {column.kind}; set judge.column"
            )
        objective: Objective = supervised.Classification(shift=spec.shift)
    else:
        objective = (
            supervised.NoisyClassification if column.kind == "class" else supervised.NoisyRegression
        )(schedule=p.schedule, levels=times)
    return Built(module=net, objective=objective, prepare=lambda targets: targets[name])


def classifier_column(spec: ClassifierPart, columns: Mapping[str, Column]) -> tuple[str, Column]:
    """Return the column that a classifier predicts.

    Raises:
        ValueError: there is no such column, or none of classes or vectors.
    """
    fit = [
        n
        for n, c in columns.items()
        if c.kind not in ("text", "length") and spec.column in (None, n)
    ]
    if not fit:
        wanted = (
            f"no class or vector {spec.column!r}"
            if spec.column
            else "no classes or vectors to predict"
        )
        raise ValueError(
            f"the data have {wanted}; their columns are "
            f"{', '.join(f'{n} ({c.kind})' for n, c in columns.items()) or 'none'}; correct "
            "column, or leave the part out"
        )
    return fit[0], columns[fit[0]]
