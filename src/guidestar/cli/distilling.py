"""The command that distils: students in one pass a step, and in few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..io.documents import JSONObject
from ._completion import model_names
from ._options import GuidanceOption, Out, parse_scales
from ._terminal import fail, naming_recipe, warn


def distill(
    teacher: Annotated[
        str,
        typer.Argument(
            help="A shipped model, a folder, or a recipe with a table [student].",
            autocompletion=model_names,
        ),
    ],
    guidance: GuidanceOption = None,
    scale: Annotated[
        str | None,
        typer.Option("--scale", help="Smallest and largest w of the guidance, e.g. 1,5."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="trajectory, progressive, guided (one pass, as many steps), consistency, "
            "meanflow (steps of any length) or matching (mends a student of few steps, --begin)."
        ),
    ] = None,
    begin: Annotated[
        str | None,
        typer.Option(help="The student that matching mends, by name or folder."),
    ] = None,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--steps", min=1, help="Steps of the student's sampling (4)."),
    ] = None,
    start: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=2,
            help="Steps of the teacher: of progressive (4 times --steps), of trajectory (10, or "
            "twice --steps).",
        ),
    ] = None,
    train_steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Training steps of each stage (1000)."),
    ] = None,
    paths: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Runs of the teacher, of trajectory (4096)."),
    ] = None,
    batch: Annotated[Optional[int], typer.Option(min=1, help="Samples a training step.")] = None,  # noqa: UP045
    rate: Annotated[Optional[float], typer.Option(help="Learning rate.")] = None,  # noqa: UP045
    rank: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1,
            help="The student differs from its teacher by matrices of this rank, so that its file "
            "is small.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder or file of data to noise; by default the teacher's."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the student's folder.")] = None,
    seed: Annotated[Optional[int], typer.Option(min=0, help="Seed of the training.")] = None,  # noqa: UP045
    lora: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Rank: train a LoRA of a Diffusers pipeline in its place."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts for --lora, one a line.")
    ] = None,
    samples: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Samples of the pipeline that --lora is trained on (64)."),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            help="Also keep the student in its teacher's folder under this name, e.g. 4-step.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be trained, and train nothing.")
    ] = False,
    out: Out = Path("out/distill"),
) -> None:
    """Distil a model with its guidance into a student of one pass a step, in few steps.

    It goes on where it was stopped, and writes the student's folder.
    """
    from ..io.files import make_folder
    from ..model.shipped import home_of
    from ..model.variants import check_variant
    from ..train.students.recipe import is_distillation, read_distillation
    from ..train.students.run import plan_distillation

    given = {
        "guidance": guidance,
        "scale": None if scale is None else _range(scale),
        "method": method,
        "begin": begin,
        "steps": steps,
        "start": start,
        "train_steps": train_steps,
        "paths": paths,
        "batch": batch,
        "rate": rate,
        "rank": rank,
        "data": data,
        "name": name,
        "seed": seed,
    }
    if lora is not None:
        if variant is not None:
            raise ValueError("--variant does not go with --lora; leave it out")
        _distil_lora(teacher, given, lora, prompts, samples or 64, out)
        return
    if prompts is not None or samples is not None:
        raise ValueError("--prompts and --samples are for --lora; give a rank, e.g. --lora 16")
    if teacher.endswith(".toml") and Path(teacher).is_file():
        strange = [key for key, value in given.items() if value is not None]
        if strange:
            raise ValueError(
                f"{teacher} is a recipe, which says everything; leave "
                f"--{strange[0].replace('_', '-')} out, or change the recipe"
            )
        if not is_distillation(Path(teacher)):
            raise ValueError(f"{teacher} has no table [student]; train it: guidestar train")
        recipe: Any = read_distillation(teacher)
    else:
        recipe = _recipe(teacher, given)
    if variant is not None:
        check_variant(home_of(recipe.student.teacher), variant)
    make_folder(out)
    with naming_recipe(teacher if teacher.endswith(".toml") else "guidestar distill"):
        if dry_run:
            typer.echo("\n".join(plan_distillation(recipe, warn)))
        else:
            _distill(recipe, teacher, out, variant)


def _range(text: str) -> list[float]:
    """Read the smallest and largest scale.

    Raises:
        ValueError: they are not two numbers.
    """
    found = list(parse_scales(text))
    if len(found) != 2:
        raise ValueError(f"--scale {text!r}: write the smallest and largest w, e.g. 1,5")
    return found


def _recipe(teacher: str, given: JSONObject) -> Any:
    """Return the distillation that the options describe."""
    from ..train.students.recipe import checked_distillation

    steps = given["steps"] or 4
    method = given["method"] or "trajectory"
    train = {
        "steps": given["train_steps"] or 1000,
        "batch": given["batch"] or 64,
        "rate": given["rate"] or 3e-4,
        "warmup": 50,
        "decay": 0.995,
    }
    student: JSONObject = {
        "teacher": teacher,
        "guidance": given["guidance"],
        "scale": given["scale"],
        "method": method,
        "begin": given["begin"],
        "steps": steps,
        "start": given["start"] or (max(10, 2 * steps) if method == "trajectory" else 4 * steps),
        "paths": given["paths"],
        "rank": given["rank"],
        "train": train,
    }
    kinds = {} if given["data"] is None else {"data": _data(given["data"])}
    folder = Path(teacher).name or "model"
    return checked_distillation(
        {
            "name": given["name"] or f"{folder}-student",
            "seed": given["seed"] or 0,
            "student": {key: value for key, value in student.items() if value is not None},
            **kinds,
        },
        "guidestar distill",
    )


_NOT_FOR_LORA = ("scale", "method", "begin", "steps", "start", "paths", "rank", "data", "name")


def _distil_lora(
    teacher: str, given: JSONObject, rank: int, prompts: Path | None, samples: int, out: Path
) -> None:
    from ..apps.measure_text import read_prompts
    from ..train.loop.signals import Stop, stop_on_signals
    from ..train.objectives.objective import TrainSettings
    from ..train.progress import progress_report
    from ..train.students.lora import LoRA, distil_lora

    strange = [key for key in _NOT_FOR_LORA if given[key] is not None]
    if strange:
        raise ValueError(f"--{strange[0]} does not go with --lora; leave it out")
    if prompts is None:
        raise ValueError("--lora needs --prompts, a file of prompts, one a line")
    if given["guidance"] is None:
        raise ValueError('--lora needs --guidance, e.g. "cfg(7) + pag(3) | rescale(0.7)"')
    train = TrainSettings(
        steps=given["train_steps"] or 1000,
        batch=given["batch"] or 4,
        rate=given["rate"] or 1e-4,
        warmup=20,
        decay=0.99,
        seed=given["seed"] or 0,
    )
    spec = LoRA(
        teacher=teacher,
        guidance=given["guidance"],
        prompts=tuple(read_prompts(prompts)),
        rank=rank,
        samples=samples,
        train=train,
        seed=given["seed"] or 0,
    )
    with stop_on_signals(Stop()) as stop, progress_report() as report:
        file = distil_lora(spec, out, report, stop=stop)
    if file is None:
        fail(f"stopped; what was trained is saved in {out}, and the same command goes on", 130)
    else:
        typer.echo(f"{file}; in Diffusers: pipe.load_lora_weights({str(out)!r}), guidance_scale=1")


def _data(path: Path) -> JSONObject:
    from ..train.recipe.propose import kind_of

    return {"kind": kind_of(path), "path": str(path)}


def _distill(recipe: Any, teacher: str, out: Path, variant: str | None) -> None:
    import torch
    from accelerate import PartialState

    from ..model.shipped import home_of
    from ..model.variants import keep_variant
    from ..train.loop.signals import Stop, stop_on_signals
    from ..train.progress import progress_report
    from ..train.students.export import assemble_student
    from ..train.students.run import distill as run

    main = PartialState(cpu=not torch.cuda.is_available()).is_main_process
    with stop_on_signals(Stop()) as stop, progress_report() as report:
        lesson = run(recipe, out, report, stop=stop, say=warn)
    if lesson is None:
        fail(f"stopped; what was trained is saved in {out}, and the same command goes on", 130)
    elif main:
        command, stages = f"guidestar distill {teacher}", recipe.student.stages()
        for index in range(len(stages) - 1):
            before = assemble_student(lesson, out, command=command, index=index)
            typer.echo(f"a student on the way is in {out / before.name}")
        model = assemble_student(lesson, out, command=command)
        cond = " --cond all" if model.classes else ""
        place, use = out / recipe.name, f"{out / recipe.name}"
        if variant is not None:
            place = keep_variant(home_of(recipe.student.teacher), place, variant)
            use = f"{recipe.student.teacher} --variant {variant}"
        typer.echo(f"the student is in {place}; try: guidestar sample {use}{cond} --grid")
