"""Recipes of distillations: which teacher, which guidance, how many steps."""

from __future__ import annotations

import tomllib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from ...guidance import ExpressionError, parse
from ...io.files import check_name
from ...sampling.grids import GRIDS
from ..objectives.teacher import takes_scale, with_scale
from ..recipe.parts import Training
from ..recipe.schema import BESIDE, explain
from ..recipe.strict import Rate, StepCount, Strict
from ..recipe.tables import Data

if TYPE_CHECKING:
    from ...model.model import Model

StepIndex = Annotated[int, Field(ge=0, le=10_000)]

Scales = Annotated[
    tuple[Annotated[float, Field(ge=-100, le=100)], ...],
    Field(min_length=2, max_length=2, strict=False),
]


class Student(Strict):
    """What a student learns.

    Args:
        teacher: a model, by name or folder.
        guidance: the expression; ``w`` in it is the scale, an input of the student. By default
            the teacher's own.
        scale: smallest and largest w.
        method: "guided" (one pass for what guidance takes several), "trajectory" (few steps, from
            runs of the teacher's own sampler), "progressive" (halve the steps again and again),
            "consistency" (few steps at once), "meanflow" (steps of any length, from average
            velocities) or "matching" (mend the distribution of a student's samples).
        steps: of the student's sampling.
        start: steps of the teacher: of "progressive", ``steps`` times a power of two; of
            "trajectory", any number of at least ``steps``.
        grid: of the sampling; of "progressive" its levels must nest when the steps are halved. By
            default "uniform"; of "trajectory", the teacher's own.
        solver: of the teacher's runs, of "trajectory"; by default the teacher's own.
        paths: how many runs, of "trajectory".
        first_seed: of the runs, of "trajectory", which take one seed each; by default far from
            those that one samples and measures with.
        visits: which of the teacher's levels the student visits, of "trajectory", from 0 to
            ``start``; by default those between which the runs bend least.
        before: falling step counts, of "trajectory": of students that are trained before, each the
            start of the next.
        dropout: share of samples that are unconditional, so that the student can be guided on.
        weighting: of "progressive": "truncated" (max(SNR, 1)) or "snr+1".
        begin: the student that "matching" mends, by name or folder; it is of ``steps`` steps.
        lead: share of a "matching" training in which the student stands still, while the network
            that denoises its samples learns.
        through: how many of the student's last steps carry the gradient, of "matching".
        finest: steps of the grid at the end of a "consistency" training; of the grid of whose
            levels a "meanflow" student learns the steps.
        rank: the student differs from its teacher by matrices of this rank, so that its file is
            small (`guidestar.networks.low_rank`); without it, in every number.
        width: share of the teacher's channels, of a student whose U-Net is narrower and learns from
            fresh weights; without it, it starts as the teacher.
        first: a stage "guided" before the halvings of "progressive".
        train: of each stage.
    """

    teacher: str
    guidance: str | None = None
    scale: Scales | None = None
    method: Literal[
        "guided", "trajectory", "progressive", "consistency", "meanflow", "matching"
    ] = "progressive"
    steps: StepCount = 4
    start: StepCount = 16
    grid: str | None = None
    solver: str | None = None
    paths: Annotated[int, Field(ge=1, le=100_000_000)] = 4096
    first_seed: Annotated[int, Field(ge=0, lt=2**62)] = 10**12
    visits: Annotated[tuple[StepIndex, ...], Field(strict=False)] | None = None
    before: Annotated[tuple[StepCount, ...], Field(strict=False)] = ()
    dropout: Rate = 0.1
    weighting: Literal["truncated", "snr+1"] = "truncated"
    begin: str | None = None
    lead: Rate = 0.15
    through: StepCount = 2
    finest: StepCount = 64
    rank: Annotated[int, Field(ge=1, le=100_000)] | None = None
    width: Annotated[float, Field(gt=0, lt=1)] | None = None
    first: Training | None = None
    train: Training

    @model_validator(mode="after")
    def _check(self) -> Student:
        if self.grid is not None and self.grid not in GRIDS:
            raise ValueError(f"unknown grid {self.grid!r}; the grids are {', '.join(GRIDS)}")
        if self.guidance is not None:
            _check_guidance(self.guidance, self.scale)
        if self.method == "progressive":
            _check_halvings(self.steps, self.start)
        if self.method == "trajectory":
            self._check_trajectory()
        elif self.solver or self.visits or self.before:
            raise ValueError("solver, visits and before are for method 'trajectory'")
        if self.first is not None and self.method != "progressive":
            raise ValueError("first is a stage before the halvings of method 'progressive'")
        if self.width is not None and (self.rank is not None or self.begin is not None):
            raise ValueError(
                "width is of a student with a network of its own; leave rank and begin out"
            )
        self._check_matching()
        if self.method in ("consistency", "meanflow") and self.finest < self.steps:
            raise ValueError(
                f"finest ({self.finest}) must be at least the student's steps ({self.steps})"
            )
        return self

    def _check_trajectory(self) -> None:
        counts = (self.start + 1, *self.before, self.steps)
        if any(a <= b for a, b in pairwise(counts)):
            raise ValueError(
                f"the steps of students must fall, from at most the teacher's {self.start}, not "
                f"{', '.join(map(str, counts[1:]))}"
            )
        if self.visits is not None and len(self.visits) != self.steps + 1:
            raise ValueError(
                f"a student of {self.steps} steps visits {self.steps + 1} levels, not "
                f"{len(self.visits)}; correct visits"
            )

    def _check_matching(self) -> None:
        if (self.method == "matching") != (self.begin is not None):
            raise ValueError(
                "begin is the student of few steps that method 'matching' mends; the two go "
                "together"
            )
        if self.method != "matching":
            return
        if self.scale is not None or self.rank is not None:
            raise ValueError(
                "method 'matching' mends a student of one guidance in all its weights; leave scale "
                "and rank out"
            )
        if self.through > self.steps:
            raise ValueError(
                f"through must be at most the student's {self.steps} steps, not {self.through}"
            )

    @property
    def range_of_scale(self) -> tuple[float, float] | None:
        """Smallest and largest w."""
        return None if self.scale is None else (self.scale[0], self.scale[1])

    def spacing(self, model: Model) -> str:
        """Name the grid, of a teacher where none is given."""
        if self.grid is not None:
            return self.grid
        own = str(model.defaults.get("grid", "log_snr"))
        return own if self.method == "trajectory" else "uniform"

    def walker(self, model: Model) -> str:
        """Name the solver of the teacher's runs."""
        return self.solver or str(model.defaults.get("solver", "dpmpp-2m"))

    def stages(self) -> list[tuple[str, int]]:
        """Name the stages in their order, each with the steps of its student's sampling."""
        if self.method == "trajectory":
            return [(f"student-{steps}", steps) for steps in (*self.before, self.steps)]
        if self.method != "progressive":
            return [(self.method, self.steps)]
        halvings, steps = [], self.start // 2
        while steps >= self.steps:
            halvings.append((f"student-{steps}", steps))
            steps //= 2
        return [("guided", self.start)] * (self.first is not None) + halvings


def _check_guidance(guidance: str, scale: tuple[float, ...] | None) -> None:
    if takes_scale(guidance) and scale is None:
        raise ValueError(
            f"guidance {guidance!r} leaves its scale w open; give the range of the student, "
            "e.g. scale = [1, 5]"
        )
    if scale is not None and not takes_scale(guidance):
        raise ValueError(
            f"scale is the range of w, and guidance {guidance!r} holds no w; write e.g. cfg(w)"
        )
    if scale is not None and not scale[0] < scale[1]:
        raise ValueError(f"scale must be a range [low, high], not {list(scale)}")
    try:
        parse(with_scale(guidance, 1.0))
    except ExpressionError as error:
        raise ValueError(f"guidance: {error}") from error


def _check_halvings(steps: int, start: int) -> None:
    times, rest = divmod(start, steps)
    if start <= steps:
        raise ValueError(
            f"a student of {steps} steps needs a teacher of more steps, not of {start}; set start"
        )
    if rest or times & (times - 1):
        raise ValueError(
            f"{start} steps cannot be halved to {steps}; start must be {steps} times a power of "
            f"two, e.g. {steps * 4}"
        )


def _folder_name(name: str) -> str:
    return check_name(name, "the name of a model", taken=BESIDE)


class Distillation(Strict):
    """A distillation: the student, its data, and where its checkpoints stand.

    Args:
        name: of the model's folder.
        summary: for the card.
        licence: of the weights; by default the teacher's.
        seed: of the order of the data, noise and scales.
        checkpoint_seconds: between checkpoints.
        keep_checkpoints: how many.
        data: to noise; by default what the teacher was trained on.
        student: what is learned.
    """

    name: Annotated[str, AfterValidator(_folder_name)]
    summary: str = ""
    licence: str = ""
    seed: int = Field(default=0, ge=0, lt=2**32)
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0, le=1_000)
    data: Data | None = None
    student: Student


def read_distillation(path: Path | str) -> Distillation:
    """Read and check a recipe of a distillation.

    Raises:
        ValueError: it cannot be read, is not TOML, or has a key that is unknown, missing or out
            of range (named); in one line.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML: {' '.join(str(error).split())}") from error
    return checked_distillation(content, path)


def checked_distillation(content: object, origin: Path | str) -> Distillation:
    """Return the distillation that ``content`` is, from the file or command ``origin``.

    Raises:
        ValueError: as of `read_distillation`.
    """
    try:
        return Distillation.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{origin}: {explain(error, Distillation)}") from error


def is_distillation(path: Path) -> bool:
    """Return whether a TOML file holds a table [student]."""
    try:
        return "student" in tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
