"""Training recipes: TOML files that describe a whole training; unknown keys are refused.

A recipe trains some parts, each with its own checkpoint, from which a stopped run goes on: the
``model``, a ``weak`` one for autoguidance, a noise-aware ``classifier`` (or regressor) that guides,
and a clean ``judge`` that guides nothing and only measures. With pictures: an ``autoencoder``,
whose latents the others then learn, and its ``decoder``, which may learn further by itself. With
captions: a ``clip`` whose text tower encodes them, a ``noisy_clip`` that guides, and a
``measuring_clip`` that guides nothing.
"""

from __future__ import annotations

import tomllib
from abc import ABC
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, ValidationError, field_validator, model_validator

from ...io.files import check_name
from ...networks.network import OutputKind
from .mistakes import explain, suggestion
from .parts import (
    ORDER,
    OWN_NETWORKS,
    PARTS,
    AutoencoderPart,
    ClassifierPart,
    CLIPPart,
    DecoderPart,
    NetworkPart,
    Training,
    VisionPart,
)
from .strict import Rate, Strict
from .tables import (
    OWN_VAE,
    ConditionSpec,
    Data,
    Export,
    Levels,
    Noise,
    PreviewTable,
    TargetTable,
    Upscale,
)

__all__ = [
    "AutoencoderPart",
    "CLIPPart",
    "ClassifierPart",
    "ConditionSpec",
    "Data",
    "DecoderPart",
    "Export",
    "Levels",
    "NetworkPart",
    "Noise",
    "PreviewTable",
    "Recipe",
    "TargetTable",
    "Training",
    "VisionPart",
    "read_recipe",
]


BESIDE = frozenset(
    ("parts", "snapshots", "previews", "tensorboard", "tokenizers", "vae", "batch.png", ".lock")
)
"""Names that a training uses beside the model's folder, which is named after the recipe."""


_PREDICTS: dict[str, OutputKind] = {"vp": "v", "flow": "velocity", "edm": "edm"}


class CommonRecipe(Strict, ABC):
    """What the recipes of one model and of a cascade have in common."""

    reserved: ClassVar[frozenset[str]] = BESIDE
    """Names that the training uses itself."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    summary: str = ""
    licence: str = ""
    seed: int = Field(default=0, ge=0, lt=2**32)
    joint_dropout: Rate = 0.0
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0, le=1_000)
    data: Data
    conditions: dict[str, ConditionSpec] | None = None
    schedule: Noise = Noise()
    objective: TargetTable = TargetTable()
    levels: Levels = Levels()

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_name(name, "the recipe's name", taken=cls.reserved)


class Recipe(CommonRecipe):
    """A whole training."""

    model: NetworkPart
    weak: NetworkPart | None = None
    classifier: ClassifierPart | None = None
    judge: ClassifierPart | None = None
    clip: CLIPPart | None = None
    noisy_clip: VisionPart | None = None
    measuring_clip: CLIPPart | None = None
    autoencoder: AutoencoderPart | None = None
    decoder: DecoderPart | None = None
    upscale: Upscale | None = None
    preview: PreviewTable = PreviewTable()
    export: Export = Export()

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        kind, predicts = self.schedule.kind, self.predicts()
        if (kind == "edm") != (predicts == "edm"):
            raise ValueError(
                "objective.predicts: 'edm' goes with schedule.kind 'edm', and with no other"
            )
        if kind == "vp" and predicts == "velocity":
            raise ValueError(
                "objective.predicts: a velocity goes with schedule.kind 'flow'; of vp it would "
                "be read back as another"
            )
        if self.schedule.zero_terminal_snr and self.levels.kind != "uniform":
            raise ValueError(
                "levels.kind: a logit-normal hardly draws pure noise, where sampling starts with "
                "zero_terminal_snr; train with kind = 'uniform'"
            )
        if self.schedule.zero_terminal_snr and predicts == "eps":
            raise ValueError(
                "objective.predicts: eps says nothing about data at pure noise; with "
                "zero_terminal_snr predict v or x0"
            )
        needy = [
            f"conditions.{n}.encoder"
            for n, c in (self.conditions or {}).items()
            if c.encoder == "clip"
        ] + ["noisy_clip"] * (self.noisy_clip is not None)
        if needy and self.clip is None:
            raise ValueError(f"{needy[0]} needs the recipe to train a clip: add a table [clip]")
        self._check_motion()
        self._check_upscale()
        self._check_variance()
        self._check_autoencoder()
        self._check_decoder()
        return self

    def _check_motion(self) -> None:
        if self.data.kind != "motion":
            if self.objective.motion is not None:
                raise ValueError('objective.motion: it goes with data.kind = "motion"')
            return
        odd = next((p for p in ("clip", "noisy_clip", "measuring_clip") if getattr(self, p)), None)
        if odd is not None:
            raise ValueError(
                f"{odd}: it learns from pictures, and the data are motions; leave it out, and name "
                'the CLIP that encodes captions, conditions.text.encoder = "…"'
            )

    def _check_upscale(self) -> None:
        if self.upscale is None:
            return
        if self.data.vae is not None or self.data.kind in ("tensors", "motion"):
            raise ValueError("upscale: a super-resolution stage learns pixels; leave vae out")
        for part in ("model", "weak"):
            spec = getattr(self, part)
            if spec and not (spec.network == "unet" or spec.network.startswith("UNet2D")):
                raise ValueError(
                    f"{part}.network: a super-resolution stage is a U-Net, which takes the smaller "
                    f"picture beside its own and the level of its noise; write 'unet', not "
                    f"{spec.network!r}"
                )

    def _check_variance(self) -> None:
        if self.objective.variance == "fixed":
            return
        if self.schedule.kind != "vp" or self.levels.kind != "uniform":
            raise ValueError(
                "objective.variance: the bound that trains it is a sum over the times of a table; "
                'write schedule.kind = "vp" and levels.kind = "uniform"'
            )
        for part in ("model", "weak"):
            spec = getattr(self, part)
            if spec is not None and (spec.network in OWN_NETWORKS or ":" in spec.network):
                raise ValueError(
                    f"{part}.network: a variance is learned by a network of Diffusers that returns "
                    f'twice its channels, e.g. "DiTTransformer2DModel", not by {spec.network!r}'
                )

    def _check_autoencoder(self) -> None:
        own = self.data.vae == OWN_VAE
        if own and self.autoencoder is None:
            raise ValueError(
                f"data.vae = {OWN_VAE!r} needs the recipe to train one: add a table [autoencoder]"
            )
        if self.autoencoder is None:
            return
        if self.data.kind not in ("images", "parquet"):
            raise ValueError(
                f"autoencoder: it learns from images or parquet, not from {self.data.kind!r}"
            )
        if not own:
            raise ValueError(
                "autoencoder: nothing would use it; say that the model works on its latents, "
                f'data.vae = "{OWN_VAE}"'
            )
        halvings = len(self.autoencoder.widths) - 1
        if self.data.size % 2**halvings:
            raise ValueError(
                f"autoencoder.widths: {halvings + 1} widths halve pictures {halvings} times, which "
                f"a size of {self.data.size} does not allow"
            )
        if self.data.size < 2 ** max(halvings, self.autoencoder.scales):
            raise ValueError(
                f"autoencoder.scales: pictures of {self.data.size} cannot be halved "
                f"{self.autoencoder.scales} times"
            )

    def _check_decoder(self) -> None:
        if self.decoder is None:
            return
        if self.data.vae is None:
            raise ValueError(
                "decoder: the model works on pixels; name an autoencoder, data.vae, or leave it out"
            )
        if self.decoder.features and self.clip is None:
            raise ValueError(
                "decoder.features: embeddings are those of the recipe's own clip; add a table "
                "[clip], or leave features out"
            )
        if self.data.size is not None and self.data.size < 2**self.decoder.scales:
            raise ValueError(
                f"decoder.scales: pictures of {self.data.size} cannot be halved "
                f"{self.decoder.scales} times"
            )

    def predicts(self) -> OutputKind:
        """Return what the network predicts."""
        return self.objective.predicts or _PREDICTS[self.schedule.kind]

    def code(self) -> dict[str, str]:
        """Return the code that training imports and calls, by the keys that name it."""
        specs = {part: getattr(self, part) for part in PARTS}
        return {
            f"{part}.network": spec.network
            for part, spec in specs.items()
            if isinstance(spec, NetworkPart) and ":" in spec.network
        }

    def parts(self, only: Sequence[str] | None = None) -> list[str]:
        """Name the parts to train, in order: all, or those of them in ``only``.

        Raises:
            ValueError: ``only`` names a part that the recipe lacks.
        """
        parts = [p for p in ORDER if getattr(self, p) is not None]
        strange = [name for name in only or () if name not in parts]
        if strange:
            raise ValueError(
                f"the recipe {self.name!r} has no part "
                f"{strange[0]!r}{suggestion(strange[0], parts)}; its parts are {', '.join(parts)}"
            )
        return [p for p in parts if only is None or p in only]


def read_recipe(path: Path | str, *, trust: bool = False) -> Recipe:
    """Read and check a recipe.

    Args:
        path: of a TOML file.
        trust: allow the recipe to name code, which training imports and calls.

    Raises:
        ValueError: the file cannot be read, is not TOML, has a key that is unknown, missing or out
            of range, or names code without ``trust``; the message names the key, in one line.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of a path
        raise ValueError(f"{path} is not TOML: {' '.join(str(error).split())}") from error
    return checked(content, path, trust=trust)


def checked(content: object, origin: Path | str, *, trust: bool = False) -> Recipe:
    """Return the recipe that ``content`` is; arguments and errors as of `read_recipe`.

    Args:
        content: tables by name, from any file.
        origin: that file, to be named.
        trust: as of `read_recipe`.
    """
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{origin}: {explain(error, Recipe)}") from error
    for key, code in recipe.code().items():
        if not trust:
            raise ValueError(
                f"{origin}: {key} is made by the code {code!r}, which is only run where you "
                "trust it: read(…, trust=True), --trust"
            )
    return recipe
