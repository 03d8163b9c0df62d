"""The parts of a trained model: networks, schedule, encoder, decoder, card."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import NoReturn, Self

import torch
from torch import Tensor, nn

from ..core.denoiser import Denoiser
from ..core.levels import Schedule
from ..diffusers.guidance_file import Defaults
from ..guidance.operators import OfDecoded, get_operator
from .manifest import Card
from .protocols import (
    Encoder,
    ImageDecoder,
    Judge,
    LatentDecoder,
    NamesClasses,
    NoisyClassifier,
    TakesPrompts,
    TextJudge,
)


@dataclass(kw_only=True, repr=False)
class ModelParts(ABC):
    """The parts of a trained model; `Model` samples with them.

    Args:
        name: its name, or its folder.
        denoiser: the network that is guided.
        schedule: its noise levels.
        shape: of one sample.
        encoder: turns names into conditions: ``encode(names)``, ``null(batch)``, ``index(name)``,
            ``classes``; None for an unconditional model.
        decode: turns samples into images; by default they are images already.
        nets: further denoisers by name, each with its encoder (``weak``: for autoguidance).
        classifiers: by the name that ``classifier(…, net=name)`` has.
        judge: a classifier that guides nothing and only measures.
        defaults: ``guidance``, ``steps``, ``solver`` and ``grid`` as its card recommends.
        card: the values of its ``guidestar.json``.
    """

    name: str
    denoiser: Denoiser
    schedule: Schedule
    shape: tuple[int, ...]
    encoder: Encoder | None = None
    decode: ImageDecoder = lambda x: x.clamp(-1, 1)
    nets: dict[str, tuple[Denoiser, Encoder | None]] = field(default_factory=dict)
    classifiers: dict[str, NoisyClassifier] = field(default_factory=dict)
    judge: Judge | TextJudge | None = None
    defaults: Defaults = field(default_factory=Defaults)
    card: Card = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, if it has any."""
        encoder = self.encoder
        return tuple(encoder.classes) if isinstance(encoder, NamesClasses) else ()

    @property
    def takes_prompts(self) -> bool:
        """Whether its condition is a prompt."""
        return isinstance(self.encoder, TakesPrompts)

    @property
    def latent(self) -> bool:
        """Whether it works on latents, which `decode` turns into images."""
        return isinstance(self.decode, LatentDecoder)

    @property
    def device(self) -> torch.device:
        """Where the main network is."""
        parameters = (
            self.denoiser.parameters() if isinstance(self.denoiser, nn.Module) else iter(())
        )
        return next((p.device for p in parameters), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Self:
        """Move every network to ``device``."""
        parts = [
            self.denoiser,
            self.encoder,
            self.judge,
            *self.classifiers.values(),
            *(m for pair in self.nets.values() for m in pair),
        ]
        for part in parts:
            if isinstance(part, nn.Module):
                part.to(device)
        return self

    def to_images(self, x: Tensor) -> Tensor:
        """Decode samples ``[B, *S]`` into images.

        Raises:
            FloatingPointError: the decoder returned values that are not finite.
        """
        images = self.decode(x)
        if not bool(images.isfinite().all()) and bool(x.isfinite().all()):
            raise FloatingPointError(
                f"the decoder of {self.name!r} returned values that are not finite from finite "
                "samples; load it in float32"
            )
        return images

    @property
    @torch.inference_mode()
    def image_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of its images; None where its samples are no pictures."""
        shape = self.shape
        if self.latent:
            shape = tuple(self.decode(torch.zeros(1, *shape, device=self.device)).shape[1:])
        return (shape[0], shape[1], shape[2]) if len(shape) == 3 and shape[0] in (1, 3) else None

    def need_image_shape(self) -> tuple[int, int, int]:
        """Return the shape of its images.

        Raises:
            ValueError: its samples are no pictures.
        """
        shape = self.image_shape
        if shape is None:
            raise ValueError(
                f"the model {self.name!r} does not make pictures, but samples of "
                f"{list(self.shape)}; choose a model of pictures"
            )
        return shape

    def from_images(self, images: Tensor) -> Tensor:
        """Return the samples ``[B, *S]`` of images ``[B, C, H, W]`` in [−1, 1]: latents of a model
        of latents, else the images themselves.

        Raises:
            ValueError: they are of another shape than the model's images.
        """
        wanted = self.need_image_shape()
        if tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"the images are {list(images.shape)}, but those of {self.name!r} are [B, "
                f"{', '.join(map(str, wanted))}]"
            )
        return self.decode.encode(images) if isinstance(self.decode, LatentDecoder) else images

    def on_images(self, operator: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return an operator of images as one of samples, for an `Observation`: ``A(decode(x))``
        of a model of latents, else the operator itself.

        Args:
            operator: a function of images ``[B, C, H, W]``, or the name of an operator.

        Raises:
            ValueError: an unknown name, or the model makes no pictures.

        Example:
            ``Observation(model.on_images("downsample"), small_pictures)``
        """
        self.need_image_shape()
        made = get_operator(operator) if isinstance(operator, str) else operator
        if isinstance(self.decode, LatentDecoder):
            return OfDecoded(decode=self.decode.differentiably, operator=made)
        return made

    def need_judge(self) -> Judge:
        """Return the judge.

        Raises:
            ValueError: the model has none.
        """
        if self.judge is None or isinstance(self.judge, TextJudge):
            raise ValueError(
                f"the model {self.name!r} has no judge, so it cannot be measured; train one "
                "([judge] in the recipe)"
            )
        return self.judge

    def need_classes(self) -> NamesClasses:
        """Return the encoder of classes.

        Raises:
            ValueError: the model takes no classes.
        """
        if not isinstance(self.encoder, NamesClasses):
            raise ValueError(f"the model {self.name!r} takes no classes; choose a model of classes")
        return self.encoder

    def __repr__(self) -> str:
        """Describe the model in at most ten lines."""
        named = ", ".join(self.classes[:4]) + (", …" if len(self.classes) > 4 else "")
        takes = (
            "a prompt"
            if self.takes_prompts
            else f"{len(self.classes)} classes ({named})"
            if self.classes
            else "a condition"
            if self.encoder
            else "nothing"
        )
        lines = [
            f"Model {self.name!r}: {self.card.get('summary', '')}".rstrip(": "),
            f"  network      {type(_unwrap(self.denoiser)).__name__}, "
            f"{_count(self.denoiser):,} parameters, on {self.device}",
            f"  schedule     {type(self.schedule).__name__}",
            f"  samples      {list(self.shape)}{', latents of a VAE' if self.latent else ''}",
            f"  condition    {takes}",
            f"  nets         {', '.join(self.nets) or 'none'}",
            "  classifiers  "
            f"{', '.join(self.classifiers) or 'none'}{'; a judge' if self.judge else ''}",
            f"  defaults     {', '.join(f'{k}={v}' for k, v in self.defaults.items()) or 'none'}",
        ]
        return "\n".join(lines)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return type(self)(**{f.name: deepcopy(getattr(self, f.name), memo) for f in fields(self)})

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Model holds functions that cannot be pickled; pass its name or folder on instead, "
            "and call guidestar.load there"
        )


def _unwrap(denoiser: object) -> object:
    """Return the network within its wrappers."""
    while isinstance(net := getattr(denoiser, "net", None), nn.Module):
        denoiser = net
    return denoiser


def _count(denoiser: object) -> int:
    return sum(p.numel() for p in denoiser.parameters()) if isinstance(denoiser, nn.Module) else 0
