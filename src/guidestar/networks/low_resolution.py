"""The low-resolution picture as a condition of a super-resolution network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.denoiser import Condition
from ..core.rng import Draw

LOW = "low_resolution"
"""The name of the low-resolution picture among a network's conditions."""
_FREQUENCIES = 8


def reduced(x: Tensor, size: int) -> Tensor:
    """Reduce pictures ``[B, C, H, W]`` to ``size`` pixels of a side, by means over squares.

    Raises:
        ValueError: the side is no multiple of ``size``.
    """
    if x.shape[-1] % size or x.shape[-2] != x.shape[-1]:
        raise ValueError(
            f"pictures of {x.shape[-2]} x {x.shape[-1]} pixels cannot be reduced to {size}, of "
            "which each side must be a multiple; choose another size"
        )
    return F.avg_pool2d(x, x.shape[-1] // size)


def enlarged(low: Tensor, size: int) -> Tensor:
    """Enlarge pictures ``[B, C, h, w]`` to ``size`` pixels of a side, bilinearly."""
    return F.interpolate(low, (size, size), mode="bilinear", align_corners=False)


def augmented(low: Tensor, level: Tensor, draw: Draw) -> Tensor:
    """Return the rows of a condition: pictures with noise, and its level as one more channel.

    ``z = √(1 − s²) low + s ε``, with ε of the draw's "augmentation".

    Args:
        low: pictures ``[B, C, h, w]``.
        level: s of each, ``[B]``, from 0 to 1.
        draw: one stream for each picture.

    Returns:
        ``[B, C + 1, h, w]``.

    References:
        Cascaded Diffusion Models for High Fidelity Image Generation, section 4.2,
        https://arxiv.org/abs/2106.15282
    """
    s = level.to(low).view(-1, 1, 1, 1)
    z = (1 - s * s).sqrt() * low + s * draw.normal_like("augmentation", low)
    return torch.cat([z, s.expand(len(z), 1, *z.shape[2:])], 1)


class LowResolution(ModelMixin, ConfigMixin):
    """The condition of a super-resolution network: a smaller picture, and how much noise is in it.

    ``low_resolution [B, C, to, to]`` is the picture, enlarged bilinearly; the network gets it
    beside ``x_t``. ``class_labels [B, width]`` is an embedding of the noise's level s, by two
    layers on s and its sines and cosines. Rows are ``[B, C + 1, size, size]`` (`augmented`); rows
    of NaN are the null: a grey picture of zeros, and a learned embedding.

    Args:
        channels: C.
        size: pixels of a side of the smaller picture.
        to: pixels of a side of the network's pictures.
        width: of the embedding.
        largest: the largest level of training, in [0, 1].
        droppable: whether the picture was left out in training now and then.
    """

    @register_to_config
    def __init__(
        self,
        channels: int,
        size: int,
        to: int,
        width: int,
        largest: float = 0.5,
        droppable: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.size, self.to_size = channels, size, to
        self.largest, self.droppable = largest, droppable
        self.first = nn.Linear(1 + 2 * _FREQUENCIES, width)
        self.second = nn.Linear(width, width)
        self.unknown = nn.Parameter(torch.zeros(width))

    def null_row(self) -> Tensor:
        """Return NaN for every number."""
        return torch.full((self.channels + 1, self.size, self.size), math.nan)

    def forward(self, rows: Tensor) -> Condition:
        """Return the network's condition of rows ``[B, C + 1, size, size]``."""
        missing = rows[:, -1, :1, 0].isnan()
        known = rows.nan_to_num().to(self.first.weight.dtype)
        level = known[:, -1, :1, 0]
        waves = level * math.pi * 2.0 ** torch.arange(_FREQUENCIES).to(level)
        features = torch.cat([level, waves.sin(), waves.cos()], 1)
        embedded = self.second(F.silu(self.first(features)))
        picture = enlarged(known[:, :-1], self.to_size)
        return Condition(
            {LOW: picture, "class_labels": torch.where(missing, self.unknown, embedded)}
        )

    def rows(self, values: Tensor) -> Tensor:
        """Return rows as they are."""
        return values

    def parse(self, name: str | int) -> str:
        """Refuse a picture by name: a run gives it as a tensor.

        Raises:
            ValueError: always, but for "".
        """
        raise ValueError(
            "a super-resolution model takes a picture, not its name alone; call "
            "guidestar.upscale(model, pictures, …), or use the whole cascade"
        )

    def encode(self, names: Sequence[str | int]) -> Condition:
        """Refuse names, as `parse`."""
        self.parse(names[0])
        raise AssertionError

    def null(self, batch: int) -> Condition:
        """Return the null for ``batch`` samples."""
        return self(self.null_row().to(self.unknown.device).expand(batch, -1, -1, -1))


def low_of(encoder: Any) -> LowResolution | None:
    """Return the part of an encoder that takes a low-resolution picture; None without."""
    if isinstance(encoder, LowResolution):
        return encoder
    found = dict(encoder.parts.items()).get(LOW) if hasattr(encoder, "parts") else None
    return found if isinstance(found, LowResolution) else None
