"""The parts of a recipe: what is trained, how large it is, and for how long."""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import Field, model_validator

from ...io.documents import JSONObject
from .strict import Depth, Pixels, Rate, Shares, Strict, Width, Widths

PARTS = (
    *("model", "weak", "classifier", "judge", "clip", "noisy_clip", "measuring_clip"),
    *("autoencoder", "decoder"),
)
"""All parts; a part's place here goes into its seed."""
ORDER = (
    *("autoencoder", "clip", "measuring_clip", "model", "weak", "noisy_clip", "classifier"),
    *("judge", "decoder"),
)
"""The order they are trained in: what makes latents before what learns them, the text encoder
before what it is the encoder of. The decoder comes last: nothing learns from it.
"""
OWN_NETWORKS = ("unet", "sequence", "motion")
"""Networks that a recipe sets by keys of its own."""
OF_PICTURES = ("autoencoder", "clip", "measuring_clip", "judge", "decoder")
"""The parts that learn from pictures, also where the others learn from their latents."""


class Training(Strict):
    """How long and how fast a part trains (see `TrainSettings`)."""

    steps: int = Field(gt=0, le=1_000_000_000)
    batch: int = Field(default=64, gt=0, le=1_000_000)
    accumulate: int = Field(default=1, gt=0, le=1_000_000)
    rate: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=200, ge=0, le=1_000_000_000)
    clip: float = Field(default=1.0, gt=0)
    decay: float = Field(default=0.999, ge=0, lt=1)
    power: Shares = ()
    weight_decay: float = Field(default=0.0, ge=0)
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    compile: bool = False

    @model_validator(mode="after")
    def _check(self) -> Training:
        if self.accumulate > self.batch:
            raise ValueError(
                f"accumulate parts a batch of {self.batch}, and cannot be {self.accumulate}"
            )
        if any(w > 0.25 for w in self.power):
            raise ValueError(
                f"power holds relative widths of averages, at most 0.25, not {max(self.power):g}"
            )
        return self


def _check_groups(widths: tuple[int, ...] | None, groups: int) -> None:
    odd = [w for w in widths or () if w % groups]
    if odd:
        raise ValueError(f"widths must be multiples of groups ({groups}), not {odd[0]}")


class NetworkPart(Strict):
    """A denoising network.

    Args:
        network: "unet" (by ``widths``, ``layers``, ``groups``, ``head``), "sequence" (``width``,
            ``layers``, ``heads``, ``patch``), "motion" (``width``, ``layers``, ``heads``), a class
            of Diffusers ("UNet2DModel",
            "DiTTransformer2DModel", …) or your own "module:callable", each with ``config``.
        condition_dropout: how often each condition is left out, unless its table sets dropout.
        snapshots: shares of the steps after which the averaged weights are kept.
    """

    network: str = "unet"
    widths: Widths | None = None
    layers: Depth = 1
    groups: Width = 8
    head: Width = 32
    width: Width = 128
    heads: Width = 4
    patch: Pixels = 1
    config: JSONObject = Field(default_factory=dict, strict=False)
    condition_dropout: Rate = 0.1
    snapshots: Shares = ()
    train: Training

    @model_validator(mode="after")
    def _check(self) -> NetworkPart:
        _check_groups(self.widths, self.groups)
        if self.network == "unet" and self.widths is None:
            raise ValueError("a unet needs widths, e.g. [32, 64, 96]")
        if self.network == "unet" and self.widths and self.head > self.widths[-1]:
            raise ValueError(
                f"head must be at most the last width ({self.widths[-1]}), not {self.head}"
            )
        if self.config and self.network in OWN_NETWORKS:
            raise ValueError(
                f"config goes with a class of Diffusers or your own; {self.network!r} is set by "
                "keys of its own"
            )
        return self


class ClassifierPart(Strict):
    """A classifier or regressor, noise-aware or clean.

    Args:
        column: the column that it predicts; by default the first of classes or vectors.
        shift: a clean one's images are moved by up to so many pixels.
        calibrate: fit a temperature by noise level on held-out data.
    """

    column: str | None = None
    widths: Widths
    layers: Depth = 1
    groups: Width = 8
    dropout: float = Field(default=0.0, ge=0, lt=1)
    shift: int = Field(default=0, ge=0, le=16_384)
    calibrate: bool = True
    train: Training

    @model_validator(mode="after")
    def _check(self) -> ClassifierPart:
        _check_groups(self.widths, self.groups)
        return self


class VisionPart(Strict):
    """The image tower of a noise-aware CLIP, trained against the text tower of ``clip``; it starts
    as the clean one where it is as large.

    Args:
        width, layers, heads, patch: of its transformer.
        shift: pictures are moved by up to so many pixels.
    """

    width: Width = 128
    layers: Depth = 4
    heads: Width = 4
    patch: Pixels = 4
    shift: int = Field(default=0, ge=0, le=16_384)
    train: Training


class CLIPPart(Strict):
    """A CLIP of captions and pictures, trained from nothing.

    Args:
        width, layers, heads, patch: of the image tower.
        text_width, text_layers, text_heads: of the text tower.
        embed: length of the common embeddings.
        vocabulary: tokens, learned from the captions.
        length: most tokens of a caption, with its two marks.
        shift: pictures are moved by up to so many pixels.
    """

    width: Width = 128
    layers: Depth = 4
    heads: Width = 4
    patch: Pixels = 4
    text_width: Width = 128
    text_layers: Depth = 3
    text_heads: Width = 4
    embed: Width = 128
    vocabulary: int = Field(default=3072, ge=514, le=1_000_000)
    length: int = Field(default=24, gt=2, le=16_384)
    shift: int = Field(default=0, ge=0, le=16_384)
    train: Training


class AutoencoderPart(Strict):
    """An autoencoder of Diffusers, trained on the recipe's pictures.

    Args:
        network: which of Diffusers' classes.
        widths: channels of each resolution; each further one halves the side. AutoencoderTiny has
            one width for all.
        layers: blocks at each resolution.
        groups: of AutoencoderKL's group normalisations.
        latent_channels: of its latents.
        config: further settings of the class.
        scales: how often pictures are halved, for the error of what is coarse.
        kl: weight of the Kullback-Leibler divergence, of AutoencoderKL.
        spread: how its config states the latents' mean and spread: by "channel" (latents_mean and
            latents_std, of AutoencoderKL) or one "scalar" (scaling_factor).
    """

    network: Literal["AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"] = "AutoencoderKL"
    widths: Widths
    layers: Depth = 1
    groups: Width = 8
    latent_channels: Width = 4
    config: JSONObject = Field(default_factory=dict, strict=False)
    scales: int = Field(default=2, ge=0, le=10)
    kl: float = Field(default=0.0, ge=0)
    spread: Literal["channel", "scalar"] | None = None
    train: Training

    @model_validator(mode="after")
    def _check(self) -> AutoencoderPart:
        kind = self.network
        if kind == "AutoencoderKL":
            _check_groups(self.widths, self.groups)
        if kind == "AutoencoderTiny" and len(set(self.widths)) > 1:
            raise ValueError(
                f"an AutoencoderTiny has one width at all resolutions, not {self.widths[0]} and "
                f"{next(w for w in self.widths if w != self.widths[0])}"
            )
        if kind != "AutoencoderKL" and self.kl:
            raise ValueError(f"kl is of AutoencoderKL; {kind} has no posterior, so leave kl out")
        if kind != "AutoencoderKL" and self.spread == "channel":
            raise ValueError(
                f"an {kind} has no latents_mean and latents_std in its config; write "
                'spread = "scalar"'
            )
        if kind == "AutoencoderDC":
            self._check_shortcuts()
        return self

    def _check_shortcuts(self) -> None:
        """Its blocks add averages and repeats of what comes in, so channels must divide evenly."""
        if self.widths[-1] % self.latent_channels:
            raise ValueError(
                f"an AutoencoderDC's last width must be a multiple of latent_channels "
                f"({self.latent_channels}), not {self.widths[-1]}"
            )
        for one, other in itertools.pairwise(self.widths):
            if other % 4 or 4 * one % other:
                raise ValueError(
                    "an AutoencoderDC's widths must, after the first, be multiples of 4 that "
                    f"divide four times the one before, and {other} after {one} is not"
                )

    @property
    def by_channel(self) -> bool:
        """Whether its config states mean and spread of each channel."""
        return self.network == "AutoencoderKL" and self.spread != "scalar"


class DecoderPart(Strict):
    """The decoder of the autoencoder, trained further by itself; latents stay as they are.

    Args:
        scales: how often pictures are halved, for the error of what is coarse.
        features: weight of the error of the pictures' embeddings by the recipe's own ``clip``.
        noise: largest standard deviation of noise on the latents, in units of their spread.
    """

    scales: int = Field(default=2, ge=0, le=10)
    features: float = Field(default=0.0, ge=0)
    noise: float = Field(default=0.0, ge=0)
    train: Training
