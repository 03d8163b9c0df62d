"""Open pictures of every mode of Pillow as 8-bit grey or RGB, upright, on white."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from PIL import Image

GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Modes without colours (a palette may have none either)."""
_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF


def open_picture(file: Path | str | bytes | BinaryIO, *, pixels: bool = True) -> Image.Image:
    """Open a picture, read all of it, and turn it upright by its EXIF orientation.

    Args:
        file: a path, the bytes of an encoded picture, or an open file.
        pixels: read the pixels; without them only mode, palette and size (before turning) are
            read.

    Raises:
        OSError: the file is no picture, truncated, damaged, or so large that it may be a
            decompression bomb. The message gives the reason, not the file's name.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                if not pixels and image.mode not in ("P", "PA"):  # whose palette is read with them
                    return image
                image.load()
                return ImageOps.exif_transpose(_as_16_bits(image))
    except Exception as error:
        # Pillow's readers raise many kinds of exceptions for a damaged file.
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not a picture of a known format; save it as PNG or JPEG"
        if isinstance(error, Image.DecompressionBombError):
            reason = f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; make it smaller"
        raise OSError(reason) from error


def is_grey(image: Image.Image) -> bool:
    """Return whether a picture has no colours: a grey mode, or a palette of greys."""
    if image.mode in ("P", "PA"):
        palette = image.getpalette("RGB") or []
        return palette[0::3] == palette[1::3] == palette[2::3]
    return image.mode in GREY


def to_8_bits(image: Image.Image, channels: int) -> Image.Image:
    """Convert a picture of any mode to ``L`` or ``RGB``, with transparent pixels on white.

    16 bits are scaled: 65535 is white. Floats run from 0 (black) to 1 (white).

    Args:
        image: the picture.
        channels: 1 for ``L``, 3 for ``RGB``.

    Raises:
        ValueError: floats are outside [0, 1], or whole numbers are signed or of 32 bits, where the
            value of white is not known.
    """
    from PIL import Image

    image = _narrow(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _narrow(image: Image.Image) -> Image.Image:
    """Convert a picture of more than 8 bits a channel to ``L``; others stay as they are."""
    import numpy as np
    from PIL import Image

    if image.mode == "F":
        values = np.asarray(image)
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # false for NaN too
            raise ValueError(
                f"its numbers run from {low:g} to {high:g}; floats must be from 0 (black) to 1 "
                "(white); divide them by their white"
            )
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if not image.mode.startswith("I"):
        return image
    if image.mode == "I":
        raise ValueError(
            "its whole numbers, signed or of 32 bits, have no known white; save it with 8 or 16 "
            "bits"
        )
    values = np.asarray(image).astype(np.int64)
    narrow = np.rint(values / 257).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        narrow[values == clear] = 255  # transparent: white
    return Image.fromarray(narrow)


def _as_16_bits(image: Image.Image) -> Image.Image:
    """Scale a file's grey values of more than 8 bits to 0 (black) … 65535 (white).

    Only where the file's format defines black and white.

    Raises:
        ValueError: floats whose zero is white, or FITS, where the value of white is not known.
    """
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # whose readers scale to 65535
        return image.convert("I;16")
    if image.format == "FITS":
        raise ValueError("the numbers of FITS have no known white; save it as PNG or TIFF")
    if image.format == "TIFF" and image.mode.startswith(("I;16", "F")):
        return _tiff_16_bits(image)
    return image


def _tiff_16_bits(image: Image.Image) -> Image.Image:
    """Scale 12 bits, and invert values whose zero is white: Pillow does neither."""
    import numpy as np
    from PIL import Image, TiffImagePlugin

    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return image
    tags = image.tag_v2
    bits, white_is_zero = tags[_BITS][0], tags.get(_PHOTOMETRIC) == 0
    if image.mode == "F" and white_is_zero:
        raise ValueError("floats whose zero is white cannot be read; save it with black as zero")
    if image.mode == "F" or (bits == 16 and not white_is_zero):
        return image
    values = np.asarray(image).astype(np.int64)
    values = np.rint(values * (65535 / (2**bits - 1))).clip(0, 65535)
    made = Image.fromarray((65535 - values if white_is_zero else values).astype(np.uint16))
    made.info = image.info  # it is upright: Pillow turns a TIFF while it reads it
    return made
