"""Training recipes: TOML files that say everything about a training, and nothing misspelt.

A recipe trains up to four parts, each with its own checkpoint, so that a run that was stopped goes
on where it was: the ``model``, a ``weak`` one for autoguidance, a noise-aware ``classifier`` that
guides, and a clean ``judge`` that guides nothing and only measures.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from ..data import fashion_mnist
from ..denoiser import Network
from ..files import make_folder, whole_or_not
from ..levels import VP
from ..models.class_unet import ClassEncoder, unet
from ..models.classifier import Classifier
from ..models.conditional import ConditionalModel
from ._core import Objective, Progress, Settings, Trainer, fit
from .classification import Classification, NoisyClassification
from .denoising import ClassConditional, Denoising, LogitNormal
from .report import Report

PARTS = ("model", "weak", "classifier", "judge")
SIZE = 28  # pixels of a side

# TOML has lists only, so these alone may be converted; every other value must be of its own type.
Widths = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1, strict=False)]
Shares = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(strict=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _check_groups(part: UNetPart | ClassifierPart) -> None:
    odd = [w for w in part.widths if w % part.groups]
    if odd:
        raise ValueError(f"widths must be multiples of groups ({part.groups}), not {odd[0]}")


class Training(_Strict):
    """How long and how fast a part trains (see `Settings`)."""

    steps: int = Field(gt=0)
    batch: int = Field(default=64, gt=0)
    rate: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=200, ge=0)
    clip: float = Field(default=1.0, gt=0)
    decay: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"


class UNetPart(_Strict):
    """A class-conditional U-Net that predicts v."""

    widths: Widths
    layers: int = Field(default=1, gt=0)
    groups: int = Field(default=8, gt=0)
    head: int = Field(default=32, gt=0)
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    snapshots: Shares = ()
    train: Training

    @model_validator(mode="after")
    def _check(self) -> UNetPart:
        _check_groups(self)
        if SIZE % 2 ** (len(self.widths) - 1):
            raise ValueError(f"{len(self.widths)} widths halve the image {len(self.widths) - 1} times, which {SIZE} pixels do not allow")
        if self.head > self.widths[-1]:
            raise ValueError(f"head must be at most the last width ({self.widths[-1]}), not {self.head}")
        return self


class ClassifierPart(_Strict):
    """A classifier, noise-aware or clean."""

    widths: Widths
    layers: int = Field(default=1, gt=0)
    groups: int = Field(default=8, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    shift: int = Field(default=0, ge=0)
    train: Training

    @model_validator(mode="after")
    def _check(self) -> ClassifierPart:
        _check_groups(self)
        return self


class Data(_Strict):
    """Where the training data are."""

    kind: Literal["fashion-mnist"] = "fashion-mnist"
    folder: str | None = None


class BetaTable(_Strict):
    """The VP schedule, as Diffusers' DDPMScheduler names it."""

    beta_schedule: Literal["linear", "scaled_linear"] = "linear"
    num_train_timesteps: int = Field(default=1000, gt=1)
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> BetaTable:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start must be at most beta_end, not {self.beta_start:g} and {self.beta_end:g}")
        return self

    def schedule(self) -> VP:
        """Build the schedule."""
        make = VP.linear if self.beta_schedule == "linear" else VP.scaled_linear
        return make(self.num_train_timesteps, self.beta_start, self.beta_end)


class Levels(_Strict):
    """Which noise levels are trained: ``log rho ~ N(mean, std²)``."""

    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)


class Recipe(_Strict):
    """A whole training."""

    name: str
    seed: int = 0
    data: Data = Data()
    schedule: BetaTable = BetaTable()
    levels: Levels = Levels()
    model: UNetPart
    weak: UNetPart | None = None
    classifier: ClassifierPart | None = None
    judge: ClassifierPart | None = None

    def parts(self, only: Sequence[str] | None = None) -> list[str]:
        """Name the parts to train, in order: all, or those of them in ``only``.

        Raises:
            ValueError: ``only`` names a part that the recipe has not.
        """
        parts = [p for p in PARTS if getattr(self, p) is not None]
        strange = [name for name in only or () if name not in parts]
        if strange:
            raise ValueError(f"the recipe {self.name!r} has no part {strange[0]!r}{_suggestion(strange[0], parts)}; its parts are {', '.join(parts)}")
        return [p for p in parts if only is None or p in only]


def read(path: Path | str) -> Recipe:
    """Read and check a recipe.

    Raises:
        ValueError: it cannot be read, is not TOML, or has a key that is unknown, missing or out of
            range (named), in one line.
    """
    try:
        return Recipe.model_validate(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        raise ValueError(f"{path}: " + "; ".join(_explain(e) for e in error.errors())) from error


def _explain(error: Any) -> str:
    where = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_suggestion(str(error['loc'][-1]), _keys(error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"missing key {where!r}"
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(error["input"], dict) else f", not {error['input']!r}"
    return f"{where}: {message[0].lower()}{message[1:]}{shown}"


def _keys(loc: Sequence[str | int]) -> list[str]:
    """List the keys that a table of the recipe may have."""
    table: type[BaseModel] = Recipe
    for name in loc:
        kind = table.model_fields[str(name)].annotation
        table = next(t for t in (kind, *get_args(kind)) if isinstance(t, type) and issubclass(t, BaseModel))
    return list(table.model_fields)


def _suggestion(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def build(recipe: Recipe, part: str) -> tuple[nn.Module, Objective]:
    """Make a part's fresh network (weights from the recipe's seed) and its objective."""
    torch.manual_seed(recipe.seed + PARTS.index(part))
    schedule, levels = recipe.schedule.schedule(), LogitNormal(**recipe.levels.model_dump())
    spec = getattr(recipe, part)
    if isinstance(spec, UNetPart):
        net = unet(size=SIZE, channels=1, widths=spec.widths, layers=spec.layers, groups=spec.groups, head=spec.head)
        module = ConditionalModel(Network(net, predicts="v", dtype=torch.float32), ClassEncoder(fashion_mnist.CLASSES, 4 * spec.widths[0]))
        return module, ClassConditional(denoising=Denoising(schedule=schedule, levels=levels), p=spec.condition_dropout)
    shape = {"widths": spec.widths, "layers": spec.layers, "groups": spec.groups, "dropout": spec.dropout}
    net = Classifier(fashion_mnist.CLASSES, noise_aware=part == "classifier", **shape)
    if part == "classifier":
        return net, NoisyClassification(schedule=schedule, levels=levels)
    return net, Classification(shift=spec.shift)


def _made_from(recipe: Recipe, part: str) -> dict[str, Any]:
    """Say all that shapes a part's weights besides its settings, by dotted names."""
    own = getattr(recipe, part).model_dump(exclude={"train", "snapshots"})  # which snapshots are kept shapes nothing
    shared = {} if part == "judge" else {"schedule": recipe.schedule.model_dump(), "levels": recipe.levels.model_dump()}
    return {f"{table}.{key}": value for table, values in {**shared, part: own}.items() for key, value in values.items()}


def train_part(recipe: Recipe, part: str, out: Path, data: tuple[Tensor, Tensor]) -> Generator[Progress, None, None]:
    """Train one part, from its checkpoint if there is one; keep the snapshots it asks for."""
    module, objective = build(recipe, part)
    spec = getattr(recipe, part)
    settings = Settings(**spec.train.model_dump(), seed=recipe.seed + PARTS.index(part))
    keep = {round(share * settings.steps) for share in getattr(spec, "snapshots", ())}

    def snapshot(trainer: Trainer) -> None:
        if trainer.done in keep:
            save_snapshot(trainer.ema.module, out / "snapshots" / f"{part}-{trainer.done:06d}.safetensors")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(module.to(device), objective, data, settings, _made_from(recipe, part))
    with closing(fit(trainer, checkpoint(out, part), after=snapshot)) as steps:
        yield from steps


def checkpoint(out: Path, part: str) -> Path:
    """Return where a part's checkpoint is kept."""
    return out / "parts" / f"{part}.pt"


def save_snapshot(module: nn.Module, path: Path) -> None:
    """Write a module's weights in float16, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save  # its own writing of files hides the reason of a failure

    with whole_or_not(path) as beside:
        beside.write_bytes(save({k: v.half().contiguous() for k, v in module.state_dict().items()}))


def train(recipe: Recipe, out: Path, report: Report | None = None, *, only: Sequence[str] | None = None) -> None:
    """Train the parts of ``recipe`` under ``out``; each goes on from its checkpoint.

    Args:
        recipe: what to train.
        out: folder of checkpoints and snapshots.
        report: called after each step with the part, its progress and its steps.
        only: which parts to train; by default all.

    Raises:
        ValueError: ``only`` names no part, or a checkpoint is damaged or of another recipe.
        OSError: ``out`` cannot be written to, or the data are missing; nothing was trained.
        NotFinite: a loss stopped being a number.
    """
    parts = recipe.parts(only)
    for folder in (out / "parts", out / "snapshots"):
        make_folder(folder)
    data = fashion_mnist.load("train", recipe.data.folder)
    for part in parts:
        steps = getattr(recipe, part).train.steps
        with closing(train_part(recipe, part, out, data)) as progresses:
            for progress in progresses:
                if report:
                    report(part, progress, steps)
