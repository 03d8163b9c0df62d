"""The command that measures: evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ._completion import method_names, model_names
from ._options import (
    Average,
    GridName,
    SolverName,
    Steps,
    Trust,
    Variant,
    check_run,
    ready_file,
)
from ._terminal import show_progress, table
from .upscaling import StageOption, parse_stages


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A class or motion model with a judge, or a text model.",
            autocompletion=model_names,
        ),
    ],
    guidance: Annotated[
        list[str],
        typer.Option(
            "--guidance",
            autocompletion=method_names,
            help="Expression; several times for several.",
        ),
    ],
    seeds: Annotated[
        str,
        typer.Option(
            help="First and last seed, e.g. 0-999; classes in turn, prompts evenly spread over "
            "the data."
        ),
    ] = "0-999",
    steps: Steps = None,
    solver: SolverName = None,
    levels: GridName = None,
    data: Annotated[Optional[Path], typer.Option(help="Folder of the reference images.")] = None,  # noqa: UP045
    out: Annotated[Path | None, typer.Option(help="Also write the rows to this JSON file.")] = None,
    stage: StageOption = None,
    average: Average = None,
    variant: Variant = None,
    trust: Trust = False,
) -> None:
    """Measure guidances: judge accuracy, Fréchet distance, diversity, NFE and seconds; of a text
    model, how an independent CLIP ranks the prompts; of motions, how feet slide and joints shake.
    """
    import json
    from functools import partial

    from ..apps.measure import measure
    from ..apps.measure_motion import measure_motions
    from ..apps.measure_text import measure_text
    from ..io.distributed import is_main
    from ..io.images import write_text
    from ..model.cascade import Cascade
    from ..model.loading import load
    from ..model.motions import body_of_model

    for expression in guidance:
        check_run(expression, solver, levels)
    span, stages = _span(seeds), parse_stages(stage)
    if out:
        ready_file(out)
    with show_progress("measuring") as watch:
        chosen: Any = load(model, average=average, variant=variant, trust=trust)
        if isinstance(chosen, Cascade):
            if chosen.takes_prompts:
                raise ValueError(
                    f"{model} is a cascade of prompts, which are measured by stage; give the "
                    "folder of a stage"
                )
            chosen = chosen.with_stages(stages)
        elif stages:
            raise ValueError(f"{model} is one model and has no stages; leave --stage out")
        moves = not isinstance(chosen, Cascade) and body_of_model(chosen) is not None
        by_text = partial(measure_text, count=len(span), seed=span[0])
        by_class = partial(measure_motions if moves else measure, seeds=span)
        run: Any = by_text if chosen.takes_prompts and not moves else by_class
        rows = list(
            run(
                chosen,
                guidance,
                steps=steps,
                solver=solver,
                grid=levels,
                data=data,
                watch=watch,
            )
        )
    if not is_main():
        return
    if moves:
        table(_MOTION, [_motion_cells(row) for row in rows])
    elif chosen.takes_prompts:
        table(
            ("guidance", "top 1", "top 5", "score", "Fréchet", "nearest", "NFE", "seconds"),
            [_text_cells(row) for row in rows],
        )
    else:
        table(
            ("guidance", "accuracy", "Fréchet", "diversity", "shares", "NFE", "seconds"),
            [_cells(row) for row in rows],
        )
    if out:
        write_text(json.dumps(rows, indent=2) + "\n", out)


Measured = Mapping[str, Any]
"""Figures of a measurement by name: numbers, and lists of them."""


def _cells(row: Measured) -> tuple[str, ...]:
    shares = f"{min(row['shares']):.1%}-{max(row['shares']):.1%}"
    return (
        row["guidance"],
        f"{row['accuracy']:.2%}",
        f"{row['frechet']:.3f}",
        f"{row['diversity']:.3f}",
        shares,
        f"{row['nfe']:g}",
        f"{row['seconds']:.1f}",
    )


_MOTION = (
    *("guidance", "accuracy", "FID", "diversity", "multimodality", "skating", "jerk", "floor"),
    *("NFE", "seconds"),
)


def _motion_cells(row: Measured) -> tuple[str, ...]:
    return (
        row["guidance"],
        f"{row['accuracy']:.2%}",
        f"{row['fid']:.3f}",
        f"{row['diversity']:.2f}",
        f"{row['multimodality']:.2f}",
        f"{row['foot_skating']:.3f}",
        f"{row['jerk']:.1f}",
        f"{row['floor']:.3f}",
        f"{row['nfe']:g}",
        f"{row['seconds']:.1f}",
    )


def _text_cells(row: Measured) -> tuple[str, ...]:
    return (
        row["guidance"],
        f"{row['top 1']:.1%}",
        f"{row['top 5']:.1%}",
        f"{row['score']:.3f}",
        f"{row['frechet']:.3f}",
        f"{row['nearest']:.3f}",
        f"{row['nfe']:g}",
        f"{row['seconds']:.1f}",
    )


def _span(text: str) -> range:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise ValueError(f"--seeds must be a first and a last seed, e.g. 0-999, not {text!r}")
    return range(int(first), int(last) + 1)
