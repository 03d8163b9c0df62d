"""Command that draws a strip or an animation: strip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ._completion import model_names
from ._options import (
    GuidanceOption,
    Steps,
    check_run,
    ready_file,
)
from ._terminal import show_progress

if TYPE_CHECKING:
    pass


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
