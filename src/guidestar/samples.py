"""What a run gave, and everything that determined it."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .files import make_folder
from .guidance import ExpressionError, Guidance, losses_of, parse
from .levels import Grid
from .naming import names_of
from .pictures import Row, save_png, sheet, to_pil
from .sampling import SOLVERS, Population, Solver


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that determines a run; pictures carry it, and ``Model.again`` repeats it.

    Args:
        model: name or folder.
        cond: condition of each sample (none for an unconditional run).
        negative: what the guidance moves away from (None: the null).
        guidance: the expression.
        seeds: one a sample.
        steps, solver, grid: how the run goes.
        started: whether it started from an image (which is not kept, so it cannot be repeated).
        lacking: on what else it depended that is not kept (a loss, a reward), so that it cannot be repeated.
        max_rows: the most rows of one network call.
        threads, dtype, device, versions: where it ran; the same ones give the same bits.
    """

    model: str
    cond: tuple[str | int, ...] | None
    negative: str | int | None
    guidance: str
    seeds: tuple[int, ...]
    steps: int
    solver: str
    grid: str
    started: bool = False
    lacking: tuple[str, ...] = ()
    max_rows: int | None = None
    threads: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)


def settings_of(model: Any, run: Mapping[str, Any], solver: Solver, x: Tensor, steps: int, lacking: Sequence[str] = ()) -> Settings:
    """Return the settings of a run.

    Args:
        model: a `Model`.
        run: the arguments of its ``sample``.
        solver: as it was made of them.
        x: the samples.
        steps: how many there were.
        lacking: on what it depended that is not kept, beside losses and functions of its expression.
    """
    plain = solver.name in SOLVERS and solver == SOLVERS[solver.name]()
    names = names_of(model, run["cond"], len(run["seeds"]), note=False)
    guidance = model.expression(run["guidance"], conditional=names is not None)
    return Settings(
        model=model.name,
        cond=names,
        negative=run["negative"],
        guidance=str(guidance),
        seeds=tuple(int(s) for s in run["seeds"]),
        steps=steps,
        solver=solver.name if plain else repr(solver),
        grid="custom" if isinstance(run["grid"], Grid) else run["grid"] or model.defaults.get("grid", "log_snr"),
        started=run.get("start") is not None,
        lacking=(*lacking, *_not_kept(guidance), *(() if plain else ("the solver it was given in Python",))),
        max_rows=run["max_rows"],
        threads=torch.get_num_threads(),
        dtype=str(x.dtype).removeprefix("torch."),
        device=str(model.device),
        versions={"guidestar": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )


def arguments_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``Model.sample`` that repeat the run of these settings.

    Raises:
        ValueError: they are not a run's, or it depended on what they lack.
    """
    keys = ("cond", "guidance", "seeds", "negative", "steps", "solver", "grid", "max_rows")
    missing = [k for k in keys if k not in settings]
    if missing:
        raise ValueError(f"the settings lack {', '.join(missing)}; they were written by another version of guidestar")
    if settings.get("started"):
        raise ValueError("this run started from an image, which its settings do not carry; sample with start= again")
    if settings.get("lacking"):
        raise ValueError(f"this run depended on {' and '.join(settings['lacking'])}, which its settings do not carry; run it again with that")
    return {k: settings[k] for k in keys}


def _not_kept(guidance: Guidance) -> tuple[str, ...]:
    """Tell what of an expression its text does not carry: losses, and functions or tensors in its arguments."""
    losses = tuple(f"the loss {name!r}" for name in losses_of(guidance))
    try:
        parse(str(guidance))
    except ExpressionError:
        return (*losses, "what its guidance was given in Python")
    return losses


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What a run gave.

    Args:
        x: samples as the network has them, ``[B, *S]``.
        images: decoded, ``[B, C, H, W]`` in [−1, 1] for image models.
        settings: the run.
        evaluations: network evaluations of each sample.
        population: all particles, where samples are the best of several (`Model.steer`).
    """

    x: Tensor
    images: Tensor
    settings: Settings
    evaluations: tuple[int, ...]
    population: Population | None = None

    @property
    def nfe(self) -> float:
        """Network evaluations of a sample (the mean, where samples differ)."""
        return sum(self.evaluations) / len(self.evaluations)

    def pil(self) -> list[Any]:
        """Return the images as pictures (Pillow)."""
        return to_pil(self.images)

    def save(self, folder: Path | str, numbers: Sequence[int] | None = None) -> list[Path]:
        """Write one PNG a sample, each carrying the whole run; return their paths.

        Args:
            folder: made if it is missing.
            numbers: what the files are numbered by; 0, 1, … by default.

        Raises:
            OSError: the folder cannot be written to.
        """
        where, paths = make_folder(Path(folder)), []
        for i, image in enumerate(self.pil()):
            label = re.sub(r"[^\w.-]+", "-", self.label(i))[:60]
            name = f"{i if numbers is None else numbers[i]:04d}-{label}-seed{self.settings.seeds[i]}.png"
            save_png(image, where / name, {**asdict(self.settings), "index": i})
            paths.append(where / name)
        return paths

    def label(self, index: int) -> str:
        """Name the condition of a sample."""
        return str(self.settings.cond[index]) if self.settings.cond else "uncond"

    def contact_sheet(self, columns: int = 8) -> Any:
        """Lay all samples out on one picture."""
        pictures = self.pil()
        return sheet([Row(label="", images=pictures[i : i + columns]) for i in range(0, len(pictures), columns)], scale=3)
