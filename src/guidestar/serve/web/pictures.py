"""Pictures that clients send: decoded within limits."""

from __future__ import annotations

import base64
import binascii

import numpy as np
import torch
from torch import Tensor

from ...io.decoding import open_picture, to_8_bits
from .errors import RefusedError
from .limits import Limits


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
    text: str, shape: tuple[int, int, int], limits: Limits, field: str, *, resize: bool = False
) -> Tensor:
    """Decode a picture ``[C, H, W]`` in [−1, 1].

    Args:
        text: base64 of it.
        shape: ``C, H, W``.
        limits: of its pixels.
        field: which it is in the request.
        resize: bring a picture of another size to ``shape``, instead of refusing it.

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
        if not resize:
            text = f"{field} is {image.size[0]} × {image.size[1]} pixels, not {width} × {height}"
            raise RefusedError(422, "invalid_request_error", text, field)
        image = image.resize((width, height))
    pixels = torch.from_numpy(np.array(image))
    return (pixels[None] if channels == 1 else pixels.movedim(-1, 0)).float() / 127.5 - 1
