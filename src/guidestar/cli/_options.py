"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, TypedDict

import typer

from ._completion import grid_names, method_names, solver_names

if TYPE_CHECKING:
    from ..guidance import Guidance as Expression

Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
GuidanceOption = Annotated[
    str | None,
    typer.Option(
        "--guidance",
        autocompletion=method_names,
        help="Expression, e.g. 'cfg(3) + classifier(1)'; the model's own by default.",
    ),
]
_FILE_HELP = (
    "A guidance.toml: guidance, steps, solver, grid, negative; the options for the last "
    "four override it, and --guidance takes its place."
)
GuidanceFile = Annotated[Optional[Path], typer.Option("--guidance-file", help=_FILE_HELP)]  # noqa: UP045
Negative = Annotated[
    str | None, typer.Option("--negative", help="What cfg moves away from; '' is the null.")
]
Steps = Annotated[Optional[int], typer.Option("--steps", help="Solver steps.")]  # noqa: UP045
SolverName = Annotated[
    str | None,
    typer.Option(
        "--solver",
        autocompletion=solver_names,
        help="e.g. ddim, unipc(order=3), 'DPM++ 2M Karras'; docs/expression.md lists them.",
    ),
]
GridName = Annotated[
    str | None,
    typer.Option(
        "--levels",
        autocompletion=grid_names,
        help="How levels are spaced: uniform, log_snr, karras, leading, linspace or trailing.",
    ),
]

_SCALE_HELP = (
    "Guidance scale of a distilled student that takes it as an input: one number, or one for each "
    "sample, separated by commas."
)
ScaleOption = Annotated[str | None, typer.Option("--scale", help=_SCALE_HELP)]

_OPERATOR_HELP = (
    "The operator that made the pictures of --observe: downsample(factor=2), "
    "inpaint(mask='mask.png'), blur(deviation=2), gray or identity; with noise, e.g. "
    "gray(noise=0.05)."
)
Observe = Annotated[
    list[Path] | None,
    typer.Option(
        "--observe",
        help="A picture, or a folder of them, to restore; repeat it for several.",
    ),
]
Operator = Annotated[Optional[str], typer.Option("--operator", help=_OPERATOR_HELP)]  # noqa: UP045

Average = Annotated[
    str | None,
    typer.Option(
        "--average",
        help="Which average of the weights, where the training kept several, e.g. power-0.1.",
    ),
]
Variant = Annotated[
    str | None,
    typer.Option(
        "--variant",
        help="Another network of the model with defaults of its own, e.g. 4-step.",
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Run the code that the model's folder names for its network."),
]

_TRUST_RECIPE = "Run the code that the recipe names for its networks (module:callable)."
_ACCEPT_HELP = "Go on though samples were added, removed or changed since the checkpoint."
AcceptData = Annotated[bool, typer.Option("--accept-data", help=_ACCEPT_HELP)]
TrustRecipe = Annotated[bool, typer.Option("--trust", help=_TRUST_RECIPE)]


class RunOptions(TypedDict):
    """The options of a run that a guidance.toml may give."""

    guidance: str | None
    negative: str | None
    steps: int | None
    solver: str | None
    grid: str | None


def with_file(
    file: Path | None,
    *,
    guidance: str | None,
    negative: str | None,
    steps: int | None,
    solver: str | None,
    grid: str | None,
) -> RunOptions:
    """Take the options that were left out from a guidance.toml, if there is one.

    Raises:
        ValueError: the file cannot be read, or a guidance was given too.
    """
    given = RunOptions(guidance=guidance, negative=negative, steps=steps, solver=solver, grid=grid)
    if file is None:
        return given
    from ..diffusers.guidance_file import read_guidance

    if guidance is not None:
        raise ValueError(
            "--guidance and --guidance-file each give the guidance; leave one of them out"
        )
    found = read_guidance(file)
    return RunOptions(
        guidance=found.guidance,
        negative=found.negative if negative is None else negative,
        steps=found.steps if steps is None else steps,
        solver=found.solver if solver is None else solver,
        grid=found.grid if grid is None else grid,
    )


def parse_scales(text: str) -> tuple[float, ...]:
    """Read numbers separated by commas.

    Raises:
        ValueError: they are not numbers.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--scale {text!r}: write a number, or several separated by commas, e.g. 1,5"
        ) from None


def ready_file(out: Path) -> None:
    """Refuse a file that cannot be written, before anything is computed for it.

    Raises:
        OSError: it is a folder, or cannot be written to.
    """
    from ..io.files import make_folder

    make_folder(out.parent)
    if out.is_dir():
        raise OSError(f"cannot write {out}: it is a folder; name a file")


def check_run(
    guidance: str | None = None, solver: str | None = None, grid: str | None = None
) -> Expression | None:
    """Check a run's options before anything is loaded; return its parsed expression.

    Raises:
        ValueError: an expression that does not parse, or an unknown solver or grid.
    """
    from ..guidance import parse
    from ..sampling import get_solver
    from ..sampling.grids import GRIDS

    expression = None if guidance is None else parse(guidance)
    if solver is not None:
        get_solver(solver)
    if grid is not None and grid not in (*GRIDS, "fitted"):
        raise ValueError(f"unknown grid {grid!r}; the grids are {', '.join(GRIDS)}")
    return expression
