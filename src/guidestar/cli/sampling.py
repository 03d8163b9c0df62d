"""Commands that sample: demo, sample, strip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ._completion import model_names
from ._options import (
    Average,
    GridName,
    GuidanceFile,
    GuidanceOption,
    Negative,
    Observe,
    Operator,
    Out,
    ScaleOption,
    SolverName,
    Steps,
    Trust,
    Variant,
    check_run,
    parse_scales,
    with_file,
)
from ._terminal import show_progress
from .motions import (
    AnimationOption,
    KeepFrames,
    KeepJoints,
    KeepOption,
    LengthOption,
    OverlapOption,
    keeping,
    of_length,
)
from .results import warn_of_differences, write_grid, write_results
from .upscaling import StageOption, parse_stages

if TYPE_CHECKING:
    from ..model.cascade import Cascade
    from ..model.cascade_stages import CascadeSamples
    from ..model.model import Model, Watch
    from ..model.samples import Carried
    from ..model.streaming import Batches


def sample(
    model: Annotated[
        str | None,
        typer.Argument(help="A shipped model or a folder.", autocompletion=model_names),
    ] = None,
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts, for a text model.")] = None,
    cond: Annotated[
        list[str] | None,
        typer.Option(
            "--cond",
            help="Class name or index (or prompt); several times for several; 'all' for every "
            "class.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--prompts", help="A file of prompts, one a line.")
    ] = None,
    num: Annotated[
        int | None, typer.Option(min=1, max=10_000_000, help="Samples of each condition (1).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the first sample (0); the others follow.")
    ] = None,
    guidance: GuidanceOption = None,
    guidance_file: GuidanceFile = None,
    negative: Negative = None,
    scale: ScaleOption = None,
    steps: Steps = None,
    solver: SolverName = None,
    levels: GridName = None,
    max_rows: Annotated[
        int | None, typer.Option(min=1, help="Most rows of one network call.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images that are sampled at once (32).")
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Also write a contact sheet.")] = False,
    like: Annotated[
        Path | None, typer.Option(help="Repeat the run of this PNG, bit for bit.")
    ] = None,
    observe: Observe = None,
    operator: Operator = None,
    stage: StageOption = None,
    length: LengthOption = None,
    overlap: OverlapOption = None,
    keep: KeepOption = None,
    keep_frames: KeepFrames = None,
    keep_joints: KeepJoints = None,
    animation: AnimationOption = "webp",
    average: Average = None,
    variant: Variant = None,
    trust: Trust = False,
    out: Out = Path("out/samples"),
) -> None:
    """Sample images, as PNG files that carry their run; sequences and vectors as
    samples.safetensors and curves.png; motions as an animation, BVH and NPZ files too.

    Images are written as they are made. The same command goes on where a run was stopped.
    """
    from dataclasses import replace

    from ..apps.observe import read_observation
    from ..io import distributed as processes
    from ..io.files import make_folder
    from ..model.cascade import Cascade
    from ..model.loading import load
    from ..model.streaming import BATCH, Batches
    from ..sampling import grid_of

    new = {
        "prompts": prompts,
        "--cond": cond,
        "--prompts": file,
        "--num": num,
        "--seed": seed,
        "--guidance": guidance,
    }
    new |= {
        "--guidance-file": guidance_file,
        "--negative": negative,
        "--steps": steps,
        "--solver": solver,
        "--levels": levels,
    }
    new |= {
        "--scale": scale,
        "--max-rows": max_rows,
        "--batch": batch,
        "--observe": observe,
        "--operator": operator,
        "--stage": stage,
        "--length": length,
        "--overlap": overlap,
        "--keep": keep,
    }
    if like and (given := [name for name, value in new.items() if value is not None]):
        raise ValueError(f"--like repeats a run as it was; leave {', '.join(given)} out")
    given_run = with_file(
        guidance_file, guidance=guidance, negative=negative, steps=steps, solver=solver, grid=levels
    )
    parsed = check_run(given_run["guidance"], given_run["solver"], given_run["grid"])
    settings = _settings_of(like)
    make_folder(out)
    stages = parse_stages(stage)
    name = _model_name(model, settings)
    chosen = cast("Model | Cascade", load(name, average=average, variant=variant, trust=trust))
    conditions = [*(cond or []), *(prompts or []), *_prompts_of(file)]
    if isinstance(chosen, Cascade):
        if observe or length or keep:
            what = "--observe" if observe else "--length" if length else "--keep"
            raise ValueError(f"{chosen.name!r} is a cascade; {what} is for one model alone")
        names = _conditions(chosen, conditions, num or 1)
        count = len(names) if names else num or 1

        def make(part: slice, watch: Watch) -> CascadeSamples:
            return chosen.sample(
                names and names[part],
                seeds=[(seed or 0) + i for i in range(count)][part],
                stages=stages,
                **{**given_run, "guidance": parsed},
                max_rows=max_rows,
                watch=watch,
            )

        size = batch or BATCH
        parts = [slice(start, start + size) for start in range(0, count, size)]
        _sample_cascade(chosen, settings, [] if settings else parts, make, out, grid)
        return
    _refuse_stages(chosen, stages)
    if settings is not None:
        _repeat(chosen, settings, out, grid, animation)
        return
    num, seed = 1 if num is None else num, 0 if seed is None else seed
    names = _conditions(chosen, conditions, num)
    chosen, names = of_length(chosen, names, num, length, overlap)
    spacing = given_run["grid"] or ("uniform" if keep else None) or grid_of(given_run["solver"])
    expression = chosen.expression(
        parsed, conditional=bool(names), steps=given_run["steps"], grid=spacing
    )
    observed = read_observation(chosen, expression, observe, operator)
    each = len(names) if names else num
    shown = None if observed is None or isinstance(observed.y, float | int) else observed.y
    rows = processes.own_indices(each if shown is None else each * len(shown))
    if not rows:
        raise ValueError("there are more processes than samples; launch fewer")
    request = chosen.request(
        [names[i % each] for i in rows] if names else None,
        guidance=expression,
        seeds=[seed + i for i in rows],
        negative=given_run["negative"],
        scale=_scales(scale, rows),
        steps=given_run["steps"],
        solver=keeping(chosen, keep, keep_frames, keep_joints, given_run["solver"]),
        grid=given_run["grid"] or ("uniform" if keep else None),
        max_rows=max_rows,
    )
    job = Batches(
        model=chosen,
        request=request,
        numbers=rows,
        losses=lambda numbers: (
            None
            if observed is None or shown is None
            else {"loss": replace(observed, y=shown[[i // each for i in numbers]])}
        ),
        batch=batch or BATCH,
    )
    _run(job, out, grid, animation)


def _settings_of(picture: Path | None) -> Carried | None:
    """Read the run of a picture, whose methods must be known here."""
    from ..io.images import read_settings
    from ..model.samples import check_registered

    if picture is None:
        return None
    settings = read_settings(picture)
    check_registered(settings)
    return settings


def _sample_cascade(
    cascade: Cascade,
    settings: Carried | None,
    parts: Sequence[slice],
    make: Callable[[slice, Watch], CascadeSamples],
    out: Path,
    grid: bool,
) -> None:
    """Sample a cascade in parts, or repeat the run of a picture, and write the pictures."""
    paths, nfe = [], 0.0
    with show_progress("sampling") as watch:
        if settings is not None:
            made = cascade.again(settings, watch)
            first = int(settings.get("number", 0)) - int(settings.get("index", 0))
            paths, nfe = made.save(out, first), made.nfe
        for part in parts:
            made = make(part, watch)
            paths, nfe = paths + made.save(out, part.start), made.nfe
    if grid:
        write_grid(out, paths)
    typer.echo(f"{len(paths)} images in {out}, NFE {nfe:g} over all stages")


def _repeat(model: Model, settings: Carried, out: Path, grid: bool, animation: str) -> None:
    """Repeat the run of a picture, and write what it gives."""
    from ..model.streaming import again_to_folder

    with show_progress("sampling") as watch:
        samples = (
            again_to_folder(model, settings, out, watch)
            if _makes_pictures(model)
            else model.again(settings, watch)
        )
    warn_of_differences(settings, samples.settings)
    write_results(model, samples, out, grid, animation=animation)


def _run(job: Batches, out: Path, grid: bool, animation: str) -> None:
    """Sample, and write what it gives: pictures as they are made, all else at the end."""
    from ..io import distributed as processes
    from ..model.streaming import sample_to_folder

    if not _makes_pictures(job.model):
        with show_progress("sampling") as watch:
            samples = job.model.run(job.part(slice(None)), watch=watch)
        write_results(job.model, samples, out, grid, job.numbers, animation)
        return
    with show_progress("sampling") as watch:
        done = sample_to_folder(job, out, watch)
    total = processes.count(len(done.paths))
    if processes.is_main():
        if grid:
            write_grid(out, [p for p in sorted(out.glob("*.png")) if p.name[:4].isdecimal()])
        before = f" ({done.kept} were there already)" if done.kept else ""
        typer.echo(f"{total} images in {out}{before}: {done.guidance}, NFE {done.evaluations:g}")


def _refuse_stages(model: Model, stages: object) -> None:
    if stages:
        raise ValueError(f"{model.name!r} is one model and has no stages; leave --stage out")


def _scales(text: str | None, rows: list[int]) -> tuple[float, ...] | None:
    """Return the scales of these rows of all samples: one for all of them, or one each."""
    if text is None:
        return None
    scales = parse_scales(text)
    if len(scales) == 1:
        return scales
    if len(scales) <= max(rows):
        raise ValueError(
            f"--scale has {len(scales)} numbers for {max(rows) + 1} samples; give one, or one each"
        )
    return tuple(scales[i] for i in rows)


def _makes_pictures(model: Model) -> bool:
    """Return whether a model's samples are pictures (or become some, through its decoder)."""
    return model.latent or (len(model.shape) == 3 and model.shape[0] in (1, 3))


def _model_name(model: str | None, settings: Carried | None) -> str:
    name = model or (settings or {}).get("model")
    if model is None and isinstance(name, str) and not _is_here(name):
        # A picture's text is anyone's: what it names is not fetched unasked.
        raise ValueError(
            f"the picture names the model {name!r}, which is not here; name the model yourself: "
            "guidestar sample MODEL --like PICTURE"
        )
    if not name or not isinstance(name, str):
        raise ValueError(
            "name a model (guidestar models lists those that ship), or give a picture with --like"
        )
    return name


def _is_here(name: str) -> bool:
    from ..model.shipped import available

    base, sign, _ = name.rpartition(":")  # "model:variant"
    return any(n in available() or Path(n).is_dir() for n in (name, *([base] if sign else [])))


def _prompts_of(file: Path | None) -> list[str]:
    from ..apps.measure_text import read_prompts

    return read_prompts(file) if file else []


def _conditions(model: Model | Cascade, cond: list[str], num: int) -> list[str] | None:
    if not cond:
        return None
    if "all" in cond and model.takes_prompts:
        raise ValueError(
            f"the model {model.name!r} takes text prompts, so there are no classes for 'all'; give "
            "prompts in its place"
        )
    names = [n for c in cond for n in (model.classes if c == "all" and model.classes else [c])]
    return [n for n in names for _ in range(num)]
