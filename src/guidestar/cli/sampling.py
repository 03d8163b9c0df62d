"""Commands that sample: demo, sample, strip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ._options import Average, GridName, Guidance, GuidanceFile, Negative, Observe, Operator, Out, SolverName, Steps, Trust, with_file
from ._terminal import progress, table, warn


def demo(
    out: Out = Path("out/demo"),
    model: Annotated[Optional[list[str]], typer.Option(help="A class model with a judge, or a text model with a measuring CLIP; by default those that ship.")] = None,  # noqa: UP045
    seeds: Annotated[Optional[int], typer.Option(min=1, max=1000, help="Samples of each class (4) or prompt (2).")] = None,  # noqa: UP045
) -> None:
    """Steer models in every way from the same seeds: pictures, and figures of independent judges."""
    from ..demo import demo as run
    from ..demo import write_figures
    from ..demo_text import demo_text
    from ..files import make_folder
    from ..folder import available, load

    make_folder(out)
    results = {}
    for name in model or available():
        chosen = load(name)
        show, count = (demo_text, seeds or 2) if chosen.told_by_text else (run, seeds or 4)
        with progress(f"sampling {chosen.name}") as tell:
            rows = results[chosen.name] = show(chosen, out, seeds=count, show=min(2, count), tell=tell)
        head = ("steered", "guidance", "CLIP: top 5" if chosen.told_by_text else "judge", "NFE", "seconds")
        table(head, [(r.how, r.expression, f"{r.accuracy:.1%}", f"{r.nfe:g}", f"{r.seconds:.1f}") for r in rows])
    write_figures(results, out)
    typer.echo("  ".join(str(out / n) for n in ("demo.png", "steps.png", "text.png", "demo.json") if (out / n).is_file()))


def sample(
    model: Annotated[Optional[str], typer.Argument(help="A shipped model or a folder.")] = None,  # noqa: UP045
    prompts: Annotated[Optional[list[str]], typer.Argument(help="What to show, to a text model.")] = None,  # noqa: UP045
    cond: Annotated[Optional[list[str]], typer.Option("--cond", help="Class name or index (or prompt); several times for several; 'all' for every class.")] = None,  # noqa: UP045
    file: Annotated[Optional[Path], typer.Option("--prompts", help="A file of prompts, one a line.")] = None,  # noqa: UP045
    num: Annotated[int, typer.Option(min=1, max=100_000, help="Samples of each condition.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the first sample; the others follow.")] = 0,
    guidance: Guidance = None,
    guidance_file: GuidanceFile = None,
    negative: Negative = None,
    steps: Steps = None,
    solver: SolverName = None,
    levels: GridName = None,
    max_rows: Annotated[Optional[int], typer.Option(min=1, help="Most rows of one network call.")] = None,  # noqa: UP045
    grid: Annotated[bool, typer.Option("--grid", help="Also write a contact sheet.")] = False,
    like: Annotated[Optional[Path], typer.Option(help="Repeat the run of this PNG, bit for bit.")] = None,  # noqa: UP045
    observe: Observe = None,
    operator: Operator = None,
    average: Average = None,
    trust: Trust = False,
    out: Out = Path("out/samples"),
) -> None:
    """Sample images, as PNG files that carry the whole run; sequences and vectors as samples.safetensors and curves.png."""
    from dataclasses import replace

    from .. import processes
    from ..files import make_folder
    from ..folder import load
    from ..observing import read_observation
    from ..pictures import read_settings

    if like and any(v is not None for v in (prompts, cond, file, guidance, guidance_file, negative, steps, solver, levels, max_rows, observe, operator)):
        raise ValueError("--like repeats a run as it was; leave the options of a new run out")
    settings = read_settings(like) if like else None
    chosen = load(_model_name(model, settings), average=average, trust=trust)
    make_folder(out)
    with progress("sampling") as watch:
        if settings is not None:
            samples = chosen.again(settings, watch)
            _warn_of_differences(settings, samples.settings)
        else:
            names = _conditions(chosen, [*(cond or []), *(prompts or []), *_prompts_of(file)], num)
            asked = with_file(guidance_file, guidance=guidance, negative=negative, steps=steps, solver=solver, grid=levels)
            observed = read_observation(chosen, chosen.expression(asked["guidance"], conditional=bool(names)), observe, operator)
            each = len(names) if names else num
            rows = processes.mine(each if observed is None else each * len(observed.y))  # type: ignore[arg-type]
            if not rows:
                raise ValueError("there are more processes than samples; launch fewer")
            losses = observed and {"loss": replace(observed, y=observed.y[[i // each for i in rows]])}  # type: ignore[index]
            given = {**asked, "max_rows": max_rows, "losses": losses, "watch": watch}
            samples = chosen.sample([names[i % each] for i in rows] if names else None, seeds=[seed + i for i in rows], **given)  # type: ignore[arg-type]
    _write(samples, rows if settings is None else None, out, grid)


def _write(samples: Any, rows: list[int] | None, out: Path, grid: bool) -> None:
    """Write samples (numbered by ``rows``), and from the main process what shows all of them."""
    from .. import processes
    from ..pictures import Row, save_png, sheet, to_drawings, write_tensors

    rows = list(range(len(samples.x))) if rows is None else rows
    pictures = samples.images.ndim == 4 and samples.images.shape[1] in (1, 3)
    if pictures:
        samples.save(out, rows)
    everyone = processes.gather(list(zip(rows, samples.images, strict=True)))
    if not processes.is_main():
        return
    import torch

    x = torch.stack([x for _, x in everyone])
    if not pictures:
        write_tensors({"x": x}, samples.settings, out / "samples.safetensors")
    if grid or not pictures:
        drawings = to_drawings(x)
        save_png(
            sheet([Row(label="", images=drawings[i : i + 8]) for i in range(0, len(drawings), 8)], scale=3 if pictures else 1), out / ("grid.png" if pictures else "curves.png")
        )
    what = f"{len(x)} images in {out}" if pictures else f"{len(x)} samples of {list(x.shape[1:])} in {out / 'samples.safetensors'}"
    typer.echo(f"{what}: {samples.settings.guidance}, NFE {samples.nfe:g}")


def _warn_of_differences(then: dict[str, Any], now: Any) -> None:
    names = [n for n in ("threads", "device", "versions") if n in then and then[n] != getattr(now, n)]
    if names:
        warn(f"{', '.join(names)} differ from the first run's, so the last bits may too")


def _model_name(model: str | None, settings: dict[str, Any] | None) -> str:
    name = model or (settings or {}).get("model")
    if not name or not isinstance(name, str):
        raise ValueError("name a model (see 'guidestar models'), or give a picture with --like")
    return name


def _prompts_of(file: Path | None) -> list[str]:
    from ..measure_text import read_prompts

    return read_prompts(file) if file else []


def _conditions(model: Any, cond: list[str], num: int) -> list[str] | None:
    if not cond:
        return None
    if "all" in cond and model.told_by_text:
        raise ValueError(f"the model {model.name!r} is told by a prompt, so it has no classes to show 'all' of; write what you want to see")
    names = [n for c in cond for n in (model.classes if c == "all" and model.classes else [c])]
    return [n for n in names for _ in range(num)]


def strip(
    model: Annotated[str, typer.Argument(help="A shipped model or a folder.")],
    prompts: Annotated[list[str], typer.Argument(help="Two prompts (or classes) to go between, or one to show at rising scales.")],
    out: Annotated[Path, typer.Option("--out", help="A strip (.png), or an animation (.gif, .webp).")] = Path("strip.png"),
    frames: Annotated[int, typer.Option(min=2, max=1000, help="Pictures between two prompts.")] = 9,
    scales: Annotated[str, typer.Option(help="Scales of cfg for one prompt.")] = "0,1,2,3,4,6,8",
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(help="The seed of all of them.")] = 0,
    steps: Steps = None,
) -> None:
    """Draw one seed on the way from one prompt to another, or at rising scales of its guidance."""
    from ..folder import load
    from ..strip import morph, rising, write_strip

    if len(prompts) > 2:
        raise ValueError(f"a strip goes between two prompts, or raises the scale of one, not {len(prompts)}")
    chosen = load(model)
    with progress("sampling") as watch:
        if len(prompts) == 2:
            images = morph(chosen, *prompts, frames=frames, seed=seed, guidance=guidance, steps=steps, watch=watch)
        else:
            images = rising(chosen, prompts[0], _numbers(scales), seed=seed, steps=steps, watch=watch)
    write_strip(images, out)
    typer.echo(str(out))


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"scales are numbers separated by commas, not {text!r}") from error
