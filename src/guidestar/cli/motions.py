"""What the command line writes of motions: an animation, and files of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..model.model import Model
    from ..model.samples import Samples

LengthOption = Annotated[
    int | None,
    typer.Option("--length", min=1, help="Frames of each motion; as many as trained by default."),
]
AnimationOption = Annotated[
    Literal["webp", "gif", "mp4"],
    typer.Option(help="How motions are drawn; mp4 needs imageio-ffmpeg."),
]
DRAWN = 16
"""Motions in an animation, at most."""


def write_all(
    model: Model, samples: Samples, out: Path, rows: Sequence[int], kind: str = "webp"
) -> str:
    """Write motions as files and an animation.

    Args:
        model: of motions.
        samples: this process's.
        out: the folder.
        rows: the numbers of these samples.
        kind: of the animation.

    Returns:
        What was written; "" in processes other than the main one.
    """
    from ..io import distributed as processes
    from ..model.motions import motions, need_body, write_motions
    from ..motion.drawing import draw_motions, write_animation

    body = need_body(model)
    write_motions(model, samples, out, rows)
    labels = [samples.label(k) for k in range(len(rows))]
    everyone = processes.gather(list(zip(rows, labels, motions(model, samples), strict=True)))
    if not processes.is_main():
        return ""
    shown = everyone[:DRAWN]
    frames = draw_motions(
        [body.joints(x) for _, _, x in shown],
        body.format.skeleton,
        labels=[f"{number}: {label}" for number, label, _ in shown],
    )
    write_animation(frames, out / f"motion.{kind}", body.rate)
    more = f" (the first {DRAWN})" if len(everyone) > DRAWN else ""
    return f"{len(everyone)} motions in {out}, drawn in {out / f'motion.{kind}'}{more}"
