"""Measure motions: by a judge of actions, and by how bodies move."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.motions import Motions
from ..data.source import Source, Subset
from ..evaluate import fit_gaussian, gaussian_distance
from ..evaluate.metric import JudgeOutput, run_judge
from ..evaluate.motions import diversity, floor_distance, foot_skating, jerk, multimodality
from ..model.model import Model
from ..model.motion_editing import keep
from ..model.motions import motions
from ..motion.body import Body
from ..sampling import DDIM, TimeTravel
from .measure import real_sources
from .rows import row_of


@dataclass(frozen=True, kw_only=True)
class MotionScores:
    """Measures of a set of motions; names as in MDM's evaluation where the definition is the same.

    Args:
        accuracy: share of the motions in which the judge finds the wanted action.
        fid: Fréchet distance of the judge's features to those of the reference.
        diversity: mean distance of the features of two motions.
        multimodality: the same for two of one action.
        foot_skating: speed of feet on the floor, heights a second.
        jerk: heights a second³.
        floor: distance of the lowest joint to the floor, heights.
    """

    accuracy: float
    fid: float
    diversity: float
    multimodality: float
    foot_skating: float
    jerk: float
    floor: float


@dataclass(frozen=True, kw_only=True)
class MotionJudge:
    """A classifier of actions and what it needs to classify motions.

    Args:
        net: gives logits and features of standardised motions, padded with zeros.
        data: the motions that it was trained on, whose units and length it takes.
        column: the classes that it predicts.
    """

    net: Any
    data: Motions
    column: str

    def run(self, numbers: Sequence[Tensor], labels: Tensor) -> JudgeOutput:
        """Return what the judge predicts of motions ``[T_k, C]`` in their units."""
        frames = self.data.frames
        rows = [self.data.scale.apply(n[:frames]) for n in numbers]
        x = torch.stack([F.pad(r, (0, 0, 0, frames - len(r))) for r in rows])
        return run_judge(self.net, x.float(), labels)


def real_motions(source: Motions) -> list[Tensor]:
    """Return the numbers ``[T_k, C]`` of motions, of longer ones the middle frames."""
    found = []
    for numbers in source.numbers.split(list(source.counts)):
        start = max(0, len(numbers) - source.frames) // 2
        found.append(numbers[start : start + source.frames])
    return found


def score_motions(
    numbers: Sequence[Tensor],
    labels: Tensor,
    *,
    judge: MotionJudge,
    body: Body,
    reference: JudgeOutput,
) -> MotionScores:
    """Measure motions.

    Args:
        numbers: of each ``[T_k, C]``, in their units.
        labels: the action each should show ``[N]`` (int64).
        judge: of actions.
        body: the skeleton.
        reference: what the judge predicts of other real motions.
    """
    output = judge.run(numbers, labels)
    joints = [body.joints(n.double()) for n in numbers]
    size, feet = body.format.size, body.format.feet
    mean = lambda values: float(torch.tensor(values, dtype=torch.float64).mean())
    return MotionScores(
        accuracy=float((output.predicted == labels).double().mean()),
        fid=gaussian_distance(*fit_gaussian(output.features), *fit_gaussian(reference.features)),
        diversity=diversity(output.features),
        multimodality=multimodality(output.features, labels),
        foot_skating=mean([foot_skating(j, feet, body.rate, size) for j in joints]),
        jerk=mean([jerk(j, body.rate, size) for j in joints]),
        floor=mean([floor_distance(j, size) for j in joints]),
    )


def names_like(source: Motions, columns: Sequence[str]) -> list[str]:
    """Return the conditions that real motions have, with their lengths, as a model takes them.

    Args:
        source: real motions.
        columns: classes and captions (the first one) that are conditions of the model.
    """

    def word(column: str, k: int) -> str:
        held, about = source.targets[column], source.columns[column]
        if about.kind == "text":
            return source.captions(column, [k])[0][0]
        return about.classes[int(held[k])] if isinstance(held, Tensor) else str(held[k])

    found = []
    for k, count in enumerate(source.counts):
        length = min(count, source.frames)
        words = [f"{c}={word(c, k)}" for c in columns]
        found.append("; ".join([*words, f"length={length}"]) if words else str(length))
    return found


def sample_like(
    model: Model, names: Sequence[str], guidance: str, *, steps: int | None = None, batch: int = 64
) -> list[Tensor]:
    """Return guided motions ``[T_k, C]`` of conditions, of the seeds 0, 1, …"""
    found: list[Tensor] = []
    for start in range(0, len(names), batch):
        part = list(names[start : start + batch])
        seeds = range(start, start + len(part))
        made = model.sample(part, guidance=guidance, seeds=seeds, steps=steps)
        found += motions(model, made)
    return found


def motions_of(source: Source) -> Motions:
    """Return the motions of a source, also of one that is some rows of others.

    Raises:
        ValueError: it holds no motions.
    """
    if isinstance(source, Motions):
        return source
    if not isinstance(source, Subset):
        raise ValueError(f"these are no motions but samples of {list(source.shape)}")
    whole, kept = motions_of(source.source), list(source.kept)
    parts = whole.numbers.split(list(whole.counts))
    pick = lambda held: (
        held[kept] if isinstance(held, Tensor) else type(held)(held[k] for k in kept)
    )
    return replace(
        whole,
        numbers=torch.cat([parts[k] for k in kept]),
        counts=tuple(whole.counts[k] for k in kept),
        targets={name: pick(held) for name, held in whole.targets.items()},
    )


def measure_motions(
    model: Model,
    guidances: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int | None = None,
    solver: str | None = None,
    grid: str | None = None,
    data: Path | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, object]]:
    """Yield one row of figures for real motions, then one for each guidance.

    A row holds the values of `MotionScores`, NFE a sample and seconds. Sample k has the conditions
    and the length of the training motion ``k mod N``; the reference of the Fréchet distance are the
    motions that were held out.

    Args:
        model: of motions, with a judge.
        guidances: expressions.
        seeds: one a sample.
        steps, solver, grid: as in `Model.sample`.
        data: folder of the real motions; by default that of the training.
        watch: called with the guidances done and in all.

    Raises:
        ValueError: the model has no judge, its card does not name its data, or nothing was held
            out.
    """
    from ..train.build.classifiers import classifier_column

    if model.judge is None:
        raise ValueError(
            f"the model {model.name!r} has no judge to measure with; train one ([judge] in its "
            "recipe)"
        )
    for guidance in guidances:
        model.expression(guidance)
    recipe, train, aside = real_sources(model, data)
    assert recipe.judge is not None
    column, _ = classifier_column(recipe.judge, train.columns)
    source, other = motions_of(train), motions_of(aside)
    judge = MotionJudge(net=model.judge, data=source, column=column)
    labels = lambda m: torch.as_tensor(m.targets[column])
    reference = judge.run(real_motions(other), labels(other))
    how = {"judge": judge, "body": source.body, "reference": reference}
    real = score_motions(real_motions(source), labels(source), **how)
    yield row_of("real", asdict(real))
    rows = [k % source.size for k in range(len(seeds))]
    every = names_like(source, tuple(recipe.conditions or {}))
    for done, guidance in enumerate(guidances, 1):
        begun, made, nfe = time.perf_counter(), [], 0.0
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            drawn = model.sample(
                [every[k] for k in part],
                guidance=guidance,
                seeds=list(seeds)[start : start + 64],
                steps=steps,
                solver=solver,
                grid=grid,
            )
            made += motions(model, drawn)
            nfe += drawn.nfe * len(part) / len(rows)
        seconds = time.perf_counter() - begun
        scored = score_motions(made, labels(source)[rows], **how)
        yield row_of(guidance, asdict(scored), nfe=nfe, seconds=seconds)
        if watch:
            watch(done, len(guidances))


@torch.no_grad()
def inbetween_error(
    model: Model,
    body: Body,
    numbers: Sequence[Tensor],
    names: Sequence[str],
    known: int,
    *,
    guidance: str = "cfg(1)",
    steps: int = 20,
    times: int = 10,
) -> tuple[float, float]:
    """Return the mean joint error of in-betweening and of linear interpolation, in heights.

    The first and last ``known`` frames are kept; errors are those of the joints at the other
    frames, relative to the ground below the root and its heading (`MotionFormat.local`).

    Args:
        model: of motions.
        body: the skeleton.
        numbers: motions as long as the model's ``[T, C]``, in their units.
        names: the condition of each.
        known: frames at each end.
        guidance, steps: of the sampling, by "ddim".
        times: how often each step is taken (`TimeTravel`), which makes the missing frames agree
            with the known ones.
    """
    count, form = model.shape[0], body.format
    frames = [*range(known), *range(count - known, count)]
    missing = torch.arange(known, count - known)
    share = ((missing - known + 1) / (count - 2 * known + 1))[:, None, None]
    made_errors, line_errors = [], []
    for k, (x, name) in enumerate(zip(numbers, names, strict=True)):
        kept = keep(model, body.to_bvh(x), frames=frames, solver=DDIM())
        solver = TimeTravel(solver=kept, times=times)
        run = {"guidance": guidance, "steps": steps, "grid": "uniform"}
        made = model.sample(name, seeds=[k], solver=solver, **run).images[0]
        true = form.local(x)
        line = torch.lerp(true[known - 1 : known], true[count - known : count - known + 1], share)
        off = lambda y, true=true: float((y - true[missing]).norm(dim=-1).mean()) / form.size
        made_errors.append(off(form.local(made)[missing]))
        line_errors.append(off(line))
    mean = lambda values: sum(values) / len(values)
    return mean(made_errors), mean(line_errors)
