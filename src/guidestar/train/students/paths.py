"""Write the runs of a teacher that a trajectory distillation learns from."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...core.levels import Grid, Step, expand, inverse_or_zero
from ...core.prediction import Prediction
from ...data.identity import identify
from ...data.paths import Paths
from ...data.tensors import read_tensor_file
from ...io.files import whole_or_not
from ...sampling import get_solver, noise, trajectory
from ...sampling.geometric import shortest
from ...sampling.grids import GRIDS
from ..loop.signals import Stop
from ..loop.trainer import order
from ..objectives.objective import Progress
from ..objectives.teacher import draw_conditioning
from .stages import prepare

if TYPE_CHECKING:
    from .run import Lesson

SHARD = 256
"""Runs in one file."""
_BATCH = 64
"""Runs at a time."""
_STAGE = "paths"


def path_grid(lesson: Lesson) -> Grid:
    """Return the levels of the teacher's runs."""
    spec = lesson.recipe.student
    return GRIDS[spec.spacing(lesson.model)](lesson.teacher.schedule, spec.start)


def blank_paths(lesson: Lesson) -> Paths:
    """Return one run of zeros, which has the shape of all."""
    states = torch.zeros(1, lesson.recipe.student.start + 1, *lesson.source.shape)
    return Paths(
        states=states, source=lesson.source, rows=[0], first_seed=lesson.recipe.student.first_seed
    )


def make_paths(
    lesson: Lesson,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    stop: Stop | None = None,
    report: Callable[[str, Progress, int], None] | None = None,
) -> Paths | None:
    """Return the teacher's runs, of which those that ``out/paths`` lacks are sampled and written.

    Returns:
        The runs; None where it was stopped.

    Raises:
        ValueError: the data are a stream, or a file there is of other runs.
    """
    spec, start = lesson.recipe.student, time.monotonic()
    if lesson.source.size is None:
        raise ValueError(
            "a stream has no end, so runs cannot be conditioned on its rows; give other data"
        )
    mark, parts = _mark(lesson), []
    rows = order(0, spec.paths, lesson.source.size, lesson.recipe.seed).tolist()
    more: Any = {"source": lesson.source, "rows": rows, "first_seed": spec.first_seed}
    paths = Paths(states=torch.empty(0), **more)
    for index, first in enumerate(range(0, spec.paths, SHARD)):
        if stop is not None and stop.requested:
            return None
        runs = list(range(first, min(first + SHARD, spec.paths)))
        parts.append(_shard(lesson, paths, runs, out / _STAGE, mark, device))
        if report:
            done, seconds = runs[-1] + 1, time.monotonic() - start
            progress = Progress(
                step=index + 1, loss=0.0, norm=0.0, rate=0.0, seconds=seconds, samples=done
            )
            report(_STAGE, progress, -(-spec.paths // SHARD))
    return Paths(states=torch.cat(parts), **more)


def _shard(
    lesson: Lesson,
    paths: Paths,
    runs: list[int],
    folder: Path,
    mark: str,
    device: torch.device | str,
) -> Tensor:
    from safetensors.torch import save_file

    file = folder / f"{runs[0]:08d}.safetensors"
    if file.is_file():
        tensors, about = read_tensor_file(file)
        if about.get("made_from") != mark:
            raise ValueError(
                f"{file} holds runs of another teacher, guidance or seed; give another --out, or "
                f"delete {folder}"
            )
        if len(tensors["states"]) >= len(runs):
            return tensors["states"][: len(runs)]
    found = [
        sample_runs(lesson, paths, runs[i : i + _BATCH], device)
        for i in range(0, len(runs), _BATCH)
    ]
    states = torch.cat(found).half().cpu()
    with whole_or_not(file) as beside:
        save_file({"states": states}, beside, metadata={"made_from": mark})
    return states


def sample_runs(
    lesson: Lesson, paths: Paths, runs: list[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Return the states ``[B, n + 1, *S]`` of runs of the guided teacher."""
    spec, teacher, draw = lesson.recipe.student, lesson.teacher, paths.draw(runs)
    batch = prepare(teacher.encoder, teacher)(paths.targets(runs))
    batch["rows"] = {name: t.to(device) for name, t in batch["rows"].items()}
    grid = path_grid(lesson)
    x = noise(lesson.source.shape, grid[0], draw, device=device)
    nulls = teacher.encoder.null_rows
    conditioning = draw_conditioning(
        x, batch, nulls, draw, rate=spec.dropout, scale=spec.range_of_scale
    )

    def predict(x_t: Tensor, step: Step, state: object) -> tuple[Prediction, tuple[()]]:
        return teacher.predict(x_t, step, conditioning), ()

    solver = get_solver(spec.walker(lesson.model))
    states = [x, *(s.x for s in trajectory(predict, x, grid=grid, solver=solver, draw=draw))]
    return torch.stack(states, 1)


def choose_visits(states: Tensor, grid: Grid, steps: int) -> tuple[int, ...]:
    """Return the ``steps + 1`` levels of a grid between which runs ``[N, n + 1, *S]`` bend least.

    The error of one straight step from level i to j is that of `guidestar.sampling.geometric`, with
    the direction in which the run leaves level i.
    """
    ys = [
        states[:, i].float() * expand(inverse_or_zero(level.alpha), states[:, i].float())
        for i, level in enumerate(grid)
    ]
    rhos = [float(level.rho) for level in grid]
    cost = torch.full((len(grid), len(grid)), math.inf, dtype=torch.float64)
    for i in range(len(grid) - 1):
        slope = (ys[i + 1] - ys[i]) / (rhos[i + 1] - rhos[i])
        for j in range(i + 1, len(grid)):
            missed = (ys[i] + (rhos[j] - rhos[i]) * slope - ys[j]).flatten(1)
            cost[i, j] = missed.double().square().mean(1).sqrt().mean()
    return tuple(shortest(cost, steps))


def _mark(lesson: Lesson) -> str:
    """Return a digest of all that the runs depend on, but their number."""
    spec = lesson.recipe.student
    about = {
        "teacher": lesson.digest,
        "guidance": lesson.teacher.guidance,
        "data": identify(lesson.source),
        "solver": spec.walker(lesson.model),
        "grid": spec.spacing(lesson.model),
        "start": spec.start,
        "scale": None if spec.scale is None else ["logarithmic", *spec.scale],
        "dropout": spec.dropout,
        "seed": lesson.recipe.seed,
        "first_seed": spec.first_seed,
    }
    return hashlib.blake2b(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
