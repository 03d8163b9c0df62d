"""Pictures that clients send: decoded within limits."""

from __future__ import annotations

import base64
import binascii
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...io.decoding import open_picture, to_8_bits
from .errors import RefusedError
from .limits import Limits

Resize = Literal["stretch", "crop"]
"""How a picture of another size becomes the model's."""


def fit_picture(
    image: Image.Image, size: tuple[int, int], channels: int, how: Resize
) -> Image.Image:
    """Bring a picture to a size and to grey or RGB, over white where it is transparent.

    Args:
        image: any.
        size: width and height.
        channels: 1 or 3.
        how: "stretch" changes its proportions, "crop" cuts what is too wide or too high.

    Raises:
        ValueError: its white is not known (`to_8_bits`).
    """
    image = to_8_bits(image, channels)
    if image.size == size:
        return image
    if how == "crop":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return image.resize(size)


def from_base64(text: str, field: str) -> bytes:
    """Decode base64, also of a data URL.

    Raises:
        RefusedError: it is none.
    """
    try:
        return base64.b64decode(
            text.partition(",")[2] if text[:5] == "data:" else text, validate=True
        )
    except (binascii.Error, ValueError):
        raise RefusedError(
            422, "invalid_request_error", f"{field} must be a picture in base64", field
        ) from None


def to_tensor(
    text: str,
    shape: tuple[int, int, int],
    limits: Limits,
    field: str,
    *,
    resize: Resize | None = None,
) -> Tensor:
    """Decode a picture ``[C, H, W]`` in [−1, 1].

    Args:
        text: base64 of it.
        shape: ``C, H, W``.
        limits: of its pixels.
        field: which it is in the request.
        resize: how a picture of another size becomes ``shape``; None refuses it.

    Raises:
        RefusedError: it cannot be read, or is of another size.
    """
    data = from_base64(text, field)
    channels, height, width = shape
    try:
        size = open_picture(data, pixels=False).size
        if size[0] * size[1] > limits.pixels:
            raise OSError(f"it has more than {limits.pixels:,} pixels; make it smaller")
        image = to_8_bits(open_picture(data), channels)
    except (OSError, ValueError) as error:
        raise RefusedError(
            422, "invalid_request_error", f"{field} cannot be read as a picture: {error}", field
        ) from None
    if image.size != (width, height):
        if resize is None:
            text = f"{field} is {image.size[0]} × {image.size[1]} pixels, not {width} × {height}"
            raise RefusedError(422, "invalid_request_error", text, field)
        image = fit_picture(image, (width, height), channels, resize)
    return pixels_of(image)


def pixels_of(image: Image.Image) -> Tensor:
    """Return a grey or RGB picture as ``[C, H, W]`` in [−1, 1]."""
    pixels = torch.from_numpy(np.array(image))
    return (pixels[None] if image.mode == "L" else pixels.movedim(-1, 0)).float() / 127.5 - 1
