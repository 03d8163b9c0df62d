"""Measure guidances of a class model with its own judge, against real images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data import fashion_mnist
from ..evaluate import Accuracy, DiversityRatio, Frechet, JudgeOutput, class_shares, run_judge
from ..guidance import Guidance
from ..io import distributed as processes
from ..model.model import Model, Samples
from .rows import row_of, watch_part

if TYPE_CHECKING:
    from ..model.cascade_stages import CascadeSamples
    from ..train.build.data import Source
    from ..train.recipe.schema import Recipe

REAL = "real"
"""The name under which training images are measured: the floor of every distance."""


def references(
    model: Model, data: Path | None = None, floor: int = 1000
) -> tuple[JudgeOutput, JudgeOutput]:
    """Judge the held-out samples, and up to ``floor`` class-balanced training samples.

    Raises:
        ValueError: the model's card does not name its training data, or nothing was held out.
    """
    test, train = _real(model, data)
    judge = model.need_judge()
    classes = len(getattr(judge, "config")["classes"])  # noqa: B009
    rows = torch.cat([(train[1] == k).nonzero()[: floor // classes, 0] for k in range(classes)])
    return run_judge(judge, *test), run_judge(judge, train[0][rows], train[1][rows])


def _real(model: Model, data: Path | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Load the held-out and the training samples of a model."""
    if model.classes == fashion_mnist.CLASSES:
        return fashion_mnist.load_split("test", data), fashion_mnist.load_split("train", data)
    from ..data.latents import pictures_of
    from ..train.examine import gather_samples

    recipe, source, aside = real_sources(model, data)
    assert recipe.judge is not None
    real, floor = pictures_of(aside), pictures_of(source)
    return gather_samples(real, recipe.judge), gather_samples(floor, recipe.judge, 20_000)


def real_sources(model: Model, data: Path | None = None) -> tuple[Recipe, Source, Source]:
    """Return the recipe of a model that was trained here, its training data, and those held out.

    Args:
        model: the model.
        data: folder of the data; by default that of the recipe.

    Raises:
        ValueError: the model's card does not name its training data, nothing was held out, or the
            data have other classes.
    """
    from ..train.build.data import sources
    from ..train.recipe.schema import checked

    if "recipe" not in model.card:
        raise ValueError(
            f"the card of the model {model.name!r} does not name its training data, so there is "
            "nothing to compare with; measure a model that guidestar trained"
        )
    # No network of it is built here, so the code that it may name is not run.
    recipe = checked(model.card["recipe"], f"the card of the model {model.name!r}", trust=True)
    if data:
        recipe = recipe.model_copy(
            update={"data": recipe.data.model_copy(update={"path": str(data)})}
        )
    source, aside = sources(recipe, vae=getattr(getattr(model, "decode", None), "vae", None))
    if aside is None or recipe.judge is None:
        raise ValueError(
            f"the recipe of {model.name!r} held nothing out; set data.holdout or data.test, and "
            "train again"
        )
    _check_data(model, source)
    return recipe, source, aside


def _check_data(model: Model, source: Source) -> None:
    """Refuse data of other classes than the model was trained on; warn of other samples."""
    from ..data.identity import compare, identify

    before = model.card.get("data_identity")
    found = None if before is None else compare(before, identify(source))
    if found is None:
        return
    what, acceptable = found
    line = f"the data are not those that {model.name!r} was trained on ({what})"
    if not acceptable:
        raise ValueError(f"{line}; give those by --data")
    warnings.warn(f"{line}, so what is held out may have been trained on", stacklevel=3)


def measure(
    model: Model,
    guidances: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int | None = None,
    solver: str | None = None,
    grid: str | None = None,
    data: Path | None = None,
    batch: int = 50,
    watch: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, object]]:
    """Yield one row of figures for real images, then one for each guidance.

    Each row holds the judge's accuracy, the Fréchet distance of its features to the test images,
    within-class diversity relative to the test images, the share of each class among its verdicts,
    NFE a sample and seconds. Sample k is of class ``k mod K``.

    Args:
        model: a class model with a judge.
        guidances: expressions.
        seeds: one a sample.
        steps, solver, grid: as in `Model.sample`.
        data: folder of the real images.
        batch: samples at a time.
        watch: called with the samples done and in all.
    """
    if model.judge is None or not model.classes:
        raise ValueError(
            f"the model {model.name!r} has no judge of classes to measure with; train one "
            "([judge] in its recipe)"
        )
    guided = [model.expression(g) for g in guidances]
    for guidance in guided:  # refuse what cannot run before the first sample
        model.plan(
            guidance, cond=[0] * min(batch, len(seeds)), steps=steps, solver=solver, grid=grid
        )
    reference, floor = references(model, data)
    yield row_of(REAL, scores(floor, reference, len(model.classes)))
    wanted = torch.tensor([i % len(model.classes) for i in range(len(seeds))])
    for done, guidance in enumerate(guided):
        step = watch_part(watch, done, len(seeds), len(guided))
        images, nfe, seconds = _draw(
            model, guidance, list(seeds), wanted, batch, step, steps=steps, solver=solver, grid=grid
        )
        judged = run_judge(model.need_judge(), images, wanted)
        found = scores(judged, reference, len(model.classes))
        yield row_of(guidance, found, nfe=nfe, seconds=seconds)


def scores(judged: JudgeOutput, reference: JudgeOutput, classes: int) -> dict[str, object]:
    """Return all figures of one set of images."""
    metrics = {
        "accuracy": Accuracy(),
        "frechet": Frechet(reference),
        "diversity": DiversityRatio(reference),
    }
    for metric in metrics.values():
        metric.update(judged)
    shares = class_shares(judged.predicted, classes).tolist()
    return {
        **{name: round(m.compute(), 4) for name, m in metrics.items()},
        "shares": [round(s, 4) for s in shares],
    }


def _draw(
    model: Model,
    guidance: Guidance,
    seeds: list[int],
    wanted: Tensor,
    batch: int,
    watch: Callable[[int], None] | None,
    *,
    steps: int | None,
    solver: str | None,
    grid: str | None,
) -> tuple[Tensor, float, float]:
    """Draw all samples, shared out between processes; return them, NFE a sample and this process's
    seconds.
    """
    import time

    rows, drawn, nfe, seconds = processes.own_indices(len(seeds)), [], 0.0, 0.0
    for part in torch.tensor(rows).split(batch):
        start = time.perf_counter()
        samples: Samples | CascadeSamples = model.sample(
            [model.classes[k] for k in wanted[part].tolist()],
            guidance=guidance,
            seeds=[seeds[i] for i in part],
            steps=steps,
            solver=solver,
            grid=grid,
        )
        seconds += time.perf_counter() - start
        # The judge learned from the data: pictures, also of a model of latents, or standardised
        # values.
        scaled = "scale" in model.card and isinstance(samples, Samples)
        judged_values = samples.x if scaled else samples.images
        drawn += zip(part.tolist(), judged_values, strict=True)
        nfe += samples.nfe * len(part) / len(rows)
        if watch:
            watch(int(part[-1]) + 1)
    return torch.stack([x for _, x in processes.gather(drawn)]), nfe, seconds
