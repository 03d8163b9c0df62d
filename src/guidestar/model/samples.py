"""The samples of a run, and the settings that determined them."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from .. import __version__
from ..guidance import ExpressionError, parse
from ..io.files import make_folder
from ..io.images import SheetRow, save_png, sheet, to_pil
from ..sampling import Population, write_solver
from .request import Request


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that determines a run; pictures carry it, and ``Model.again`` repeats it.

    Args:
        model: name or folder.
        cond: condition of each sample (none for an unconditional run).
        negative: what the guidance moves away from (None: the null).
        guidance: the expression.
        seeds: one a sample.
        steps: solver steps.
        solver: the name of the solver, with settings that differ from its defaults.
        grid: the name of the grid of noise levels.
        started: whether it started from an image (which is not kept, so it cannot be repeated).
        lacking: what else it depended on that is not kept (a loss, a reward); such a run cannot be
            repeated.
        max_rows: the most rows of one network call.
        scale: of each sample, of a student that takes its guidance scale as an input.
        threads: of torch; the same threads, dtype, device and versions give the same bits.
        dtype: of the samples.
        device: where it ran.
        versions: of guidestar, torch and Python.
        weights: the digest of the model's (`guidestar.model.weights`), where a run is written to a
            folder in batches; empty elsewhere.
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
    scale: tuple[float, ...] | None = None
    threads: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)
    weights: str = ""


def settings_of(
    request: Request,
    model: str,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    lacking: Sequence[str] = (),
) -> Settings:
    """Return the settings of a run.

    Args:
        request: the run.
        model: name or folder of its model.
        device: where the model is.
        dtype: of the samples.
        lacking: what else the run depends on that a picture cannot carry.
    """
    return Settings(
        model=model,
        cond=request.names,
        negative=request.negative,
        guidance=str(request.guidance),
        seeds=request.seeds,
        steps=request.levels.steps,
        solver=write_solver(request.solver) if request.solver_is_named else repr(request.solver),
        grid=request.grid,
        started=request.start is not None,
        lacking=(*lacking, *request.lacking()),
        max_rows=request.max_rows,
        scale=request.scale,
        threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        versions={
            "guidestar": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(fits, value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_name(value: object) -> bool:
    return isinstance(value, str) or _is_int(value)


Carried = Mapping[str, Any]
"""The settings that a picture carries, read from JSON; `check_settings` checks them."""

CARRIED = ("guidance", "seeds", "negative", "scale", "steps", "solver", "grid", "max_rows")
"""The arguments of a run that a picture carries (``scale`` since there are students)."""

_FITS: dict[str, Callable[[Any], bool]] = {
    "model": lambda v: isinstance(v, str),
    "cond": lambda v: v is None or _is_list(v, _is_name),
    "negative": lambda v: v is None or _is_name(v),
    "guidance": lambda v: isinstance(v, str),
    "seeds": lambda v: _is_list(v, _is_int) and len(v) > 0,
    "steps": _is_int,
    "solver": lambda v: isinstance(v, str),
    "grid": lambda v: isinstance(v, str),
    "started": lambda v: isinstance(v, bool),
    "lacking": lambda v: _is_list(v, lambda word: isinstance(word, str)),
    "max_rows": lambda v: v is None or (_is_int(v) and v > 0),
    "scale": lambda v: v is None or _is_list(v, _is_number),
    "weights": lambda v: isinstance(v, str),
    "index": _is_int,
    "number": _is_int,
    "stride": _is_int,
}
"""Returns whether a value of the settings that a picture carries is valid."""


_PLACE = {"index": 0, "number": 0, "stride": 1}
"""The keys of a picture's place in its run, with their defaults."""

_FARTHEST = 10**9


def check_settings(settings: Carried) -> None:
    """Refuse settings that cannot be repeated.

    Raises:
        ValueError: they are not a run's, or it depended on what they lack.
    """
    missing = [k for k in ("cond", *CARRIED) if k not in settings and k != "scale"]
    if missing:
        raise ValueError(
            f"the settings lack {', '.join(missing)}; they were written by another version of "
            "guidestar"
        )
    for key, fits in _FITS.items():
        if key in settings and not fits(settings[key]):
            raise ValueError(
                f"the picture's settings are damaged: {key} cannot be {str(settings[key])[:80]!r}; "
                "give a picture as guidestar wrote it"
            )
    index, number, stride = (settings.get(n, d) for n, d in _PLACE.items())
    if not (
        0 <= index < len(settings["seeds"])
        and 1 <= stride <= _FARTHEST
        and index * stride <= number <= _FARTHEST
    ):
        raise ValueError(
            f"the picture's settings are damaged: none of {len(settings['seeds'])} has the index "
            f"{str(index)[:20]}, the number {str(number)[:20]} and the stride {str(stride)[:20]}"
        )
    check_registered(settings)
    if settings.get("started"):
        raise ValueError(
            "this run started from an image, which its settings do not carry; sample with start= "
            "again"
        )
    if settings.get("lacking"):
        raise ValueError(
            f"this run depended on {' and '.join(settings['lacking'])}, which its settings do "
            "not carry; run it again with that"
        )


def check_registered(settings: Carried) -> None:
    """Refuse a run whose guidance has a method that is not registered here.

    Raises:
        ValueError: the method is named, and what to do.
    """
    text = settings.get("guidance")
    try:
        parse(text if isinstance(text, str) else "cond")
    except ExpressionError as error:
        if not (found := re.match(r"unknown name ('\w+')", error.problem)):
            return  # what cannot be read for another reason is refused where it is
        raise ValueError(
            f"the run's guidance {text!r} has the method {found[1]}, which is not known here; "
            "import the module that registers it, then repeat the run"
        ) from None


def label_of(settings: Settings, index: int) -> str:
    """Name the condition of a sample."""
    return str(settings.cond[index]) if settings.cond else "uncond"


def file_name(settings: Settings, index: int, number: int) -> str:
    """Name the PNG file of a sample: its number, condition and seed."""
    label = re.sub(r"[^\w.-]+", "-", label_of(settings, index))[:60]
    return f"{number:04d}-{label}-seed{settings.seeds[index]}.png"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a run.

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

    def pil(self) -> list[Image]:
        """Return the images as pictures (Pillow)."""
        return to_pil(self.images)

    def save(self, folder: Path | str, numbers: Sequence[int] | None = None) -> list[Path]:
        """Write one PNG a sample, each carrying the run; return their paths.

        Args:
            folder: made if it is missing.
            numbers: what the files are numbered by; 0, 1, … by default.

        Raises:
            OSError: the folder cannot be written to.
        """
        numbers = range(len(self.x)) if numbers is None else numbers
        where, paths = make_folder(Path(folder)), []
        stride = numbers[1] - numbers[0] if len(numbers) > 1 else 1
        settings = {**asdict(self.settings), "stride": stride}
        for i, image in enumerate(self.pil()):
            path = where / file_name(self.settings, i, numbers[i])
            save_png(image, path, {**settings, "index": i, "number": numbers[i]})
            paths.append(path)
        return paths

    def label(self, index: int) -> str:
        """Name the condition of a sample."""
        return label_of(self.settings, index)

    def contact_sheet(self, columns: int = 8) -> Image:
        """Lay all samples out on one picture."""
        pictures = self.pil()
        return sheet(
            [
                SheetRow(label="", images=pictures[i : i + columns])
                for i in range(0, len(pictures), columns)
            ],
            scale=3,
        )
