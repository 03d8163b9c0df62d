"""Training recipes: TOML files that say everything about a training, and nothing misspelt.

A recipe trains up to four parts, each with its own checkpoint, so that a run that was stopped goes
on where it was: the ``model``, a ``weak`` one for autoguidance, a noise-aware ``classifier`` that
guides, and a clean ``judge`` that guides nothing and only measures.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from ..data import fashion_mnist
from ..denoiser import Network
from ..levels import VP
from ..models.class_unet import ClassEncoder, unet
from ..models.classifier import Classifier
from ..models.conditional import ConditionalModel
from ._core import Objective, Progress, Settings, Trainer, fit
from .classification import Classification, NoisyClassification
from .denoising import ClassConditional, Denoising, LogitNormal

PARTS = ("model", "weak", "classifier", "judge")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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

    widths: tuple[int, ...]
    layers: int = Field(default=1, gt=0)
    groups: int = Field(default=8, gt=0)
    head: int = Field(default=32, gt=0)
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    snapshots: tuple[float, ...] = ()
    train: Training


class ClassifierPart(_Strict):
    """A classifier, noise-aware or clean."""

    widths: tuple[int, ...]
    layers: int = Field(default=1, gt=0)
    groups: int = Field(default=8, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    shift: int = Field(default=0, ge=0)
    train: Training


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

    def parts(self) -> list[str]:
        """Name the parts to train, in order."""
        return [p for p in PARTS if getattr(self, p) is not None]


def read(path: Path | str) -> Recipe:
    """Read and check a recipe.

    Raises:
        ValueError: not TOML, or a key that is unknown, missing or out of range (named).
    """
    try:
        return Recipe.model_validate(tomllib.loads(Path(path).read_text()))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        raise ValueError(f"{path}: " + "; ".join(_explain(e) for e in error.errors())) from error


def _explain(error) -> str:
    where = ".".join(str(p) for p in error["loc"])
    return f"unknown key {where!r}" if error["type"] == "extra_forbidden" else f"{where}: {error['msg']}"


def build(recipe: Recipe, part: str) -> tuple[nn.Module, Objective]:
    """Make a part's fresh network (weights from the recipe's seed) and its objective."""
    torch.manual_seed(recipe.seed + PARTS.index(part))
    schedule, levels = recipe.schedule.schedule(), LogitNormal(**recipe.levels.model_dump())
    spec = getattr(recipe, part)
    if isinstance(spec, UNetPart):
        net = unet(size=28, channels=1, widths=spec.widths, layers=spec.layers, groups=spec.groups, head=spec.head)
        module = ConditionalModel(Network(net, predicts="v", dtype=torch.float32), ClassEncoder(fashion_mnist.CLASSES, 4 * spec.widths[0]))
        return module, ClassConditional(denoising=Denoising(schedule=schedule, levels=levels), p=spec.condition_dropout)
    shape = {"widths": spec.widths, "layers": spec.layers, "groups": spec.groups, "dropout": spec.dropout}
    net = Classifier(fashion_mnist.CLASSES, noise_aware=part == "classifier", **shape)
    if part == "classifier":
        return net, NoisyClassification(schedule=schedule, levels=levels)
    return net, Classification(shift=spec.shift)


def train_part(recipe: Recipe, part: str, out: Path, data: tuple[Tensor, Tensor]) -> Iterator[Progress]:
    """Train one part, from its checkpoint if there is one; keep the snapshots it asks for."""
    module, objective = build(recipe, part)
    spec = getattr(recipe, part)
    settings = Settings(**spec.train.model_dump(), seed=recipe.seed + PARTS.index(part))
    keep = {round(share * settings.steps): share for share in getattr(spec, "snapshots", ())}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for progress in fit(Trainer(module.to(device), objective, data, settings), checkpoint(out, part)):
        if progress.step in keep:
            save_snapshot(progress.ema, out / "snapshots" / f"{part}-{progress.step:06d}.safetensors")
        yield progress


def checkpoint(out: Path, part: str) -> Path:
    """Return where a part's checkpoint is kept."""
    return out / "parts" / f"{part}.pt"


def save_snapshot(module: nn.Module, path: Path) -> None:
    """Write a module's weights in float16, beside and then renamed."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".writing")
    save_file({k: v.half().contiguous() for k, v in module.state_dict().items()}, beside)
    beside.replace(path)


Report = Callable[[str, Progress, int], None]


def train(recipe: Recipe, out: Path, report: Report | None = None) -> None:
    """Train every part of ``recipe`` under ``out``.

    Args:
        recipe: what to train.
        out: folder of checkpoints and snapshots.
        report: called after each step with the part, its progress and its steps.
    """
    data = fashion_mnist.load("train", recipe.data.folder)
    for part in recipe.parts():
        steps = getattr(recipe, part).train.steps
        for progress in train_part(recipe, part, out, data):
            if report:
                report(part, progress, steps)
