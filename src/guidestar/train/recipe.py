"""Training recipes: TOML files that say everything about a training, and nothing misspelt.

A recipe trains some parts, each with its own checkpoint, so that a run that was stopped goes on
where it was: the ``model``, a ``weak`` one for autoguidance, a noise-aware ``classifier`` (or
regressor) that guides, and a clean ``judge`` that guides nothing and only measures. Of captioned
pictures: a ``clip`` whose text tower encodes the captions, a ``noisy_clip`` that guides, and a
``measuring_clip`` that guides nothing.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

PARTS = ("model", "weak", "classifier", "judge", "clip", "noisy_clip", "measuring_clip")
"""All parts; a part's place here goes into its seed."""
ORDER = ("clip", "measuring_clip", "model", "weak", "noisy_clip", "classifier", "judge")
"""The order they are trained in: the text encoder before what it is the encoder of."""

# TOML has lists only, so these alone may be converted; every other value must be of its own type.
Widths = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1, strict=False)]
Shares = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(strict=False)]
Words = Annotated[tuple[str, ...], Field(strict=False)]
Whole = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Training(_Strict):
    """How long and how fast a part trains (see `Settings`)."""

    steps: int = Field(gt=0)
    batch: int = Field(default=64, gt=0)
    accumulate: int = Field(default=1, gt=0)
    rate: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=200, ge=0)
    clip: float = Field(default=1.0, gt=0)
    decay: float = Field(default=0.999, ge=0, lt=1)
    power: Shares = ()
    weight_decay: float = Field(default=0.0, ge=0)
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    compile: bool = False

    @model_validator(mode="after")
    def _check(self) -> Training:
        if any(w > 0.25 for w in self.power):
            raise ValueError(f"power holds relative widths of averages, at most 0.25, not {max(self.power):g}")
        return self


def _check_groups(widths: tuple[int, ...] | None, groups: int) -> None:
    odd = [w for w in widths or () if w % groups]
    if odd:
        raise ValueError(f"widths must be multiples of groups ({groups}), not {odd[0]}")


class NetworkPart(_Strict):
    """A denoising network.

    Args:
        network: "unet" (by ``widths``, ``layers``, ``groups``, ``head``), "sequence" (``width``,
            ``layers``, ``heads``, ``patch``), a class of Diffusers ("UNet2DModel",
            "DiTTransformer2DModel", …) or your own "module:callable", each with ``config``.
        condition_dropout: of every condition that says nothing else.
        snapshots: shares of the steps after which the averaged weights are kept.
    """

    network: str = "unet"
    widths: Widths | None = None
    layers: int = Field(default=1, gt=0)
    groups: int = Field(default=8, gt=0)
    head: int = Field(default=32, gt=0)
    width: int = Field(default=128, gt=0)
    heads: int = Field(default=4, gt=0)
    patch: int = Field(default=1, gt=0)
    config: dict[str, Any] = Field(default_factory=dict, strict=False)
    condition_dropout: Rate = 0.1
    snapshots: Shares = ()
    train: Training

    @model_validator(mode="after")
    def _check(self) -> NetworkPart:
        _check_groups(self.widths, self.groups)
        if self.network == "unet" and self.widths is None:
            raise ValueError("a unet needs widths, e.g. [32, 64, 96]")
        if self.network == "unet" and self.widths and self.head > self.widths[-1]:
            raise ValueError(f"head must be at most the last width ({self.widths[-1]}), not {self.head}")
        if self.config and self.network in ("unet", "sequence"):
            raise ValueError(f"config goes with a class of Diffusers or your own; {self.network!r} is set by keys of its own")
        return self


class ClassifierPart(_Strict):
    """A classifier or regressor, noise-aware or clean.

    Args:
        column: what it tells; by default the first of the conditions that is a class, or a vector.
        shift: a clean one's images are moved by up to so many pixels.
        calibrate: fit a temperature by noise level on held-out data.
    """

    column: str | None = None
    widths: Widths
    layers: int = Field(default=1, gt=0)
    groups: int = Field(default=8, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    shift: int = Field(default=0, ge=0)
    calibrate: bool = True
    train: Training

    @model_validator(mode="after")
    def _check(self) -> ClassifierPart:
        _check_groups(self.widths, self.groups)
        return self


class VisionPart(_Strict):
    """The image tower of a noise-aware CLIP, trained against the text tower of ``clip``; it starts as the clean one where it is as large.

    Args:
        width, layers, heads, patch: of its transformer.
        shift: pictures are moved by up to so many pixels.
    """

    width: int = Field(default=128, gt=0)
    layers: int = Field(default=4, gt=0)
    heads: int = Field(default=4, gt=0)
    patch: int = Field(default=4, gt=0)
    shift: int = Field(default=0, ge=0)
    train: Training


class CLIPPart(_Strict):
    """A CLIP of captions and pictures, trained from nothing.

    Args:
        width, layers, heads, patch: of the image tower.
        text_width, text_layers, text_heads: of the text tower.
        embed: length of the common embeddings.
        vocabulary: tokens, learned from the captions.
        length: most tokens of a caption, with its two marks.
        shift: pictures are moved by up to so many pixels.
    """

    width: int = Field(default=128, gt=0)
    layers: int = Field(default=4, gt=0)
    heads: int = Field(default=4, gt=0)
    patch: int = Field(default=4, gt=0)
    text_width: int = Field(default=128, gt=0)
    text_layers: int = Field(default=3, gt=0)
    text_heads: int = Field(default=4, gt=0)
    embed: int = Field(default=128, gt=0)
    vocabulary: int = Field(default=3072, ge=514)
    length: int = Field(default=24, gt=2)
    shift: int = Field(default=0, ge=0)
    train: Training


class Data(_Strict):
    """Where the training data are (see the data room, and docs/train.md).

    Args:
        kind: "images" (a folder), "parquet", "shards" (webdataset), "tensors", "fashion-mnist".
        path: the folder or file.
        columns: what each column is: "class", "vector" or "text".
        classes: names of the classes, where the data do not name them.
        size, channels, crop, flip: of images.
        max_bad: how many unreadable images to skip before giving up.
        cache: folder of decoded images or latents, for data larger than memory.
        vae: a Diffusers AutoencoderKL, by path; the model then works on its latents.
        standardise: tensors are brought to zero mean and unit variance by channel.
        holdout: share of the samples kept aside, to measure on.
        test: folder or file of other data to measure on, in place of ``holdout``.
        shuffle: size of the buffer in which shards are mixed.
    """

    kind: Literal["images", "parquet", "shards", "tensors", "fashion-mnist"] = "images"
    path: str | None = None
    columns: dict[str, Literal["class", "vector", "text"]] | None = None
    classes: Words = ()
    size: int = Field(default=32, gt=0)
    channels: Literal[1, 3] | None = None
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    max_bad: int = Field(default=0, ge=0)
    cache: str | None = None
    vae: str | None = None
    standardise: bool = False
    holdout: float = Field(default=0.1, ge=0, lt=1)
    test: str | None = None
    shuffle: int = Field(default=10_000, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.path is None and self.kind != "fashion-mnist":
            raise ValueError('say where the data are: path = "…"')
        moved = "flip" if self.flip else "crop" if self.crop == "random" else None
        if self.vae and moved:
            raise ValueError(f"latents are encoded once, so pictures cannot be changed anew each time; leave {moved} or vae out")
        if self.vae and self.kind not in ("images", "parquet"):
            raise ValueError(f"a vae encodes images or parquet, once; data of the kind {self.kind!r} are taken as they are")
        return self


class ConditionSpec(_Strict):
    """A condition: a column of the data that the network is told.

    Args:
        dropout: how often it is left out in training, for itself.
        encoder: of text: "clip" for the recipe's own; or CLIP by name ("openai/clip-vit-large-patch14")
            or path (also of a folder with text_encoder/ and tokenizer/).
        layer: which of its layers is read: "last", or "penultimate".
        output: "states" of all tokens, or "pooled" into one.
    """

    dropout: Rate | None = None
    encoder: str | None = None
    layer: Literal["last", "penultimate"] = "last"
    output: Literal["states", "pooled"] = "states"


class Noise(_Strict):
    """The noise schedule.

    Args:
        kind: "vp" (a table of betas, as Diffusers' DDPMScheduler names it), "flow" or "edm".
        zero_terminal_snr: the table ends in pure noise.
        shift: of a flow's time, when sampling.
        sigma_min, sigma_max: of edm.
        sigma_data: standard deviation of the data, of edm and of the weighting "edm".
    """

    kind: Literal["vp", "flow", "edm"] = "vp"
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    num_train_timesteps: int = Field(default=1000, gt=1)
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    zero_terminal_snr: bool = False
    shift: float = Field(default=1.0, gt=0)
    sigma_min: float = Field(default=0.002, gt=0)
    sigma_max: float = Field(default=80.0, gt=0)
    sigma_data: float = Field(default=0.5, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Noise:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start must be at most beta_end, not {self.beta_start:g} and {self.beta_end:g}")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max, not {self.sigma_min:g} and {self.sigma_max:g}")
        return self


class Levels(_Strict):
    """Which noise levels are trained.

    Args:
        kind: "logit-normal" (``log(rho / data_std) ~ N(mean, std²)``; EDM's log-normal is mean −1.2, std 1.2), or
            "uniform" in the schedule's time.
        data_std: by whose logarithm levels are offset, for data that are not of unit size (``--dry-run`` tells theirs).
    """

    kind: Literal["logit-normal", "uniform"] = "logit-normal"
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    data_std: float = Field(default=1.0, gt=0)


class Target(_Strict):
    """What the network predicts, and how errors are weighted.

    Args:
        predicts: "v", "eps", "x0", "velocity" or "edm"; by default v for vp, velocity for a flow, edm for edm.
        weighting: "uniform" (in the space of what is predicted), "min-snr", "snr+1", "edm", "sigmoid".
        gamma: of min-snr.
        bias: of sigmoid.
    """

    predicts: Literal["v", "eps", "x0", "velocity", "edm"] | None = None
    weighting: Literal["uniform", "min-snr", "snr+1", "edm", "sigmoid"] | None = None
    gamma: float = Field(default=5.0, gt=0)
    bias: float = 0.0


class Preview(_Strict):
    """Pictures of guided samples during the training.

    Args:
        every: steps between them (0: none).
        guidance: expressions, one row each.
        seeds: samples in a row, of seeds 0, 1, …
        steps: of the solver.
        prompts: of a text model, in turn.
    """

    every: int = Field(default=0, ge=0)
    guidance: Words = ("cfg(1)", "cfg(2)", "cfg(4)")
    seeds: int = Field(default=8, gt=0)
    steps: int = Field(default=20, gt=0)
    prompts: Words = ()


class Export(_Strict):
    """What the finished model recommends and holds.

    Args:
        guidance, steps, solver, grid: defaults of sampling.
        snapshots: export kept snapshots too, as networks for autoguidance.
    """

    guidance: str = "cfg(2)"
    steps: int = Field(default=20, gt=0)
    solver: str = "dpmpp-2m"
    grid: str = "log_snr"
    snapshots: bool = True


class Recipe(_Strict):
    """A whole training."""

    name: str = Field(pattern=r"^[\w.-]+$")
    summary: str = ""
    licence: str = ""
    seed: int = 0
    joint_dropout: Rate = 0.0
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)
    data: Data
    conditions: dict[str, ConditionSpec] | None = None
    schedule: Noise = Noise()
    objective: Target = Target()
    levels: Levels = Levels()
    model: NetworkPart
    weak: NetworkPart | None = None
    classifier: ClassifierPart | None = None
    judge: ClassifierPart | None = None
    clip: CLIPPart | None = None
    noisy_clip: VisionPart | None = None
    measuring_clip: CLIPPart | None = None
    preview: Preview = Preview()
    export: Export = Export()

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        kind, predicts = self.schedule.kind, self.predicts()
        if (kind == "edm") != (predicts == "edm"):
            raise ValueError("objective.predicts: 'edm' goes with schedule.kind 'edm', and with no other")
        if kind == "vp" and predicts == "velocity":
            raise ValueError("objective.predicts: a velocity goes with schedule.kind 'flow'; of vp it would be read back as another")
        if self.schedule.zero_terminal_snr and self.levels.kind != "uniform":
            raise ValueError("levels.kind: a logit-normal hardly draws pure noise, where sampling starts with zero_terminal_snr; train with kind = 'uniform'")
        if self.schedule.zero_terminal_snr and predicts == "eps":
            raise ValueError("objective.predicts: eps says nothing about data at pure noise; with zero_terminal_snr predict v or x0")
        needy = [f"conditions.{n}.encoder" for n, c in (self.conditions or {}).items() if c.encoder == "clip"] + ["noisy_clip"] * (self.noisy_clip is not None)
        if needy and self.clip is None:
            raise ValueError(f"{needy[0]} needs the recipe to train a clip: add a table [clip]")
        return self

    def predicts(self) -> str:
        """Return what the network predicts."""
        return self.objective.predicts or {"vp": "v", "flow": "velocity", "edm": "edm"}[self.schedule.kind]

    def parts(self, only: Sequence[str] | None = None) -> list[str]:
        """Name the parts to train, in order: all, or those of them in ``only``.

        Raises:
            ValueError: ``only`` names a part that the recipe has not.
        """
        parts = [p for p in ORDER if getattr(self, p) is not None]
        strange = [name for name in only or () if name not in parts]
        if strange:
            raise ValueError(f"the recipe {self.name!r} has no part {strange[0]!r}{suggestion(strange[0], parts)}; its parts are {', '.join(parts)}")
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
        return f"unknown key {where!r}{suggestion(str(error['loc'][-1]), _keys(error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"missing key {where!r}"
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(error["input"], dict) else f", not {error['input']!r}"
    return (f"{where}: " if where else "") + f"{message[0].lower()}{message[1:]}{shown}"


def _keys(loc: Sequence[str | int]) -> list[str]:
    """List the keys that a table of the recipe may have."""
    table: type[BaseModel] = Recipe
    for name in loc:
        if name not in table.model_fields:  # a name of the user's own, of a condition
            continue
        kind = table.model_fields[str(name)].annotation
        kinds = [kind, *get_args(kind), *(t for k in get_args(kind) for t in get_args(k))]
        table = next(t for t in kinds if isinstance(t, type) and issubclass(t, BaseModel))
    return list(table.model_fields)


def suggestion(name: str, known: Sequence[str]) -> str:
    """Offer the nearest of the known names, if one is near."""
    close = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
