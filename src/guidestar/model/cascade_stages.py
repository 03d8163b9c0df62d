"""How the stages of a cascade sample, and what they gave."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from PIL.Image import Image
from torch import Tensor

from ..guidance import Guidance
from ..guidance.term import Direction
from ..io.documents import JSONObject
from ..io.files import make_folder
from ..io.images import save_png, to_pil
from ..sampling import Solver
from .samples import Samples, file_name


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """How one stage of a cascade samples; what is None is the stage's own default.

    Args:
        guidance: an expression.
        steps: of the solver.
        solver: by name, or made in Python.
        grid: of noise levels, by name.
        augmentation: level of the noise in the smaller picture; not of the base.
        seeds: one a sample; by default made of the cascade's seed and the stage's name.
        negative: what cfg moves away from.
    """

    guidance: str | Guidance | Direction | None = None
    steps: int | None = None
    solver: str | Solver | None = None
    grid: str | None = None
    augmentation: float | None = None
    seeds: tuple[int, ...] | None = None
    negative: str | None = None


def stage_seed(seed: int, stage: str) -> int:
    """Return a stage's seed for a sample of a cascade: 48 bits of a hash of both."""
    key = hashlib.blake2b(f"{seed}/{stage}".encode(), digest_size=6).digest()
    return int.from_bytes(key, "big")


@dataclass(frozen=True, kw_only=True)
class CascadeSamples:
    """The samples of a cascade.

    Args:
        stages: of each stage, by its name, in order.
        settings: all that determines the run, as its pictures carry it.
    """

    stages: Mapping[str, Samples]
    settings: JSONObject

    @property
    def last(self) -> Samples:
        """Samples of the last stage."""
        return list(self.stages.values())[-1]

    @property
    def images(self) -> Tensor:
        """Pictures of the last stage, ``[B, C, H, W]`` in [−1, 1]."""
        return self.last.images

    @property
    def nfe(self) -> float:
        """Network evaluations of a sample, over all stages."""
        return sum(s.nfe for s in self.stages.values())

    def pil(self) -> list[Image]:
        """Return the pictures of the last stage (Pillow)."""
        return to_pil(self.images)

    def save(self, folder: Path | str, first: int = 0) -> list[Path]:
        """Write one PNG a sample, each carrying the run; return their paths.

        Args:
            folder: made if it is missing.
            first: number of the first file.
        """
        where, paths = make_folder(Path(folder)), []
        named = replace(self.last.settings, seeds=tuple(self.settings["seeds"]))
        for i, image in enumerate(self.pil()):
            paths.append(where / file_name(named, i, first + i))
            save_png(image, paths[-1], {**self.settings, "index": i, "number": first + i})
        return paths


def asdict_shallow(settings: StageSettings) -> JSONObject:
    """Return the fields by name, as they are."""
    return dict(vars(settings))
