"""Two expressions from the same seeds, and their difference."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from ...io.images import to_bytes


def difference_picture(first: str, second: str) -> tuple[str, float]:
    """Return where two pictures (PNG in base64) differ, and by how much.

    Returns:
        ``128 + (second − first) · gain``, with the gain at which the largest difference is just
        within range, and that largest difference, from 0 to 1.

    Raises:
        ValueError: they are of different sizes.
    """
    a, b = (_pixels(p) for p in (first, second))
    if a.shape != b.shape:
        raise ValueError("the pictures are of different sizes")
    delta = b - a
    most = float(np.abs(delta).max())
    shown = 128 + delta * (127 / most if most else 0.0)
    picture = Image.fromarray(shown.round().astype(np.uint8))
    return base64.b64encode(to_bytes(picture)).decode(), most / 255


def _pixels(picture: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        return np.asarray(image, dtype=np.float64)
