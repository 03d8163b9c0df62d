"""The interfaces of a model's parts: encoder, classifier, judge and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from ..core.denoiser import Condition
from ..core.levels import Level
from ..diffusers.objects import DiffusersNetwork


class Encoder(Protocol):
    """Turn names or prompts into conditions."""

    def encode(self, names: Sequence[str | int]) -> Condition:
        """Return the conditions of names or prompts, one for each sample."""
        ...

    def null(self, batch: int) -> Condition | None:
        """Return "no condition" for ``batch`` samples; None where the network has none."""
        ...


@runtime_checkable
class IndexEncoder(Protocol):
    """An encoder whose names have an index."""

    def index(self, name: str | int) -> int:
        """Return the index of a class, by its name or index.

        Raises:
            ValueError: there is no such class.
        """
        ...


@runtime_checkable
class NamesClasses(IndexEncoder, Protocol):
    """An encoder of named classes."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of their indices."""
        ...


@runtime_checkable
class TakesPrompts(Protocol):
    """An encoder of prompts."""

    @property
    def tokenizer(self) -> object:
        """The tokenizer of its prompts."""
        ...


@runtime_checkable
class PartEncoder(Protocol):
    """An encoder of conditions with parts, of which one can be kept alone (pix2pix)."""

    def only(self, name: str | int, part: str) -> str | int:
        """Return a name whose condition has one part, with the null in the place of the others."""
        ...


@runtime_checkable
class ScaleInput(Protocol):
    """What embeds the guidance scale of a distilled student."""

    low: float
    high: float
    default: float


class NoisyClassifier(Protocol):
    """A classifier of noisy samples."""

    def log_prob(self, x: Tensor, level: Level, target: Tensor, /) -> Tensor:
        """Return ``log p(target | x)``, ``[B]``, of samples ``[B, *S]`` at a level."""
        ...


class Judge(Protocol):
    """A classifier of clean images, which guides nothing and only measures."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits ``[N, K]`` of images ``[N, C, H, W]``."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Return features ``[N, d]`` of images ``[N, C, H, W]``."""
        ...


@runtime_checkable
class TextJudge(Protocol):
    """A CLIP that guides nothing and only measures how well images fit captions."""

    def embed_captions(self, captions: Sequence[str], /) -> Tensor:
        """Return unit embeddings ``[N, D]`` of captions."""
        ...

    def embed_image(self, images: Tensor, /) -> Tensor:
        """Return unit embeddings ``[N, D]`` of images ``[N, C, H, W]``."""
        ...


class ImageDecoder(Protocol):
    """Turn samples into images."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return images in [-1, 1] of samples ``[B, *S]``."""
        ...


@runtime_checkable
class LatentDecoder(Protocol):
    """A decoder of latents."""

    @property
    def vae(self) -> DiffusersNetwork:
        """The autoencoder of the latents."""
        ...

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return images in [-1, 1] of latents ``[B, *S]``."""
        ...

    def differentiably(self, x: Tensor, /) -> Tensor:
        """Return images of latents, not clipped, so that a gradient reaches them."""
        ...

    def encode(self, images: Tensor, /) -> Tensor:
        """Return the latents of images ``[B, C, H, W]`` in [-1, 1]."""
        ...
