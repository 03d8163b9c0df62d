"""Run a distillation: its stages one after the other, each from its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ...core.levels import Grid
from ...data.paths import Paths
from ...data.source import Source
from ...diffusers.export import network_of
from ...io.files import make_folder
from ...model.folder import load
from ...model.model import Model
from ...networks.conditional import ConditionalModel
from ...networks.cpu_fastpath import lay_out, plain_attention
from ...networks.low_rank import digest
from ..loop.checkpoints import read_checkpoint
from ..loop.ema import EMA
from ..loop.fit import fit
from ..loop.lock import locked
from ..loop.memory import activations, training_memory
from ..loop.origins import of_tensors
from ..loop.signals import Stop
from ..loop.trainer import Trainer
from ..objectives.distribution_matching import Matched
from ..objectives.objective import Progress, TrainSettings, profiles
from ..objectives.teacher import Teacher
from ..progress import Reporter
from ..snapshots import checkpoint
from .data import student_source
from .paths import SHARD, blank_paths, choose_visits, make_paths, path_grid
from .recipe import Distillation, Student
from .stages import (
    as_teacher,
    begun_student,
    build_stage,
    default_scale,
    fresh_student,
    teacher_of,
    training,
)

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A distillation with its teacher and data read.

    Args:
        recipe: what is learned.
        model: the teacher's whole model.
        teacher: with its guidance.
        source: the data.
        digest: of the teacher's weights.
        begun: the student that "matching" mends.
    """

    recipe: Distillation
    model: Model
    teacher: Teacher
    source: Source
    digest: str
    begun: Model | None = None


def read_lesson(recipe: Distillation, say: Callable[[str], None] | None = None) -> Lesson:
    """Read the teacher and the data of a distillation, and check that they go together.

    Raises:
        ValueError: there is no such teacher, the data are not its own, or its guidance cannot be
            learned.
    """
    model = load(recipe.student.teacher)
    source = student_source(recipe, model, say)
    teacher = teacher_of(model, recipe.student, source)
    networks: Any = {"main": (teacher.denoiser, teacher.encoder), **teacher.nets}
    tensors = {
        f"{name}.{i}.{key}": t
        for name, pair in networks.items()
        for i, module in enumerate(pair)
        for key, t in module.state_dict().items()
    }
    return Lesson(
        recipe=recipe,
        model=model,
        teacher=teacher,
        source=source,
        digest=of_tensors(tensors),
        begun=_begun(recipe.student),
    )


def _begun(spec: Student) -> Model | None:
    """Load the student that "matching" mends.

    Raises:
        ValueError: there is none, or it is not for DDIM in as many steps.
    """
    if spec.begin is None:
        return None
    begun = load(spec.begin)
    steps, solver = begun.defaults.get("steps"), begun.defaults.get("solver")
    if (steps, solver) != (spec.steps, "ddim"):
        raise ValueError(
            f"student.begin: it must be a student of {spec.steps} steps of ddim, and {spec.begin} "
            f"is of {steps} steps of {solver}; correct steps or begin"
        )
    return begun


def stage_settings(recipe: Distillation, index: int) -> TrainSettings:
    """Return how long and how fast the ``index``-th stage trains, and its seed."""
    stage = recipe.student.stages()[index][0]
    return TrainSettings(**training(recipe.student, stage).model_dump(), seed=recipe.seed + index)


def made_from(lesson: Lesson, index: int) -> dict[str, object]:
    """Return all that shapes the weights of a stage, by name."""
    student = lesson.recipe.student.model_dump(mode="json", exclude={"train", "first", "teacher"})
    drawn = {} if student["scale"] is None else {"draws of the scale": "logarithmic"}
    return {
        **{f"student.{key}": value for key, value in student.items()},
        **drawn,
        "guidance": lesson.teacher.guidance,
        "stage": lesson.recipe.student.stages()[index][0],
        "teacher (its weights)": lesson.digest,
        "begin (its weights)": None if lesson.begun is None else digest(_net(lesson.begun)),
        "earlier stages": [
            training(lesson.recipe.student, stage).model_dump(mode="json")
            for stage, _ in lesson.recipe.student.stages()[:index]
        ],
    }


def _net(model: Model) -> torch.nn.Module:
    return cast(torch.nn.Module, network_of(model.denoiser))


def student_of(
    lesson: Lesson, index: int, out: Path | None
) -> tuple[ConditionalModel | Matched, Teacher]:
    """Return the student of a stage as it starts, and the teacher of that stage."""
    spec = lesson.recipe.student
    scale = spec.range_of_scale
    torch.manual_seed(lesson.recipe.seed + index)
    fresh = _fresh(lesson)
    if lesson.begun is not None:
        fake = deepcopy(fresh)
        return Matched(begun_student(fresh, lesson.begun, lesson.source), fake), lesson.teacher
    if index == 0 or out is None:
        return fresh, lesson.teacher
    trained = finished_stage(lesson, index - 1, out)
    fresh.load_state_dict(trained.state_dict())
    if spec.method == "trajectory":
        return fresh, lesson.teacher
    return fresh, as_teacher(trained, lesson.teacher, takes_scale=scale is not None)


def _fresh(lesson: Lesson) -> ConditionalModel:
    spec = lesson.recipe.student
    return fresh_student(
        lesson.teacher,
        spec.range_of_scale,
        default_scale(spec, lesson.model),
        spec.rank,
        interval=spec.method == "meanflow",
        width=spec.width,
    )


def finished_stage(lesson: Lesson, index: int, out: Path) -> ConditionalModel:
    """Return the averaged weights of a stage that was trained to its end.

    Raises:
        ValueError: it was not.
    """
    stage, _ = lesson.recipe.student.stages()[index]
    file = checkpoint(out, stage)
    if not file.is_file():
        raise ValueError(f"{out} holds no trained stage {stage!r} yet; run the same command again")
    state, settings = read_checkpoint(file), stage_settings(lesson.recipe, index)
    if state["done"] < settings.steps:
        raise ValueError(
            f"the stage {stage!r} is trained for {state['done']} of its {settings.steps} steps; "
            "run the same command again"
        )
    module: Any = _fresh(lesson)
    if lesson.begun is not None:
        module = Matched(module, deepcopy(module))
    module.load_state_dict(state["module"])
    ema = EMA(module, profiles(settings)[0])
    ema.load_state_dict(next(iter(state["averages"].values())))
    module.load_state_dict(ema.weights(), strict=False)
    trained = module.student if isinstance(module, Matched) else module
    return trained.requires_grad_(False).eval()


def distill(
    recipe: Distillation,
    out: Path,
    report: Reporter | None = None,
    *,
    stop: Stop | None = None,
    say: Callable[[str], None] | None = None,
) -> Lesson | None:
    """Train the stages of a distillation under ``out``; each goes on from its checkpoint.

    Args:
        recipe: what is learned.
        out: folder of checkpoints.
        report: called after each step with the stage, its progress and its steps.
        stop: where it was set, the training stops after a step, saved.
        say: called with warnings about the data.

    Returns:
        The lesson, or None where it was stopped before its end.

    Raises:
        ValueError: teacher, data and guidance do not go together, or a checkpoint is damaged or of
            another distillation.
        OSError: ``out`` cannot be written to.
        NotFinite: a loss stopped being a number.
        Locked: another training works in ``out``.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    with locked(make_folder(out)) if accelerator.is_main_process else nullcontext():
        with accelerator.main_process_first():
            lesson = read_lesson(recipe, say)
        paths = None
        if recipe.student.method == "trajectory":
            _move(lesson.teacher, accelerator.device)
            with accelerator.main_process_first():
                say_progress = report if accelerator.is_main_process else None
                paths = make_paths(
                    lesson, out, device=accelerator.device, stop=stop, report=say_progress
                )
            if paths is None:
                return None
        for index, (stage, _) in enumerate(recipe.student.stages()):
            steps = stage_settings(recipe, index).steps
            with closing(_train_stage(lesson, index, out, accelerator, stop, paths)) as progresses:
                for progress in progresses:
                    if report and accelerator.is_main_process:
                        report(stage, progress, steps)
            if stop is not None and stop.agreed:
                return None
            accelerator.wait_for_everyone()
    return lesson


def student_grid(lesson: Lesson) -> Grid | None:
    """Return the levels of the sampling of a student that "matching" mends."""
    return None if lesson.begun is None else lesson.begun.grid()


def runs_of(lesson: Lesson, index: int, paths: Paths) -> tuple[Grid, tuple[int, ...]]:
    """Return the levels of a teacher's runs, and those that the student of a stage visits."""
    spec, grid = lesson.recipe.student, path_grid(lesson)
    stages = spec.stages()
    if spec.visits is not None and index % len(stages) == len(stages) - 1:
        return grid, spec.visits
    return grid, choose_visits(paths.states[:SHARD], grid, stages[index][1])


def _train_stage(
    lesson: Lesson,
    index: int,
    out: Path,
    accelerator: Accelerator,
    stop: Stop | None,
    paths: Paths | None,
) -> Generator[Progress, None, None]:
    recipe = lesson.recipe
    stage, steps = recipe.student.stages()[index]
    module, teacher = student_of(lesson, index, out)
    runs = None if paths is None else runs_of(lesson, index, paths)
    built = build_stage(recipe, stage, steps, teacher, module, runs, student_grid(lesson))
    if accelerator.device.type == "cpu":
        _suit_cpu_training(module)
    trainer = Trainer(
        built.module,
        built.objective,
        paths or lesson.source,
        stage_settings(recipe, index),
        made_from(lesson, index),
        prepare=built.prepare,
        accelerator=accelerator,
    )
    _move(teacher, accelerator.device)
    kept = {"every": recipe.checkpoint_seconds, "keep": recipe.keep_checkpoints}
    with closing(fit(trainer, checkpoint(out, stage), stop=stop, **kept)) as progresses:
        yield from progresses


def _suit_cpu_training(module: torch.nn.Module) -> None:
    """Lay a network out as its backward pass is fastest on a CPU.

    With weights channels last, as sampling has them, and fused attention, a training step of the
    shipped network took 1.1 of the time in bfloat16.
    """
    lay_out(module, torch.contiguous_format)
    if next(module.parameters()).dtype != torch.float64:
        plain_attention(module)


def _move(teacher: Teacher, device: torch.device) -> None:
    pairs = [(teacher.denoiser, teacher.encoder), *teacher.nets.values()]
    for module in [*(m for pair in pairs for m in pair), *teacher.classifiers.values()]:
        if isinstance(module, torch.nn.Module):
            module.to(device)


def plan_distillation(recipe: Distillation, say: Callable[[str], None] | None = None) -> list[str]:
    """Tell in lines what a distillation would do and cost, without training anything."""
    lesson = read_lesson(recipe, say)
    count = "a stream" if lesson.source.size is None else f"{lesson.source.size:,} samples"
    lines = [
        f"teacher: {lesson.model.name}, guided by {lesson.teacher.guidance}",
        f"data: {count} of {list(lesson.source.shape)}",
    ]
    module, teacher = student_of(lesson, 0, None)
    spec, source = recipe.student, lesson.source
    if spec.method == "trajectory":
        source = blank_paths(lesson)
        walk = f"{spec.start} steps of {spec.walker(lesson.model)} on {spec.spacing(lesson.model)}"
        lines.append(f"paths: {spec.paths:,} runs of the teacher, {walk}")
    for index, (stage, steps) in enumerate(recipe.student.stages()):
        runs = runs_of(lesson, index, source) if isinstance(source, Paths) else None
        built = build_stage(recipe, stage, steps, teacher, module, runs, student_grid(lesson))
        settings = stage_settings(recipe, index)
        held = training_memory(built.module, settings, source.shape)
        each = activations(built, source)
        total = sum(held.values()) + -(-settings.batch // settings.accumulate) * each
        sampled = "any number of steps" if stage == "guided" else f"{steps} steps"
        lines.append(
            f"{stage}: {sum(p.numel() for p in built.module.parameters()):,} parameters, for "
            f"{sampled}; {settings.steps:,} training steps of {settings.batch}; about "
            f"{total:,.0f} MB of memory in one process"
        )
    return lines
