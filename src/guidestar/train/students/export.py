"""From a finished distillation to a model folder that samples in few evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ...core.levels import Grid
from ...data.identity import identify
from ...data.paths import Paths
from ...diffusers.export import describe_pipeline, network_of
from ...io.documents import JSONObject
from ...model.card import write_card
from ...model.fitted import FITTED
from ...model.folder_writing import save
from ...model.model import Model
from ...networks.low_rank import DIFFERENCE, difference, merge, write_difference
from ..export import machine
from ..loop.checkpoints import read_checkpoint
from ..objectives.objective import profiles
from ..snapshots import checkpoint
from .data import data_of
from .paths import make_paths
from .run import Lesson, finished_stage, runs_of, stage_settings, student_grid
from .stages import training

_SOLVERS = {
    "guided": None,
    "trajectory": "ddim",
    "progressive": "ddim",
    "consistency": "consistency",
    "meanflow": "meanflow",
    "matching": "ddim",
}
"""The solver that each kind of student is for; None: the teacher's."""


def assemble_student(
    lesson: Lesson, out: Path, *, command: str = "guidestar distill", index: int = -1
) -> Model:
    """Make a model of a finished distillation and write it to ``out / recipe.name``.

    An earlier stage (``index``) goes to ``recipe.name-STEPS``.

    It has the teacher's schedule, decoder, classifiers and judge. Its defaults are one pass a
    step (``cond``), and the steps, grid and solver that it was trained for.

    Raises:
        ValueError: a stage is not trained to its end.
        OSError: the folder cannot be written.
    """
    recipe, teacher = lesson.recipe, lesson.model
    spec, stages = recipe.student, recipe.student.stages()
    index %= len(stages)
    steps, last = stages[index][1], index == len(stages) - 1
    module: Any = finished_stage(lesson, index, out)
    few = None if spec.rank is None else low_rank_of(module, lesson)
    solver = _SOLVERS[spec.method]
    encoder = module.encoder.alone()
    about = _about(lesson, out, command, index)
    if spec.method == "trajectory":
        paths = make_paths(lesson, out)
        grid, visits = runs_of(lesson, index, cast(Paths, paths))
        about = {**about, "grids": {str(steps): [float(grid[i].rho) for i in visits]}}
    if lesson.begun is not None:
        levels = cast(Grid, student_grid(lesson))
        about = {**about, "grids": {str(steps): [float(level.rho) for level in levels]}}
    model = Model(
        name=recipe.name if last else f"{recipe.name}-{steps}",
        denoiser=module.denoiser,
        schedule=teacher.schedule,
        shape=teacher.shape,
        encoder=encoder,
        decode=teacher.decode,
        classifiers=dict(teacher.classifiers),
        judge=teacher.judge,
        defaults={**teacher.defaults, "guidance": "cond" if encoder is not None else "uncond"},
        card=about,
    )
    if solver is not None:
        fitted = "grids" in about
        grid_name = FITTED if fitted else spec.spacing(teacher)
        model.defaults |= {"steps": steps, "grid": grid_name, "solver": solver}
    folder = out / model.name
    save(model, folder)
    if few is not None:
        write_difference(few, network_of(teacher.denoiser), folder / DIFFERENCE)
    write_card(
        model.name,
        {**model.card, "defaults": model.defaults, "diffusers": describe_pipeline(model)},
        folder,
    )
    return model


def low_rank_of(module: Any, lesson: Lesson) -> dict[str, Tensor]:
    """Return the difference of a student's network to its teacher's, and make it a plain one."""
    net = cast(nn.Module, network_of(module.denoiser))
    found = difference(net, cast(nn.Module, network_of(lesson.model.denoiser)))
    merge(net)
    return found


def _about(lesson: Lesson, out: Path, command: str, index: int) -> JSONObject:
    recipe, card = lesson.recipe, lesson.model.card
    spec, stages = recipe.student, recipe.student.stages()[: index + 1]
    states = [read_checkpoint(checkpoint(out, stage)) for stage, _ in stages]
    scale = "" if spec.scale is None else f" for w in [{spec.scale[0]:g}, {spec.scale[1]:g}]"
    few = "" if spec.method == "guided" else f", in {stages[-1][1]} steps"
    kept = ("scheduler", "schedule", "scale", "shape", "data", "captions", "data_scale")
    return {
        **{key: card[key] for key in kept if key in card},
        "summary": recipe.summary
        or f"a student of {lesson.model.name}: {lesson.teacher.guidance}{scale} in one pass{few}",
        "licence": recipe.licence or card.get("licence", "unknown"),
        "data_identity": identify(lesson.source),
        "averages": [profiles(stage_settings(recipe, index))[0].name],
        "command": command,
        "machine": machine(),
        "parameters": {
            stage: sum(t.numel() for t in state["module"].values())
            for (stage, _), state in zip(stages, states, strict=True)
        },
        "recipe": {
            **{
                stage: {"train": training(spec, stage).model_dump(mode="json")}
                for stage, _ in stages
            },
            "data": data_of(recipe, lesson.model).model_dump(mode="json", exclude_none=True),
        },
        "seconds": {
            stage: round(state["seconds"]) for (stage, _), state in zip(stages, states, strict=True)
        },
        "loss": {
            stage: round(state["loss"], 6) for (stage, _), state in zip(stages, states, strict=True)
        },
        "student": {
            "teacher": lesson.model.name,
            "guidance": lesson.teacher.guidance,
            "scale": None if spec.scale is None else list(spec.scale),
            "method": spec.method,
            "stages": [stage for stage, _ in stages],
        },
        "distillation": recipe.model_dump(mode="json", exclude_none=True),
    }
