"""The command that enlarges pictures: upscale; and what commands share of cascades."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._completion import model_names
from ._options import GuidanceOption, Negative, Out, SolverName, Steps, Trust, check_run
from ._terminal import show_progress

if TYPE_CHECKING:
    from ..model.cascade_stages import StageSettings

StageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--stage",
        help="A setting of one stage of a cascade, e.g. large:augmentation=0.2, base:steps=10 or "
        "'large:guidance=cfg(1)'; repeat it for several.",
    ),
]


def parse_stages(given: list[str] | None) -> dict[str, StageSettings]:
    """Read settings of stages, ``NAME:KEY=VALUE``.

    Raises:
        ValueError: one is not written so, an unknown key, or no number where one should be.
    """
    from ..model.cascade_stages import StageSettings

    kinds = {"guidance": str, "steps": int, "solver": str, "augmentation": float, "negative": str}
    found: dict[str, StageSettings] = {}
    for text in given or ():
        name, colon, rest = text.partition(":")
        key, equals, value = rest.partition("=")
        if not colon or not equals or key not in kinds:
            raise ValueError(
                f"--stage {text!r} should be NAME:KEY=VALUE, e.g. large:augmentation=0.2; the keys "
                f"are {', '.join(kinds)}"
            )
        try:
            settings = replace(found.get(name, StageSettings()), **{key: kinds[key](value)})
        except ValueError:
            raise ValueError(f"--stage {text!r}: {key} must be a number") from None
        found[name] = settings
        check_run(value if key == "guidance" else None, value if key == "solver" else None)
    return found


def upscale(
    model: Annotated[
        str,
        typer.Argument(
            help="A super-resolution model: a stage's folder.", autocompletion=model_names
        ),
    ],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures of the size that it enlarges.")],
    cond: Annotated[
        str | None, typer.Option("--cond", help="Class or prompt, if the model takes one.")
    ] = None,
    augmentation: Annotated[
        float | None,
        typer.Option(help="Noise in the picture, from 0 to the largest of training (0.1)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first picture; the others follow.")] = 0,
    guidance: GuidanceOption = None,
    negative: Negative = None,
    steps: Steps = None,
    solver: SolverName = None,
    trust: Trust = False,
    out: Out = Path("out/upscaled"),
) -> None:
    """Enlarge pictures of your own by a super-resolution model, as PNG files."""
    import torch

    from ..io.files import make_folder
    from ..model.folder import load
    from ..model.upscaling import need_low
    from ..model.upscaling import upscale as run

    check_run(guidance, solver)
    chosen = load(model, trust=trust)
    low = need_low(chosen)
    x = torch.stack([_read(path, low.channels, low.size) for path in pictures])
    make_folder(out)
    with show_progress("enlarging") as watch:
        samples = run(
            chosen,
            x,
            cond,
            augmentation=augmentation,
            guidance=guidance,
            seeds=[seed + i for i in range(len(x))],
            negative=negative,
            steps=steps,
            solver=solver,
            watch=watch,
        )
    samples.save(out)
    typer.echo(f"{len(x)} images in {out}: {samples.settings.guidance}, NFE {samples.nfe:g}")


def _read(path: Path, channels: int, size: int):
    """Read a picture as ``[C, size, size]`` in [−1, 1].

    Raises:
        ValueError: it cannot be read, or is of another size.
    """
    import numpy
    import torch

    from ..io.decoding import open_picture

    with open_picture(path) as picture:
        if picture.size != (size, size):
            width, height = picture.size
            raise ValueError(
                f"{path} has {width} x {height} pixels, and this model enlarges {size} x {size}; "
                "resize it first"
            )
        pixels = torch.from_numpy(numpy.array(picture.convert("L" if channels == 1 else "RGB")))
    x = pixels.float() / 127.5 - 1
    return x[None] if channels == 1 else x.movedim(-1, 0)
