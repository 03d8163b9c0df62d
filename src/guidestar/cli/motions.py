"""What the command line writes of motions: an animation, and files of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..model.model import Model
    from ..model.samples import Samples
    from ..sampling import Solver

LengthOption = Annotated[
    int | None,
    typer.Option("--length", min=1, help="Frames of each motion; as many as trained by default."),
]
OverlapOption = Annotated[
    int | None,
    typer.Option(
        min=0, help="Frames that windows share, where --length is above what was trained."
    ),
]
AnimationOption = Annotated[
    Literal["webp", "gif", "mp4"],
    typer.Option(help="How motions are drawn; mp4 needs imageio-ffmpeg."),
]
KeepOption = Annotated[
    Path | None,
    typer.Option(help="A BVH file, of which frames or joints are kept and the others sampled."),
]
KeepFrames = Annotated[
    str | None, typer.Option(help="Frames of --keep, as 0-9,50-59 (in-betweening); else all.")
]
KeepJoints = Annotated[
    str | None, typer.Option(help="Joints of --keep, as Hips,Leg_L,Leg_R; else all.")
]
DRAWN = 16
"""Motions in an animation, at most."""


def of_length(
    model: Model, names: Sequence[str] | None, num: int, length: int | None, overlap: int | None
) -> tuple[Model, list[str] | None]:
    """Return the model and the conditions of samples of a length.

    Args:
        model: of motions, where there is a length.
        names: the other conditions; None for ``num`` samples without any.
        num: number of samples without conditions.
        length: in frames; None for that of the training.
        overlap: of windows, where the length is above that of the training.

    Raises:
        ValueError: an overlap without a length, or as `with_length` and `lengthen`.
    """
    from ..model.motions import lengthen, with_length

    kept = None if names is None else list(names)
    if overlap is not None:
        if length is None:
            raise ValueError("--overlap goes with --length, of more frames than were trained")
        return lengthen(model, length, overlap), kept
    return model, kept if length is None else with_length(model, kept or [""] * num, length)


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
    labels = {row: f": {samples.label(k)}" for k, row in enumerate(rows)}  # of this process
    everyone = processes.gather(list(zip(rows, motions(model, samples), strict=True)))
    if not processes.is_main():
        return ""
    shown = everyone[:DRAWN]
    frames = draw_motions(
        [body.joints(x) for _, x in shown],
        body.format.skeleton,
        labels=[f"{number}{labels.get(number, '')}" for number, _ in shown],
    )
    write_animation(frames, out / f"motion.{kind}", body.rate)
    more = f" (the first {DRAWN})" if len(everyone) > DRAWN else ""
    return f"{len(everyone)} motions in {out}, drawn in {out / f'motion.{kind}'}{more}"


def keeping(
    model: Model, clip: Path | None, frames: str | None, joints: str | None, solver: str | None
) -> Solver | str | None:
    """Return the solver of a run that keeps a part of a clip; as given without one.

    Args:
        model: of motions.
        clip: the file.
        frames: numbers and ranges, as "0-9,50-59".
        joints: names, parted by commas.
        solver: the name of the solver that takes the steps.

    Raises:
        ValueError: frames or joints without a clip, or none of the two; or as
            `guidestar.model.motion_editing.keep`.
    """
    if clip is None and (frames or joints):
        raise ValueError("--keep-frames and --keep-joints are of a clip; give it with --keep")
    if clip is None:
        return solver
    if not (frames or joints):
        raise ValueError(
            "--keep with all frames and joints leaves nothing to sample; give --keep-frames, as "
            "0-9,50-59, or --keep-joints"
        )
    from ..model.motion_editing import keep
    from ..sampling import get_solver

    return keep(
        model,
        clip,
        frames=None if frames is None else read_frames(frames),
        joints=None if joints is None else [name.strip() for name in joints.split(",")],
        solver=None if solver is None else get_solver(solver),
    )


def read_frames(text: str) -> list[int]:
    """Read numbers and ranges of frames, as "0-9,50-59".

    Raises:
        ValueError: it cannot be read.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(
                f"--keep-frames {text!r} cannot be read at {part.strip()!r}; write numbers and "
                "ranges, as 0-9,50-59"
            )
        found += range(int(first), int(last or first) + 1)
    return found
