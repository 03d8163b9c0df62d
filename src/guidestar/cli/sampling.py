"""Commands that sample: demo, sample, strip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, cast

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
    ready_file,
    with_file,
)
from ._terminal import show_progress, table, warn
from .motions import (
    AnimationOption,
    KeepFrames,
    KeepJoints,
    KeepOption,
    LengthOption,
    OverlapOption,
    keeping,
    of_length,
    write_all,
)
from .upscaling import StageOption, parse_stages

if TYPE_CHECKING:
    from ..model.cascade import Cascade
    from ..model.model import Model
    from ..model.samples import Carried, Samples, Settings


def demo(
    out: Out = Path("out/demo"),
    model: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=model_names,
            help="A class model with a judge, or a text model with a measuring CLIP; by default "
            "those that ship.",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Samples of each class (4) or prompt (2)."),
    ] = None,
) -> None:
    """Guide models in every way from the same seeds; draw the samples and measure them."""
    from ..apps.demo import demo as run
    from ..apps.demo import write_figures
    from ..apps.demo_text import demo_text
    from ..io.files import make_folder
    from ..model.folder import available, load

    make_folder(out)
    results = {}
    for name in model or available():
        chosen = load(name)
        show, count = (demo_text, seeds or 2) if chosen.takes_prompts else (run, seeds or 4)
        with show_progress(f"sampling {chosen.name}") as watch:
            few = {} if chosen.takes_prompts else {"students": _students(name)}
            rows = results[chosen.name] = show(
                chosen, out, seeds=count, show=min(2, count), watch=watch, **few
            )
        head = (
            "steered",
            "guidance",
            "CLIP: top 5" if chosen.takes_prompts else "judge",
            "NFE",
            "seconds",
        )
        table(
            head,
            [
                (r.how, r.expression, f"{r.accuracy:.1%}", f"{r.nfe:g}", f"{r.seconds:.1f}")
                for r in rows
            ],
        )
    write_figures(results, out)
    typer.echo(
        "  ".join(
            str(out / n)
            for n in ("demo.png", "steps.png", "text.png", "demo.json")
            if (out / n).is_file()
        )
    )


def sample(  # noqa: PLR0915  (options, one after the other)
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
    from ..io.images import read_settings
    from ..model.cascade import Cascade
    from ..model.loading import load
    from ..model.streaming import BATCH, Batches, again_to_folder, sample_to_folder
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
    make_folder(out)
    settings = read_settings(like) if like else None
    stages = parse_stages(stage)
    name = _model_name(model, settings)
    chosen = cast("Model | Cascade", load(name, average=average, variant=variant, trust=trust))
    if isinstance(chosen, Cascade):
        if observe or length or keep:
            what = "--observe" if observe else "--length" if length else "--keep"
            raise ValueError(f"{chosen.name!r} is a cascade; {what} is for one model alone")
        names = _conditions(chosen, [*(cond or []), *(prompts or []), *_prompts_of(file)], num or 1)
        count = len(names) if names else num or 1
        seeds = [(seed or 0) + i for i in range(count)]
        paths, nfe = [], 0.0
        with show_progress("sampling") as watch:
            if settings is not None:
                made = chosen.again(settings, watch)
                first = int(settings.get("number", 0)) - int(settings.get("index", 0))
                paths, nfe = made.save(out, first), made.nfe
            for start in range(0, 0 if settings else count, batch or BATCH):
                part = slice(start, start + (batch or BATCH))
                made = chosen.sample(
                    names and names[part],
                    seeds=seeds[part],
                    stages=stages,
                    **{**given_run, "guidance": parsed},
                    max_rows=max_rows,
                    watch=watch,
                )
                paths, nfe = paths + made.save(out, start), made.nfe
        if grid:
            _write_grid(out, paths)
        typer.echo(f"{len(paths)} images in {out}, NFE {nfe:g} over all stages")
        return
    _refuse_stages(chosen, stages)
    if settings is not None:
        with show_progress("sampling") as watch:
            samples = (
                again_to_folder(chosen, settings, out, watch)
                if _makes_pictures(chosen)
                else chosen.again(settings, watch)
            )
        _warn_of_differences(settings, samples.settings)
        _finish(chosen, samples, out, grid, animation=animation)
        return
    num, seed = 1 if num is None else num, 0 if seed is None else seed
    names = _conditions(chosen, [*(cond or []), *(prompts or []), *_prompts_of(file)], num)
    chosen, names = of_length(chosen, names, num, length, overlap)
    spacing = given_run["grid"] or ("uniform" if keep else None) or grid_of(given_run["solver"])
    expression = chosen.expression(
        parsed, conditional=bool(names), steps=given_run["steps"], grid=spacing
    )
    observed = read_observation(chosen, expression, observe, operator)
    each = len(names) if names else num
    rows = processes.own_indices(each if observed is None else each * len(observed.y))  # type: ignore[arg-type]
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
            observed and {"loss": replace(observed, y=observed.y[[i // each for i in numbers]])}  # type: ignore[reportIndexIssue]
        ),
        batch=batch or BATCH,
    )
    if not _makes_pictures(chosen):
        with show_progress("sampling") as watch:
            samples = chosen.run(job.part(slice(None)), watch=watch)
        _finish(chosen, samples, out, grid, rows, animation)
        return
    with show_progress("sampling") as watch:
        done = sample_to_folder(job, out, watch)
    total = processes.count(len(done.paths))
    if processes.is_main():
        if grid:
            _write_grid(out, [p for p in sorted(out.glob("*.png")) if p.name[:4].isdecimal()])
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


ON_A_GRID = 1000
"""Pictures on a contact sheet, at most."""


def _write_grid(out: Path, files: list[Path]) -> None:
    """Lay pictures out that were written, without holding all of them in memory at their full
    number.
    """
    from ..io.decoding import open_picture
    from ..io.images import SheetRow, save_png, sheet

    shown = [open_picture(file) for file in files[:ON_A_GRID]]
    if len(files) > ON_A_GRID:
        warn(f"the contact sheet shows the first {ON_A_GRID} of {len(files)} images")
    save_png(
        sheet(
            [SheetRow(label="", images=shown[i : i + 8]) for i in range(0, len(shown), 8)], scale=3
        ),
        out / "grid.png",
    )


def _finish(
    model: Model,
    samples: Samples,
    out: Path,
    grid: bool,
    rows: list[int] | None = None,
    animation: str = "webp",
) -> None:
    """Write what shows all samples: of pictures that were repeated, or of other data."""
    from ..io import distributed as processes
    from ..io.images import SheetRow, save_png, sheet, to_drawings, write_tensors
    from ..model.motions import body_of_model

    pictures = samples.images.ndim == 4 and samples.images.shape[1] in (1, 3)
    rows = list(range(len(samples.x))) if rows is None else rows
    drawn = write_all(model, samples, out, rows, animation) if body_of_model(model) else ""
    everyone = processes.gather(list(zip(rows, samples.images, strict=True)))
    if not processes.is_main():
        return
    import torch

    x = torch.stack([x for _, x in everyone])
    if not pictures:
        write_tensors({"x": x}, samples.settings, out / "samples.safetensors")
    if grid or not (pictures or drawn):
        drawings = to_drawings(x[:ON_A_GRID])
        laid = [SheetRow(label="", images=drawings[i : i + 8]) for i in range(0, len(drawings), 8)]
        save_png(
            sheet(laid, scale=3 if pictures else 1),
            out / ("grid.png" if pictures else "curves.png"),
        )
    what = drawn or (
        f"{len(x)} images in {out}"
        if pictures
        else f"{len(x)} samples of {list(x.shape[1:])} in {out / 'samples.safetensors'}"
    )
    typer.echo(f"{what}: {samples.settings.guidance}, NFE {samples.nfe:g}")


def _warn_of_differences(then: Carried, now: Settings) -> None:
    names = [
        n for n in ("threads", "device", "versions") if n in then and then[n] != getattr(now, n)
    ]
    if names:
        warn(f"{', '.join(names)} differ from the first run's, so the last bits may too")


def _students(name: str) -> list[Model]:
    """Return the students among the variants of a model."""
    from ..model.folder import load
    from ..model.shipped import home_of
    from ..model.variants import variants_of

    found = [load(name, variant=variant) for variant in variants_of(home_of(name))]
    return [model for model in found if "student" in model.card]


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


def strip(
    model: Annotated[
        str, typer.Argument(help="A shipped model or a folder.", autocompletion=model_names)
    ],
    prompts: Annotated[
        list[str],
        typer.Argument(
            help="Two prompts (or classes) to go between, or one to show at rising scales."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="A strip (.png), or an animation (.gif, .webp).")
    ] = Path("strip.png"),
    frames: Annotated[int, typer.Option(min=2, max=1000, help="Pictures between two prompts.")] = 9,
    scales: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Scales of cfg for one prompt (0,1,2,3,4,6,8)."),
    ] = None,
    guidance: GuidanceOption = None,
    seed: Annotated[int, typer.Option(help="The seed of all of them.")] = 0,
    steps: Steps = None,
) -> None:
    """Draw one seed between two prompts, or at rising scales of its guidance."""
    from ..apps.strip import morph, rising, strip_kind, write_strip
    from ..model.folder import load

    if len(prompts) > 2:
        raise ValueError(
            f"a strip goes between two prompts, or raises the scale of one, not {len(prompts)}"
        )
    if len(prompts) == 1 and guidance is not None:
        raise ValueError(
            "one prompt is drawn at rising scales of cfg (--scales), so --guidance has no effect; "
            "leave it out, or give a second prompt"
        )
    if len(prompts) == 2 and scales is not None:
        raise ValueError(
            "a strip between two prompts has one guidance (--guidance); leave --scales out, or "
            "give one prompt"
        )
    raised = _numbers("0,1,2,3,4,6,8" if scales is None else scales)
    strip_kind(out)
    check_run(guidance)
    ready_file(out)
    chosen = load(model)
    with show_progress("sampling") as watch:
        if len(prompts) == 2:
            images = morph(
                chosen,
                *prompts,
                frames=frames,
                seed=seed,
                guidance=guidance,
                steps=steps,
                watch=watch,
            )
        else:
            images = rising(chosen, prompts[0], raised, seed=seed, steps=steps, watch=watch)
    write_strip(images, out)
    typer.echo(str(out))


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"scales are numbers separated by commas, not {text!r}") from error
