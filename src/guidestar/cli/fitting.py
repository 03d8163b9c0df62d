"""The command that fits a grid of noise levels to a model: grid."""

from __future__ import annotations

from typing import Annotated

import typer

from ._completion import model_names
from ._options import GuidanceOption, check_run


def grid(
    model: Annotated[
        str, typer.Argument(help="A shipped model or a folder.", autocompletion=model_names)
    ],
    steps: Annotated[
        list[int], typer.Option("--steps", help="Step count; several times for several.")
    ],
    guidance: GuidanceOption = None,
    samples: Annotated[int, typer.Option(min=1, max=10_000, help="Trajectories to fit to.")] = 20,
    fine: Annotated[int, typer.Option(min=4, max=1000, help="Levels to choose from.")] = 40,
    write: Annotated[bool, typer.Option("--write", help="Keep the grids in the card.")] = False,
) -> None:
    """Fit noise levels to a model: print them, and with --write keep them in its folder, where they
    are the default for their step counts.
    """
    from pathlib import Path

    from ..model.fitted import fit_grids, store
    from ..model.folder import load

    check_run(guidance)
    if bad := [n for n in steps if not 1 <= n < fine]:
        raise ValueError(f"--steps must be from 1 to {fine - 1} (below --fine), not {bad[0]}")
    folder = Path(model)
    if write and not (folder / "guidestar.json").is_file():
        raise ValueError(
            f"--write needs a model's folder with a guidestar.json, which {model} is not"
        )
    found = fit_grids(load(model), steps, guidance=guidance, samples=samples, fine=fine)
    for count, rhos in found.items():
        typer.echo(f"{count} steps: {', '.join(f'{r:.4g}' for r in rhos)}")
    if write:
        store(folder, found)
