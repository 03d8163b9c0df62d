"""Commands that make data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ._terminal import show_progress

datasets = typer.Typer(help="Make data sets to try things on.", no_args_is_help=True)


@datasets.callback()
def _datasets() -> None:
    """Make data sets to try things on."""


@datasets.command("emoji")
def emoji_folders(
    out: Annotated[
        Path, typer.Option("--out", help="A new folder, for one to train on and two to measure on.")
    ],
    packages: Annotated[
        Path | None,
        typer.Option(
            help="Folder of npm's packages, or to keep them in; fetched by npm where they are "
            "missing."
        ),
    ] = None,
    size: Annotated[int, typer.Option(min=16, max=256, help="Pixels of a side.")] = 64,
) -> None:
    """Draw emoji of seven styles with captions, from packages whose licences allow it (needs npm,
    and pip install resvg-py).
    """
    from ..data.emoji import build_emoji

    with show_progress("drawing") as watch:
        counts = build_emoji(out, packages=packages, size=size, watch=watch)
    typer.echo(
        f"{', '.join(f'{n:,} pictures in {out / part}' for part, n in counts.items())}; try: "
        f"guidestar train recipes/emoji.toml --data {out / 'train'}"
    )


@datasets.command("fashion-mnist")
def fashion_folders(
    out: Annotated[
        Path, typer.Option("--out", help="A new folder, for one sub-folder of PNG files a class.")
    ],
    each: Annotated[int, typer.Option(min=1, max=6000, help="Pictures of each class.")] = 600,
    data: Annotated[Optional[Path], typer.Option(help="Folder of the four IDX files.")] = None,  # noqa: UP045
) -> None:
    """Write Fashion-MNIST as a folder of pictures, one sub-folder a class."""
    from ..data.fashion_mnist import write_folders

    typer.echo(
        f"{write_folders(out, each=each, folder=data)} pictures in {out}; try: guidestar recipe "
        f"{out}"
    )
