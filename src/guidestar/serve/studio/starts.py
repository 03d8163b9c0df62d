"""Pictures to start from: what visitors dropped, by names that follow from their pixels."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...io.decoding import open_picture, to_8_bits
from ...io.images import to_bytes

STRENGTH = 0.6
"""The share of the steps that a picture to start from goes through, to begin with."""

_MOST_BYTES = 64 * 2**20
"""Base64 of all that are kept; those that were not used for longest go first."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A picture to start from.

    Args:
        name: of it, which follows from its pixels.
        image: PNG in base64.
    """

    name: str
    image: str


def read_start(path: str, most_pixels: int, side: int) -> Start:
    """Read a picture that was dropped: upright, 8 bits, on white.

    Args:
        path: of its file.
        most_pixels: that it may have.
        side: pixels of its shorter side, to which larger ones are made smaller.

    Raises:
        ValueError: it cannot be read, or has too many pixels.
    """
    try:
        data = Path(path).read_bytes()
        width, height = open_picture(data, pixels=False).size
        if width * height > most_pixels:
            raise OSError(f"it has more than {most_pixels:,} pixels; make it smaller")
        image = to_8_bits(open_picture(data), 3)
    except (OSError, ValueError) as error:
        raise ValueError(f"this cannot be read as a picture: {error}") from None
    if (shorter := min(image.size)) > side:
        size = tuple(max(1, round(s * side / shorter)) for s in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    png = to_bytes(image)
    return Start(name=hashlib.sha256(png).hexdigest()[:20], image=base64.b64encode(png).decode())


class Starts:
    """The pictures to start from that are kept, by their names."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, Start] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, start: Start) -> str:
        """Keep a picture, and return its name."""
        with self._lock:
            self._found[start.name] = start
            self._found.move_to_end(start.name)
            while len(self._found) > 1 and self._bytes() > _MOST_BYTES:
                self._found.popitem(last=False)
        return start.name

    def find(self, name: str) -> Start | None:
        """Return a picture by its name; None where it is not kept."""
        with self._lock:
            found = self._found.get(name)
            if found is not None:
                self._found.move_to_end(name)
        return found

    def _bytes(self) -> int:
        return sum(len(start.image) for start in self._found.values())
