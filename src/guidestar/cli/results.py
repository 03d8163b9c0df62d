"""Write what a command sampled: contact sheets, curves, a last line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ._terminal import warn
from .motions import (
    write_all,
)

if TYPE_CHECKING:
    from ..model.model import Model
    from ..model.samples import Carried, Samples, Settings

ON_A_GRID = 1000
"""Pictures on a contact sheet, at most."""


def write_grid(out: Path, files: list[Path]) -> None:
    """Lay pictures out that were written, without holding all of them in memory at their full
    number.
    """
    from ..io.decoding import open_picture
    from ..io.images import SheetRow, save_png, sheet

    shown = [open_picture(file) for file in files[:ON_A_GRID]]
    if len(files) > ON_A_GRID:
        warn(f"the contact sheet shows the first {ON_A_GRID} of {len(files)} images")
    save_png(
        sheet(
            [SheetRow(label="", images=shown[i : i + 8]) for i in range(0, len(shown), 8)], scale=3
        ),
        out / "grid.png",
    )


def write_results(
    model: Model,
    samples: Samples,
    out: Path,
    grid: bool,
    rows: Sequence[int] | None = None,
    animation: str = "webp",
) -> None:
    """Write what shows all samples: of pictures that were repeated, or of other data."""
    from ..io import distributed as processes
    from ..io.images import SheetRow, save_png, sheet, to_drawings, write_tensors
    from ..model.motions import body_of_model

    pictures = samples.images.ndim == 4 and samples.images.shape[1] in (1, 3)
    rows = list(range(len(samples.x))) if rows is None else rows
    drawn = write_all(model, samples, out, rows, animation) if body_of_model(model) else ""
    everyone = processes.gather(list(zip(rows, samples.images, strict=True)))
    if not processes.is_main():
        return
    import torch

    x = torch.stack([x for _, x in everyone])
    if not pictures:
        write_tensors({"x": x}, samples.settings, out / "samples.safetensors")
    if grid or not (pictures or drawn):
        drawings = to_drawings(x[:ON_A_GRID])
        laid = [SheetRow(label="", images=drawings[i : i + 8]) for i in range(0, len(drawings), 8)]
        save_png(
            sheet(laid, scale=3 if pictures else 1),
            out / ("grid.png" if pictures else "curves.png"),
        )
    what = drawn or (
        f"{len(x)} images in {out}"
        if pictures
        else f"{len(x)} samples of {list(x.shape[1:])} in {out / 'samples.safetensors'}"
    )
    typer.echo(f"{what}: {samples.settings.guidance}, NFE {samples.nfe:g}")


def warn_of_differences(then: Carried, now: Settings) -> None:
    """Warn of what differs from the run that a picture carries."""
    names = [
        n for n in ("threads", "device", "versions") if n in then and then[n] != getattr(now, n)
    ]
    if names:
        warn(f"{', '.join(names)} differ from the first run's, so the last bits may too")
    if then.get("weights") and now.weights and then["weights"] != now.weights:
        warn("the weights of the model have changed since, so the pictures are others")
