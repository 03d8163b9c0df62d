"""What a run gave, and everything that determined it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .files import make_folder
from .pictures import Row, save_png, sheet, to_pil


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
    max_rows: int | None = None
    threads: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What a run gave.

    Args:
        x: samples as the network has them, ``[B, *S]``.
        images: decoded, ``[B, C, H, W]`` in [−1, 1] for image models.
        settings: the run.
        evaluations: network evaluations of each sample.
    """

    x: Tensor
    images: Tensor
    settings: Settings
    evaluations: tuple[int, ...]

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
