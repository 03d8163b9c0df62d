"""Command that shows what guidance does: demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._completion import model_names
from ._options import (
    Out,
)
from ._terminal import show_progress, table

if TYPE_CHECKING:
    from ..model.model import Model


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
    from ..model.folder import load
    from ..model.shipped import available

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


def _students(name: str) -> list[Model]:
    """Return the students among the variants of a model."""
    from ..model.folder import load
    from ..model.shipped import home_of
    from ..model.variants import variants_of

    found = [load(name, variant=variant) for variant in variants_of(home_of(name))]
    return [model for model in found if "student" in model.card]
