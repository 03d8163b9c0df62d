"""Commands that print and run nothing: models, methods, layers, plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from ._completion import method_names, model_names
from ._options import (
    GridName,
    GuidanceFile,
    GuidanceOption,
    Negative,
    SolverName,
    Steps,
    Variant,
    check_run,
    with_file,
)
from .topics import TOPICS, look_up, suggest_topics

if TYPE_CHECKING:
    from ..model.model import Model
from .upscaling import StageOption, parse_stages


def models() -> None:
    """List the models that ship, and their variants (--variant)."""
    from ..model.shipped import SHIPPED, available
    from ..model.variants import variants_of

    for name, summary in available().items():
        typer.echo(f"{name}  {summary}")
        for variant, line in variants_of(SHIPPED / name).items():
            typer.echo(f"  --variant {variant}  {line}")


def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="A method, or another name for it.", autocompletion=method_names),
    ] = None,
) -> None:
    """List the guidances; print one in full with its BibTeX entries; find one by another name."""
    from ..guidance import METHODS

    if name is None:
        _list_methods()
    elif name in METHODS:
        _print_method(name)
    else:
        _find_methods(name)


def layers(
    folder: Annotated[str, typer.Argument(help="The folder of a pipeline of Diffusers.")],
) -> None:
    """List the layers of a pipeline that guidances can perturb, as their layers= takes them."""
    from ..diffusers.layers import list_layers

    users = {"attention": "pag, seg, sag", "cross": "nag", "block": "slg, tpg"}
    for place, kinds in list_layers(folder).items():
        for kind, names in kinds.items():
            typer.echo(f"{place}, {users[kind]}: {'none' if not names else ''}".rstrip())
            for name in names:
                typer.echo(f"  {name}")


def _list_methods() -> None:
    from ..guidance import METHODS

    for method in sorted(METHODS):
        _line(method, _summary(method))
    typer.echo("\nguidestar methods NAME prints one in full; these have other names here:\n")
    for names, home in TOPICS.items():
        _line(names, home, wide=True)


def _print_method(name: str) -> None:
    import inspect

    from ..guidance import METHODS
    from ..guidance.citations import described, papers

    about = described(METHODS[name])
    typer.echo(f"{name}({about.arguments})\n")
    typer.echo(
        "\n\n".join(
            [
                inspect.getdoc(METHODS[name]) or "",
                *(paper.bibtex() for paper in papers(METHODS[name])),
            ]
        )
    )


def _find_methods(word: str) -> None:
    from ..guidance import METHODS

    topics = look_up(word)
    hits = [m for m in sorted(METHODS) if word.lower() in _summary(m).lower()]
    if not topics and not hits:
        near = suggest_topics(word, [*METHODS, *TOPICS])
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"unknown method {word!r}{meant} (guidestar methods lists all)")
    for names, home in topics:
        _line(names, home, wide=True)
    for method in hits:
        _line(method, _summary(method))


def _summary(method: str) -> str:
    """Return what a method is and costs, and where it comes from, in a line."""
    import inspect

    from ..guidance import METHODS
    from ..guidance.citations import described

    about = described(METHODS[method])
    first = (inspect.getdoc(METHODS[method]) or "").split("\n")[0].partition(": ``")[0].rstrip(".:")
    paper = about.papers[0].arxiv or about.papers[0].url if about.papers else ""
    return ". ".join(part for part in (first, about.evaluations, paper) if part)


def _line(head: str, text: str, *, wide: bool = False) -> None:
    """Print a line of a list, wrapped to the terminal (80 columns where there is none)."""
    import shutil
    import textwrap

    width = min(100, shutil.get_terminal_size((80, 24)).columns)
    # A wide head is wrapped too; a method's name stands in a column.
    first = "" if wide else f"{head:<15} "
    after = "    " if wide else " " * 16
    typer.echo(
        textwrap.fill(
            f"{head}: {text}" if wide else text,
            width,
            initial_indent=first,
            subsequent_indent=after,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def plan(
    model: Annotated[
        str, typer.Argument(help="A shipped model or a folder.", autocompletion=model_names)
    ],
    guidance: GuidanceOption = None,
    guidance_file: GuidanceFile = None,
    negative: Negative = None,
    steps: Steps = None,
    solver: SolverName = None,
    levels: GridName = None,
    stage: StageOption = None,
    variant: Variant = None,
) -> None:
    """Print the network passes of every step, before anything runs."""
    from ..model.cascade import Cascade
    from ..model.loading import load

    check_run(guidance, solver, levels)
    options = with_file(
        guidance_file, guidance=guidance, negative=negative, steps=steps, solver=solver, grid=levels
    )
    found = cast("Model | Cascade", load(model, variant=variant))
    if isinstance(found, Cascade):
        plans = found.plan(stages=parse_stages(stage), **options)
        typer.echo("\n".join(f"{name}\n{p}" for name, p in plans.items()))
        typer.echo(f"all stages: NFE {sum(p.nfe for p in plans.values()):g} a sample")
        return
    if stage:
        raise ValueError(f"{model} is one model and has no stages; leave --stage out")
    typer.echo(str(found.plan(**options)))
