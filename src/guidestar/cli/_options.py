"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
Guidance = Annotated[Optional[str], typer.Option("--guidance", help="Expression, e.g. 'cfg(3) + classifier(1)'; the model's own by default.")]  # noqa: UP045
_FILE_HELP = "A guidance.toml: guidance, steps, solver, grid, negative; the options for the last four override it, and --guidance takes its place."
GuidanceFile = Annotated[Optional[Path], typer.Option("--guidance-file", help=_FILE_HELP)]  # noqa: UP045
Negative = Annotated[Optional[str], typer.Option("--negative", help="What cfg moves away from; '' is the null.")]  # noqa: UP045
Steps = Annotated[Optional[int], typer.Option("--steps", help="Solver steps.")]  # noqa: UP045
SolverName = Annotated[Optional[str], typer.Option("--solver", help="ddim, ddpm, dpmpp-2m, sde-dpmpp-2m or heun.")]  # noqa: UP045
GridName = Annotated[Optional[str], typer.Option("--levels", help="How levels are spaced: uniform, log_snr, karras, leading, linspace or trailing.")]  # noqa: UP045

_OPERATOR_HELP = "What --observe shows: downsample(factor=2), inpaint(mask='mask.png'), blur(deviation=2), gray or identity; with noise, e.g. gray(noise=0.05)."
Observe = Annotated[Optional[list[Path]], typer.Option("--observe", help="A picture, or a folder of them, to find the whole of; several times for several.")]  # noqa: UP045
Operator = Annotated[Optional[str], typer.Option("--operator", help=_OPERATOR_HELP)]  # noqa: UP045

Average = Annotated[Optional[str], typer.Option("--average", help="Which average of the weights, where the training kept several, e.g. power-0.1.")]  # noqa: UP045
Trust = Annotated[bool, typer.Option("--trust", help="Run the code that the model's folder names for its network.")]

_TRUST_RECIPE = "Run the code that the recipe names for its networks (module:callable)."
_ACCEPT_HELP = "Go on though samples were added, removed or changed since the checkpoint."
AcceptData = Annotated[bool, typer.Option("--accept-data", help=_ACCEPT_HELP)]
TrustRecipe = Annotated[bool, typer.Option("--trust", help=_TRUST_RECIPE)]


def with_file(file: Path | None, **given: Any) -> dict[str, Any]:
    """Fill up what was not given from a guidance.toml."""
    if file is None:
        return given
    from ..bridge.recipe import read

    if given.get("guidance") is not None:
        raise ValueError("give --guidance or --guidance-file, not both")
    found = read(file)
    return {key: getattr(found, key) if value is None else value for key, value in given.items()}
