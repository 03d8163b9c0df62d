"""From a teacher to what each stage of a distillation trains."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

from torch import nn

from ...core.levels import Grid, Level, Value
from ...core.prediction import Space
from ...data.source import Source, Targets
from ...diffusers.export import network_of
from ...guidance import Guidance
from ...model.binding import find_scale
from ...model.model import Model
from ...networks.conditional import ConditionalModel
from ...networks.conditions import Conditions
from ...networks.guidance_scale import (
    GuidanceScale,
    ScaledNetwork,
    embedding_width,
)
from ...networks.interval import Interval, IntervalNetwork
from ...networks.low_rank import adapt
from ...networks.network import Network
from ...sampling.grids import GRIDS
from ..objectives.consistency_distillation import ConsistencyDistillation
from ..objectives.distribution_matching import DistributionMatching, Matched
from ..objectives.guided_distillation import GuidedDistillation
from ..objectives.level_distributions import LogitNormal
from ..objectives.objective import Built, Objective
from ..objectives.progressive_distillation import ProgressiveDistillation
from ..objectives.teacher import Batch, Teacher
from ..objectives.trajectory_distillation import TrajectoryDistillation
from ..objectives.velocity_distillation import VelocityDistillation
from ..objectives.weighting import EDM, Uniform
from ..recipe.parts import Training
from .recipe import Distillation, Student
from .smaller import narrower


def conditions_of(model: Model, encoder: object, source: Source) -> Conditions:
    """Return a model's encoder as conditions by the names of the data's columns.

    Raises:
        ValueError: it is not one of ours, or the data have no column for it.
    """
    if encoder is None or isinstance(encoder, Conditions):
        found = encoder or Conditions({})
    elif not (isinstance(encoder, nn.Module) and hasattr(encoder, "rows")):
        raise ValueError(
            f"the conditions of {model.name!r} are those of a Diffusers pipeline; distil the "
            "pipeline itself, into a LoRA (--lora)"
        )
    else:
        kind = (
            "text"
            if hasattr(encoder, "tokenizer")
            else "class"
            if getattr(encoder, "classes", ())
            else "vector"
        )
        names = [name for name, column in source.columns.items() if column.kind == kind]
        if not names:
            raise ValueError(
                f"the teacher {model.name!r} takes a {kind}, and the data have no such column "
                f"(they have {', '.join(source.columns) or 'none'})"
            )
        found = Conditions({names[0]: encoder})
    for name, part in found.parts.items():
        if name not in source.columns:
            raise ValueError(
                f"the teacher {model.name!r} takes the condition {name!r}, which is not a column "
                f"of the data ({', '.join(source.columns) or 'none'})"
            )
        known, given = getattr(part, "classes", ()), source.columns[name].classes
        if known and tuple(known) != tuple(given):
            raise ValueError(
                f"the classes of {name!r} in the data are not those of the teacher: "
                f"{', '.join(given[:4])}, … against {', '.join(known[:4])}, …"
            )
    return found


def teacher_of(model: Model, spec: Student, source: Source) -> Teacher:
    """Return a model with its guidance as a teacher.

    Raises:
        ValueError: the data do not suit it, the guidance is none that a student can learn, or its
            samples are of another shape than the data.
    """
    if tuple(source.shape) != tuple(model.shape):
        raise ValueError(
            f"student.teacher: {model.name!r} makes samples of {list(model.shape)}, and the data "
            f"are of {list(source.shape)}; set data.size, or give the teacher's data"
        )
    if find_scale(model.denoiser) is not None:
        raise ValueError(
            f"student.teacher: {model.name!r} takes its guidance scale as an input, so it is a "
            "student already; distil its teacher"
        )
    if getattr(model.denoiser, "takes_interval", False):
        raise ValueError(
            f"student.teacher: {model.name!r} takes the interval of a step as an input, so it is a "
            "student already; distil its teacher"
        )
    encoder = conditions_of(model, model.encoder, source)
    guidance = spec.guidance or str(model.defaults.get("guidance", "cond"))
    used = {n for term in _parsed(guidance).terms for n in term.traits.nets}
    teacher = Teacher(
        denoiser=model.denoiser,
        encoder=encoder,
        guidance=guidance,
        schedule=model.schedule,
        nets={
            name: (denoiser, conditions_of(model, own, source))
            for name, (denoiser, own) in model.nets.items()
            if name in used
        },
        classifiers=model.classifiers,
        target=next((n for n, p in encoder.parts.items() if hasattr(p, "index")), None),
    )
    teacher.check()
    return teacher


def _parsed(guidance: str) -> Guidance:
    from ...guidance import parse
    from ..objectives.teacher import with_scale

    return parse(with_scale(guidance, 1.0))


def fresh_student(
    teacher: Teacher,
    scale: tuple[float, float] | None,
    default: float,
    rank: int | None = None,
    *,
    interval: bool = False,
    width: float | None = None,
) -> ConditionalModel:
    """Return a copy of a teacher that gives its conditional pass to the bit, whatever the scale and
    the interval.

    Args:
        teacher: whose network and encoder are copied.
        scale: the range of w; None where the student takes none.
        default: the scale that the student uses where none is given.
        rank: of the difference that the network learns; None where it learns every number.
        interval: the network takes the interval of a step.
        width: share of the teacher's channels, of a fresh network in the place of a copy.
    """
    denoiser, encoder = deepcopy((teacher.denoiser, teacher.encoder))
    if not isinstance(denoiser, Network):
        raise ValueError(
            f"the teacher's denoiser is a {type(denoiser).__name__}; only networks wrapped in "
            "guidestar.Network can be copied into a student"
        )
    if width is not None:
        denoiser, encoder = narrower(denoiser, encoder, width)
    net: Any = denoiser.net
    whole: nn.Module = net
    if interval:
        whole = IntervalNetwork(whole, Interval(embedding_width(net)))
    if scale is not None:
        embed = GuidanceScale(embedding_width(net), scale[0], scale[1], default)
        whole = ScaledNetwork(whole, embed)
    denoiser.net = whole
    student = ConditionalModel(denoiser, encoder)
    student.requires_grad_(True)
    if rank is not None:
        adapt(cast(nn.Module, network_of(denoiser)), rank)
    for part in encoder.parts.values():
        if hasattr(part, "text"):
            part.requires_grad_(False)
    return student


def begun_student(fresh: ConditionalModel, begun: Model, source: Source) -> ConditionalModel:
    """Give a fresh student the weights of one that is trained.

    Raises:
        ValueError: it is of another network than the teacher.
    """
    try:
        own = cast(nn.Module, network_of(fresh.denoiser))
        own.load_state_dict(cast(nn.Module, network_of(begun.denoiser)).state_dict())
        fresh.encoder.load_state_dict(conditions_of(begun, begun.encoder, source).state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"student.begin: {begun.name} is no student of this teacher: its network is another; "
            "correct begin"
        ) from error
    return fresh


def build_stage(
    recipe: Distillation,
    stage: str,
    steps: int,
    teacher: Teacher,
    module: ConditionalModel | Matched,
    runs: tuple[Grid, tuple[int, ...]] | None = None,
    grid: Grid | None = None,
) -> Built:
    """Return what a stage trains.

    Args:
        recipe: of the distillation.
        stage: its name.
        steps: of the student's sampling.
        teacher: of this stage: the guided one, or the student before.
        module: the student as it starts.
        runs: of "trajectory": the levels of the teacher's runs, and those that are visited.
        grid: of "matching": the levels of the student's sampling.
    """
    prepared = prepare(module.encoder, teacher)
    if runs is not None:
        return Built(
            module=module,
            objective=TrajectoryDistillation(
                levels=runs[0],
                visits=runs[1],
                first_seed=recipe.student.first_seed,
                dropout=recipe.student.dropout,
                scale=recipe.student.range_of_scale,
            ),
            prepare=lambda targets: {**prepared(targets), "path": targets["path"]},
        )
    if grid is not None:
        return Built(
            module=module,
            objective=DistributionMatching(
                teacher=teacher,
                grid=grid,
                levels=LogitNormal(std=1.5),
                weighting=weighting(teacher),
                lead=round(recipe.student.lead * recipe.student.train.steps),
                through=recipe.student.through,
                dropout=recipe.student.dropout,
            ),
            prepare=prepared,
        )
    return Built(
        module=module,
        objective=_objective(recipe.student, stage, steps, teacher),
        prepare=prepared,
    )


def prepare(encoder: Conditions, teacher: Teacher) -> Callable[[Targets], Batch]:
    """Return what makes a batch's rows and prompts of what is known of it."""
    texts = [n for n, part in encoder.parts.items() if hasattr(part, "tokenizer")]

    def prepared(targets: Targets) -> Batch:
        rows = encoder.rows(targets)
        if not (texts and teacher.classifiers):
            return Batch(rows=rows)
        return Batch(rows=rows, prompts=[str(text) for text in targets[texts[0]]])

    return prepared


def _objective(spec: Student, stage: str, steps: int, teacher: Teacher) -> Objective:
    shared: dict[str, Any] = {
        "teacher": teacher,
        "dropout": spec.dropout,
        "scale": spec.range_of_scale,
    }
    spacing = GRIDS[spec.grid or "uniform"]
    if stage == "guided":
        return GuidedDistillation(
            levels=LogitNormal(std=1.5), weighting=weighting(teacher), **shared
        )
    if stage == "consistency":
        return ConsistencyDistillation(
            spacing=spacing,
            steps=spec.train.steps,
            first=spec.steps,
            last=spec.finest,
            **shared,
        )
    if stage == "meanflow":
        return VelocityDistillation(grid=spacing(teacher.schedule, spec.finest), **shared)
    return ProgressiveDistillation(
        grid=spacing(teacher.schedule, steps),
        walked=spacing(teacher.schedule, 2 * steps),
        weighting=spec.weighting,
        **shared,
    )


def weighting(teacher: Teacher) -> Callable[[Level], Value]:
    """Return the weighting of a guided student: uniform in what its network predicts."""
    denoiser = teacher.denoiser
    if not isinstance(denoiser, Network):
        return Uniform()
    if denoiser.predicts == "edm":
        return EDM(sigma_data=denoiser.sigma_data)
    return Uniform(space=cast(Space, denoiser.predicts))


def training(spec: Student, stage: str) -> Training:
    """Return how long and how fast a stage trains."""
    return spec.first if stage == "guided" and spec.first is not None else spec.train


def as_teacher(module: ConditionalModel, before: Teacher, *, takes_scale: bool) -> Teacher:
    """Return a trained student as the teacher of the next stage: its one pass."""
    module.requires_grad_(False).eval()
    return Teacher(
        denoiser=module.denoiser,
        encoder=module.encoder,
        guidance="cond",
        schedule=before.schedule,
        is_student=takes_scale,
    )


def default_scale(spec: Student, model: Model) -> float:
    """Return the scale a student uses where none is given: the teacher's own, or the middle."""
    low, high = spec.scale or (1.0, 1.0)
    own = [
        float(term.scale)
        for term in model.expression(None).terms
        if term.name == "cfg" and isinstance(term.scale, int | float)
    ]
    return min(max(own[0], low), high) if own else (low + high) / 2
