"""The command line; every command is a call of the library."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .files import Damaged

app = typer.Typer(name="guidestar", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

# Typer carries its own click, or uses the installed one: take the class from where it is public.
_UsageError: Any = typer.BadParameter.__bases__[0]

Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
Guidance = Annotated[Optional[str], typer.Option("--guidance", help="Expression, e.g. 'cfg(3) + classifier(1)'; the model's own by default.")]  # noqa: UP045
GuidanceFile = Annotated[Optional[Path], typer.Option("--guidance-file", help="A guidance.toml: guidance, steps, solver, grid, negative; options go before it.")]  # noqa: UP045
Negative = Annotated[Optional[str], typer.Option("--negative", help="What cfg moves away from; '' is the null.")]  # noqa: UP045
Steps = Annotated[Optional[int], typer.Option("--steps", help="Solver steps.")]  # noqa: UP045
SolverName = Annotated[Optional[str], typer.Option("--solver", help="ddim, ddpm, dpmpp-2m, sde-dpmpp-2m or heun.")]  # noqa: UP045
GridName = Annotated[Optional[str], typer.Option("--levels", help="How levels are spaced: uniform, log_snr, karras, leading, linspace or trailing.")]  # noqa: UP045

_OPERATOR_HELP = "What --observe shows: downsample(factor=2), inpaint(mask='mask.png'), blur(deviation=2), gray or identity; with noise, e.g. gray(noise=0.05)."
Observe = Annotated[Optional[list[Path]], typer.Option("--observe", help="A picture, or a folder of them, to find the whole of; several times for several.")]  # noqa: UP045
Operator = Annotated[Optional[str], typer.Option("--operator", help=_OPERATOR_HELP)]  # noqa: UP045

Average = Annotated[Optional[str], typer.Option("--average", help="Which average of the weights, where the training kept several, e.g. power-0.1.")]  # noqa: UP045
Trust = Annotated[bool, typer.Option("--trust", help="Run the code that the model's folder names for its network.")]


@contextmanager
def _progress(label: str) -> Iterator[Any]:
    """Show a progress bar on stderr while it works; yields ``watch(done, total)``."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@app.command()
def demo(
    out: Out = Path("out/demo"),
    model: Annotated[Optional[list[str]], typer.Option(help="A class model with a judge, or a text model with a measuring CLIP; by default those that ship.")] = None,  # noqa: UP045
    seeds: Annotated[Optional[int], typer.Option(min=1, max=1000, help="Samples of each class (4) or prompt (2).")] = None,  # noqa: UP045
) -> None:
    """Steer models in every way from the same seeds: pictures, and figures of independent judges."""
    from .demo import demo as run
    from .demo import write_figures
    from .demo_text import demo_text
    from .files import make_folder
    from .folder import available, load

    make_folder(out)
    results = {}
    for name in model or available():
        chosen = load(name)
        show, count = (demo_text, seeds or 2) if chosen.told_by_text else (run, seeds or 4)
        with _progress(f"sampling {chosen.name}") as tell:
            rows = results[chosen.name] = show(chosen, out, seeds=count, show=min(2, count), tell=tell)
        head = ("steered", "guidance", "CLIP: top 5" if chosen.told_by_text else "judge", "NFE", "seconds")
        _table(head, [(r.how, r.expression, f"{r.accuracy:.1%}", f"{r.nfe:g}", f"{r.seconds:.1f}") for r in rows])
    write_figures(results, out)
    typer.echo("  ".join(str(out / n) for n in ("demo.png", "steps.png", "text.png", "demo.json") if (out / n).is_file()))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
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

    from . import processes
    from .files import make_folder
    from .folder import load
    from .observing import read_observation
    from .pictures import read_settings

    if like and any(v is not None for v in (prompts, cond, file, guidance, guidance_file, negative, steps, solver, levels, max_rows, observe, operator)):
        raise ValueError("--like repeats a run as it was; leave the options of a new run out")
    settings = read_settings(like) if like else None
    chosen = load(_model_name(model, settings), average=average, trust=trust)
    make_folder(out)
    with _progress("sampling") as watch:
        if settings is not None:
            samples = chosen.again(settings, watch)
            _warn_of_differences(settings, samples.settings)
        else:
            names = _conditions(chosen, [*(cond or []), *(prompts or []), *_prompts_of(file)], num)
            asked = _with_file(guidance_file, guidance=guidance, negative=negative, steps=steps, solver=solver, grid=levels)
            observed = read_observation(chosen, chosen.expression(asked["guidance"], conditional=bool(names)), observe, operator)
            each = len(names) if names else num
            rows = processes.mine(each if observed is None else each * len(observed.y))  # type: ignore[arg-type]
            if not rows:
                raise ValueError("there are more processes than samples; launch fewer")
            losses = observed and {"loss": replace(observed, y=observed.y[[i // each for i in rows]])}  # type: ignore[index]
            given = {**asked, "max_rows": max_rows, "losses": losses, "watch": watch}
            samples = chosen.sample([names[i % each] for i in rows] if names else None, seeds=[seed + i for i in rows], **given)  # type: ignore[arg-type]
    _write(samples, rows if settings is None else None, out, grid)


def _with_file(file: Path | None, **given: Any) -> dict[str, Any]:
    """Fill up what was not given from a guidance.toml."""
    if file is None:
        return given
    from .bridge.recipe import read

    if given.get("guidance") is not None:
        raise ValueError("give --guidance or --guidance-file, not both")
    found = read(file)
    return {key: getattr(found, key) if value is None else value for key, value in given.items()}


def _write(samples: Any, rows: list[int] | None, out: Path, grid: bool) -> None:
    """Write samples (numbered by ``rows``), and from the main process what shows all of them."""
    from . import processes
    from .pictures import Row, save_png, sheet, to_drawings, write_tensors

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
        typer.echo(f"guidestar: note: {', '.join(names)} differ from the first run's, so the last bits may too", err=True)


def _model_name(model: str | None, settings: dict[str, Any] | None) -> str:
    name = model or (settings or {}).get("model")
    if not name or not isinstance(name, str):
        raise ValueError("name a model (see 'guidestar models'), or give a picture with --like")
    return name


def _prompts_of(file: Path | None) -> list[str]:
    from .measure_text import read_prompts

    return read_prompts(file) if file else []


def _conditions(model: Any, cond: list[str], num: int) -> list[str] | None:
    if not cond:
        return None
    if "all" in cond and model.told_by_text:
        raise ValueError(f"the model {model.name!r} is told by a prompt, so it has no classes to show 'all' of; write what you want to see")
    names = [n for c in cond for n in (model.classes if c == "all" and model.classes else [c])]
    return [n for n in names for _ in range(num)]


@app.command()
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
    from .folder import load
    from .strip import morph, rising, write_strip

    if len(prompts) > 2:
        raise ValueError(f"a strip goes between two prompts, or raises the scale of one, not {len(prompts)}")
    chosen = load(model)
    with _progress("sampling") as watch:
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


@app.command()
def models() -> None:
    """List the models that ship."""
    from .folder import available

    for name, summary in available().items():
        typer.echo(f"{name}  {summary}")


@app.command()
def methods(name: Annotated[Optional[str], typer.Argument(help="Tell all of this one.")] = None) -> None:  # noqa: UP045
    """List the guidances: formula, arguments, cost and paper; or tell all of one, with its BibTeX entries."""
    import inspect

    from .guidance import METHODS
    from .guidance.papers import described, papers

    if name is None:
        rows = [(n, described(m)) for n, m in sorted(METHODS.items())]
        _table(("name", "formula", "arguments", "cost", "paper"), [(n, d.formula, d.arguments, d.evaluations, d.papers[0].arxiv or d.papers[0].url) for n, d in rows])
    elif name in METHODS:
        typer.echo("\n\n".join([inspect.getdoc(METHODS[name]) or "", *(paper.bibtex() for paper in papers(METHODS[name]))]))
    else:
        raise ValueError(f"unknown method {name!r}; there are {', '.join(sorted(METHODS))}")


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="A shipped model or a folder.")],
    guidance: Guidance = None,
    guidance_file: GuidanceFile = None,
    negative: Negative = None,
    steps: Steps = None,
    solver: SolverName = None,
    levels: GridName = None,
) -> None:
    """Print the network passes of every step, before anything runs."""
    from .folder import load

    asked = _with_file(guidance_file, guidance=guidance, negative=negative, steps=steps, solver=solver, grid=levels)
    typer.echo(str(load(model).plan(**asked)))


datasets = typer.Typer(help="Make data sets to try things on.", no_args_is_help=True)
app.add_typer(datasets, name="data")


@datasets.callback()
def _datasets() -> None:
    """Make data sets to try things on."""


@datasets.command("emoji")
def emoji_folders(
    out: Annotated[Path, typer.Option("--out", help="A new folder, for one to train on and two to measure on.")],
    packages: Annotated[Optional[Path], typer.Option(help="Folder of npm's packages, or to keep them in; fetched by npm where they are missing.")] = None,  # noqa: UP045
    size: Annotated[int, typer.Option(min=16, max=256, help="Pixels of a side.")] = 64,
) -> None:
    """Draw emoji of seven styles with captions, from packages whose licences allow it (needs npm, and pip install resvg-py)."""
    from .data.emoji import build

    with _progress("drawing") as watch:
        counts = build(out, packages=packages, size=size, watch=watch)
    typer.echo(f"{', '.join(f'{n:,} pictures in {out / part}' for part, n in counts.items())}; try: guidestar train recipes/emoji.toml --data {out / 'train'}")


@datasets.command("fashion-mnist")
def fashion_folders(
    out: Annotated[Path, typer.Option("--out", help="A new folder, for one sub-folder of PNG files a class.")],
    each: Annotated[int, typer.Option(min=1, max=6000, help="Pictures of each class.")] = 600,
    data: Annotated[Optional[Path], typer.Option(help="Folder of the four IDX files.")] = None,  # noqa: UP045
) -> None:
    """Write Fashion-MNIST as a folder of pictures, one sub-folder a class."""
    from .data.fashion_mnist import write_folders

    typer.echo(f"{write_folders(out, each=each, folder=data)} pictures in {out}; try: guidestar recipe {out}")


@app.command()
def recipe(
    data: Annotated[Path, typer.Argument(help="Folder of images, parquet or webdataset files, or a .safetensors or .npy file.")],
    out: Annotated[Path, typer.Option("--out", help="The recipe to write.")] = Path("recipe.toml"),
    size: Annotated[Optional[int], typer.Option(min=8, help="Pixels of a side; by default what suits the images, at most 64.")] = None,  # noqa: UP045
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the model.")] = 1200,
) -> None:
    """Write a recipe that suits your data, to read, change and train."""
    from .pictures import write_text
    from .train.propose import propose

    if out.exists():
        raise ValueError(f"{out} exists; give another --out, or remove it")
    text, said = propose(data, name=out.stem, size=size, steps=steps)
    write_text(text, out)
    typer.echo(f"{said}\n{out}; try: guidestar train {out} --dry-run")


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/fashion-mnist.toml, or one that 'guidestar recipe' wrote.")],
    out: Out = Path("out/train"),
    data: Annotated[Optional[Path], typer.Option(help="Path of the data, in place of the recipe's.")] = None,  # noqa: UP045
    only: Annotated[Optional[list[str]], typer.Option("--only", help="Train this part alone (model, weak, classifier, judge); several times for several.")] = None,  # noqa: UP045
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be trained, draw one batch, and train nothing.")] = False,
) -> None:
    """Train a recipe, going on where it was stopped, and write the model's folder."""
    from .files import make_folder
    from .train import recipe as recipes

    spec = recipes.read(recipe)
    if data:
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={"path": str(data)})})
    make_folder(out)
    if dry_run:
        _dry_run(spec, out, only)
    else:
        _train(spec, recipe, out, only)


def _dry_run(spec: Any, out: Path, only: list[str] | None) -> None:
    from .pictures import Row, save_png, sheet, to_drawings
    from .train.run import dry_run

    lines, batch = dry_run(spec, only, _warn)
    drawings = to_drawings(batch[:64])
    save_png(sheet([Row(label="", images=drawings[i : i + 8]) for i in range(0, len(drawings) // 8 * 8 or 1, 8)]), out / "batch.png")
    typer.echo("\n".join([*lines, f"the first samples are drawn in {out / 'batch.png'}"]))


def _train(spec: Any, file: Path, out: Path, only: list[str] | None) -> None:
    from accelerate import PartialState

    from .train._safely import Stop, asked_by_signals
    from .train.assemble import assemble
    from .train.report import progress_report
    from .train.run import train

    with asked_by_signals(Stop()) as stop, progress_report() as report:
        finished = train(spec, out, report, only=only, stop=stop, say=_warn)
    if not finished:
        _fail(f"stopped; what was trained is saved in {out}, and the same command goes on from there", 130)
    if not PartialState().is_main_process:
        return
    if only:
        typer.echo(f"trained {', '.join(only)} in {out}; run it without --only for the whole model")
        return
    model = assemble(spec, out, command=f"guidestar train {file}")
    typer.echo(f"the model is in {out / spec.name}; try: guidestar sample {out / spec.name}{' --cond all' if model.classes else ''} --grid")


def _warn(line: str) -> None:
    typer.echo(f"guidestar: note: {line}", err=True)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A class model with a judge.")],
    guidance: Annotated[list[str], typer.Option("--guidance", help="Expression; several times for several.")],
    seeds: Annotated[str, typer.Option(help="First and last seed, e.g. 0-999; classes in turn, prompts evenly spread over the data.")] = "0-999",
    steps: Steps = None,
    solver: SolverName = None,
    levels: GridName = None,
    data: Annotated[Optional[Path], typer.Option(help="Folder of the reference images.")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], typer.Option(help="Also write the rows to this JSON file.")] = None,  # noqa: UP045
    average: Average = None,
    trust: Trust = False,
) -> None:
    """Measure guidances: judge accuracy, Fréchet distance, diversity, NFE and seconds; of a text model, how an independent CLIP ranks the prompts."""
    import json

    from .files import make_folder
    from .folder import load
    from .measure import measure
    from .measure_text import measure_text
    from .pictures import write_text
    from .processes import is_main

    if out:
        make_folder(out.parent)
    with _progress("measuring") as watch:
        chosen, span, how = load(model, average=average, trust=trust), _span(seeds), {"steps": steps, "solver": solver, "grid": levels, "data": data, "watch": watch}
        measured: Any = measure_text(chosen, guidance, count=len(span), seed=span[0], **how) if chosen.told_by_text else measure(chosen, guidance, seeds=span, **how)
        rows = list(measured)
    if not is_main():
        return
    if chosen.told_by_text:
        _table(("guidance", "top 1", "top 5", "score", "Fréchet", "nearest", "NFE", "seconds"), [_text_cells(row) for row in rows])
    else:
        _table(("guidance", "accuracy", "Fréchet", "diversity", "shares", "NFE", "seconds"), [_cells(row) for row in rows])
    if out:
        write_text(json.dumps(rows, indent=2) + "\n", out)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    shares = f"{min(row['shares']):.1%}-{max(row['shares']):.1%}"
    return (row["guidance"], f"{row['accuracy']:.2%}", f"{row['frechet']:.3f}", f"{row['diversity']:.3f}", shares, f"{row['nfe']:g}", f"{row['seconds']:.1f}")


def _text_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["guidance"],
        f"{row['top 1']:.1%}",
        f"{row['top 5']:.1%}",
        f"{row['score']:.3f}",
        f"{row['frechet']:.3f}",
        f"{row['nearest']:.3f}",
        f"{row['nfe']:g}",
        f"{row['seconds']:.1f}",
    )


def _span(text: str) -> range:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise ValueError(f"seeds are a span like 0-999, not {text!r}")
    return range(int(first), int(last) + 1)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every error is one clear message, and an exit code of 2 for usage, else 1 (a damaged file, a full disk, a loss that is no number)."""
    code = 0
    warnings.showwarning = _note  # what the library warns of, people read as one line
    try:
        code = app(args=(sys.argv[1:] if arguments is None else arguments) or ["--help"], standalone_mode=False, prog_name="guidestar")
    except _UsageError as error:
        _fail(error.format_message(), 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail("stopped", 130)
    except ValueError as error:
        _fail(str(error), 1 if isinstance(error, Damaged) else 2)
    except ImportError as error:
        _fail(f"{error.name or error} is missing; install it with: pip install 'guidestar[all]'", 1)
    except (OSError, RuntimeError, ArithmeticError) as error:
        _fail(str(error), 1)
    sys.exit(code or 0)


def _note(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if category is UserWarning:
        typer.echo(f"guidestar: note: {message}", err=True)


def _fail(message: str, code: int) -> None:
    typer.echo(f"guidestar: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
