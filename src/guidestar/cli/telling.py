"""Commands that tell and run nothing: models, methods, plan."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ._options import GridName, Guidance, GuidanceFile, Negative, SolverName, Steps, with_file
from ._terminal import table


def models() -> None:
    """List the models that ship."""
    from ..folder import available

    for name, summary in available().items():
        typer.echo(f"{name}  {summary}")


def methods(name: Annotated[Optional[str], typer.Argument(help="Tell all of this one.")] = None) -> None:  # noqa: UP045
    """List the guidances: formula, arguments, cost and paper; or tell all of one, with its BibTeX entries."""
    import inspect

    from ..guidance import METHODS
    from ..guidance.papers import described, papers

    if name is None:
        rows = [(n, described(m)) for n, m in sorted(METHODS.items())]
        table(("name", "formula", "arguments", "cost", "paper"), [(n, d.formula, d.arguments, d.evaluations, d.papers[0].arxiv or d.papers[0].url) for n, d in rows])
    elif name in METHODS:
        typer.echo("\n\n".join([inspect.getdoc(METHODS[name]) or "", *(paper.bibtex() for paper in papers(METHODS[name]))]))
    else:
        raise ValueError(f"unknown method {name!r}; there are {', '.join(sorted(METHODS))}")


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
    from ..folder import load

    asked = with_file(guidance_file, guidance=guidance, negative=negative, steps=steps, solver=solver, grid=levels)
    typer.echo(str(load(model).plan(**asked)))
