"""Commands that train: recipe, train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._options import AcceptData, Out, TrustRecipe, ready_file
from ._terminal import fail, naming_recipe, warn

if TYPE_CHECKING:
    from ..model.model import Model
    from ..train.recipe.cascade import CascadeRecipe
    from ..train.recipe.schema import Recipe


def recipe(
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder of images, parquet or webdataset files, or a .safetensors or .npy file."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The recipe to write.")] = Path("recipe.toml"),
    size: Annotated[
        int | None,
        typer.Option(min=8, help="Pixels of a side; by default what suits the images, at most 64."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the model.")] = 1200,
) -> None:
    """Write a recipe that suits your data, to read, change and train."""
    from ..io.images import write_text
    from ..train.recipe.propose import propose

    if out.exists():
        raise ValueError(f"{out} exists; give another --out, or remove it")
    ready_file(out)
    text, summary = propose(data, name=out.stem, size=size, steps=steps)
    write_text(text, out)
    typer.echo(f"{summary}\n{out}; try: guidestar train {out} --dry-run")


def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="A recipe, e.g. recipes/fashion-mnist.toml, or one that 'guidestar recipe' wrote."
        ),
    ],
    out: Out = Path("out/train"),
    data: Annotated[
        Path | None, typer.Option(help="Path of the data, in place of the recipe's.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="Train this part alone (model, weak, classifier, judge), or this stage of a "
            "cascade; several times for several.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print what would be trained, draw one batch, and train nothing."
        ),
    ] = False,
    trust: TrustRecipe = False,
    accept_data: AcceptData = False,
) -> None:
    """Train a recipe, going on where it was stopped, and write the model's folder."""
    from ..io.files import make_folder
    from ..train.recipe import schema as recipes
    from ..train.recipe.cascade import read_cascade

    cascade = read_cascade(recipe)
    if cascade is not None:
        if data:
            there = cascade.data.model_copy(update={"path": str(data)})
            cascade = cascade.model_copy(update={"data": there})
        _train_cascade(cascade, recipe, out, only, dry_run, accept_data)
        return
    spec = recipes.read_recipe(recipe, trust=trust)
    if data:
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={"path": str(data)})})
    make_folder(out)
    with naming_recipe(recipe):
        if dry_run:
            _dry_run(spec, out, only)
        else:
            _train(spec, recipe, out, only, accept_data)


def _dry_run(spec: Recipe, out: Path, only: list[str] | None) -> None:
    from ..io.images import SheetRow, save_png, sheet, to_drawings
    from ..train.dry_run import dry_run

    lines, batch = dry_run(spec, only, warn)
    drawings = to_drawings(batch[:64])
    save_png(
        sheet(
            [
                SheetRow(label="", images=drawings[i : i + 8])
                for i in range(0, len(drawings) // 8 * 8 or 1, 8)
            ]
        ),
        out / "batch.png",
    )
    typer.echo("\n".join([*lines, f"the first samples are drawn in {out / 'batch.png'}"]))


def _train(spec: Recipe, file: Path, out: Path, only: list[str] | None, accept_data: bool) -> None:
    from contextlib import nullcontext

    import torch
    from accelerate import PartialState

    from ..train.loop.lock import locked
    from ..train.loop.signals import Stop, stop_on_signals
    from ..train.progress import progress_report
    from ..train.run import train

    main = PartialState(cpu=not torch.cuda.is_available()).is_main_process
    with locked(out) if main else nullcontext():
        with stop_on_signals(Stop()) as stop, progress_report() as report:
            finished = train(
                spec, out, report, only=only, stop=stop, say=warn, accept_data=accept_data
            )
        if not finished:
            again = "the same command goes on from there"
            fail(f"stopped; what was trained is saved in {out}, and {again}", 130)
        if not main:
            return
        if only:
            whole = "run it without --only for the whole model"
            typer.echo(f"trained {', '.join(only)} in {out}; {whole}")
            return
        model = _assemble(spec, out, f"guidestar train {file}")
    more = (" --cond all" if model.classes else "") + (" --trust" if spec.code() else "")
    typer.echo(
        f"the model is in {out / spec.name}; try: guidestar sample {out / spec.name}{more} --grid"
    )


def _train_cascade(
    spec: CascadeRecipe,
    file: Path,
    out: Path,
    only: list[str] | None,
    dry: bool,
    accept_data: bool,
) -> None:
    from ..io.files import make_folder
    from ..train.cascade import train_cascade
    from ..train.dry_run import dry_run
    from ..train.loop.signals import Stop, stop_on_signals
    from ..train.progress import progress_report

    chosen = spec.chosen(only)
    make_folder(out)
    if dry:
        for stage in chosen:
            typer.echo("\n".join([f"{stage}:", *dry_run(spec.recipe(stage, out), None, warn)[0]]))
        return
    with stop_on_signals(Stop()) as stop, progress_report() as report:
        made = train_cascade(
            spec,
            out,
            report,
            only=only,
            stop=stop,
            say=warn,
            accept_data=accept_data,
            command=f"guidestar train {file}",
        )
    if stop.agreed:
        fail(f"stopped; what was trained is saved in {out}, and the same command goes on", 130)
    if made is None:
        typer.echo(f"trained {', '.join(chosen)} in {out}; the other stages are still to train")
        return
    typer.echo(
        f"the cascade is in {out / spec.name}; try: guidestar sample {out / spec.name} --grid"
    )


def _assemble(spec: Recipe, out: Path, command: str) -> Model:
    from ..train.export import assemble

    try:
        return assemble(spec, out, command=command)
    except OSError as error:
        kept = f"all parts are trained, their checkpoints in {out / 'parts'} are intact"
        raise OSError(f"{error}; {kept}, and the same command finishes the model") from error
