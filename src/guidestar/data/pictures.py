"""Pictures as arrays of one format, decoded once before training.

They are kept in a file where they do not fit into memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import torch
from torch import Tensor

from ..core.rng import Draw
from ..io.decoding import is_grey, open_picture, to_8_bits
from ..io.files import Damaged, make_folder, whole_or_not
from .source import Column, Held, Source, Targets, pick, split_captions

if TYPE_CHECKING:
    from PIL import Image

Say = Callable[[str], None]
"""Called with a line about each picture that is skipped."""


class EncodedPicture(TypedDict, total=False):
    """A picture as `datasets` holds it: the bytes of a file, or its path."""

    bytes: bytes | None
    path: str | None


@dataclass(frozen=True, kw_only=True)
class PictureFormat:
    """The format that all pictures are brought to.

    Args:
        size: pixels of a side.
        channels: 1 or 3; None for 3 unless all pictures are grey.
        crop: "center", or "random": a square of ``size`` is cut at random from one that is an
            eighth larger.
        flip: mirror left to right with probability ½.
        enlarge: pictures smaller than ``size`` are enlarged; else they cannot be read.
    """

    size: int
    channels: int | None = None
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    enlarge: bool = True

    @property
    def side(self) -> int:
        """Pixels of a side before the crop: more than ``size`` for random crops."""
        return round(self.size * 1.125) if self.crop == "random" else self.size


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures(Source):
    """Decoded pictures.

    Args:
        pixels: ``[N, C, side, side]``, uint8; in memory, or mapped from a file.
        targets: values of all samples by column.
        columns: what each column holds.
        format: size, crop and flip.
    """

    pixels: Tensor
    targets: Held
    columns: Mapping[str, Column]
    format: PictureFormat

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (self.pixels.shape[1], self.format.size, self.format.size)

    @property
    def size(self) -> int:
        """Number of pictures."""
        return len(self.pixels)

    def batch(self, rows: Sequence[int], draw: Draw) -> tuple[Tensor, Targets]:
        """Return the pictures at ``rows``, in [−1, 1]."""
        where = torch.as_tensor(rows)
        x = prepare_pictures(self.pixels[where], self.format, draw)
        return x, pick(self.targets, rows, draw)

    def captions(self, column: str, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """Return all captions of the pictures at ``rows``."""
        return split_captions(self.targets, column, rows)


def prepare_pictures(pixels: Tensor, format: PictureFormat, draw: Draw) -> Tensor:
    """Crop and flip pictures at random, and bring them to [−1, 1].

    Args:
        pixels: ``[B, C, side, side]``, uint8.
        format: size, crop and flip.
        draw: the random numbers (tags "down", "right" and "flip").

    Returns:
        ``[B, C, size, size]``, float32.
    """
    spare = format.side - format.size
    if spare:
        down, right = (
            (draw.uniform(tag) * (spare + 1)).long()[:, None] + torch.arange(format.size)
            for tag in ("down", "right")
        )
        pixels = pixels.movedim(1, -1)[
            torch.arange(len(pixels))[:, None, None], down[:, :, None], right[:, None, :]
        ].movedim(-1, 1)
    x = pixels.float() / 127.5 - 1
    return (
        torch.where((draw.uniform("flip") < 0.5).view(-1, 1, 1, 1), x.flip(-1), x)
        if format.flip
        else x
    )


def decode(picture: Image.Image, format: PictureFormat, channels: int) -> Tensor:
    """Bring an open picture to ``[C, side, side]``, uint8, resized and cut in the middle.

    Raises:
        ValueError: the value of its white is not known (`to_8_bits`), or it is smaller than
            ``format.size`` and not to be enlarged.
    """
    import numpy as np
    from PIL import Image, ImageOps

    if not format.enlarge and min(picture.size) < format.size:
        width, height = picture.size
        raise ValueError(
            f"it has {width} × {height} pixels, fewer than data.size, {format.size}, and an "
            "autoencoder would learn the blur of enlarging it"
        )
    plain = to_8_bits(picture, channels)
    if plain.size != (format.side, format.side):
        plain = ImageOps.fit(plain, (format.side, format.side), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(plain))
    return pixels[None] if channels == 1 else pixels.movedim(-1, 0)


def all_grey(pictures: Iterable[EncodedPicture | None]) -> bool:
    """Return whether no picture has colours; unreadable ones are passed over."""
    for picture in pictures:
        try:
            if not is_grey(open_encoded(picture, pixels=False)):
                return False
        except OSError:
            continue
    return True


def open_encoded(picture: EncodedPicture | None, *, pixels: bool = True) -> Image.Image:
    """Open an encoded picture; ``pixels`` as in `open_picture`.

    Raises:
        OSError: there is no picture, or it cannot be read.
    """
    encoded = (picture or {}).get("bytes") or (picture or {}).get("path")
    if not encoded:
        raise OSError("it is empty")
    return open_picture(encoded, pixels=pixels)


def decode_all(
    pictures: Collection[EncodedPicture | None],
    format: PictureFormat,
    channels: int,
    max_bad: int,
    cache: Path | None,
    path: Path,
    say: Say | None,
) -> tuple[Tensor, list[int]]:
    """Decode all pictures, or read those that an earlier run decoded.

    Args:
        pictures: the encoded pictures.
        format: the format that they are brought to.
        channels: 1 or 3.
        max_bad: how many unreadable pictures to skip.
        cache: folder to keep the pixels in; None keeps them in memory.
        path: the data, for messages.
        say: called for each picture that is skipped.

    Returns:
        The pixels ``[N, C, side, side]`` of the readable pictures, and their rows.

    Raises:
        Damaged: more than ``max_bad`` pictures cannot be read.
    """
    import numpy as np

    file = cache / f"pixels-{_key(pictures, format, channels)}.npy" if cache else None
    if file and file.is_file() and file.with_suffix(".json").is_file():
        kept = json.loads(file.with_suffix(".json").read_text())
        return torch.from_numpy(np.load(file, mmap_mode="c"))[: len(kept)], kept
    if file is None:
        kept, out = (
            [],
            torch.empty((len(pictures), channels, format.side, format.side), dtype=torch.uint8),
        )
        for i, pixels in _decode_readable(pictures, format, channels, max_bad, path, say):
            out[len(kept)] = pixels
            kept.append(i)
        return out[: len(kept)], kept
    make_folder(file.parent)
    kept = []
    with whole_or_not(file) as beside:
        array = np.lib.format.open_memmap(
            beside, "w+", np.uint8, (len(pictures), channels, format.side, format.side)
        )
        for i, pixels in _decode_readable(pictures, format, channels, max_bad, path, say):
            array[len(kept)] = pixels.numpy()
            kept.append(i)
        array.flush()
        with whole_or_not(file.with_suffix(".json")) as rows:
            rows.write_text(json.dumps(kept))
    return torch.from_numpy(np.load(file, mmap_mode="c"))[: len(kept)], kept


def _decode_readable(
    pictures: Iterable[EncodedPicture | None],
    format: PictureFormat,
    channels: int,
    max_bad: int,
    path: Path,
    say: Say | None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield the pictures that can be read, with their rows."""
    bad: list[str] = []
    for i, picture in enumerate(pictures):
        try:
            pixels = decode(open_encoded(picture), format, channels)
        except (OSError, ValueError) as error:
            bad.append(
                f"{(picture or {}).get('path') or f'row {i}'} ({' '.join(str(error).split())})"
            )
            if len(bad) > max_bad:
                more = (
                    f", after {', '.join(b.split(' (')[0] for b in bad[:-1][:3])}"
                    if len(bad) > 1
                    else ""
                )
                raise Damaged(
                    f"{path}: cannot read the image {bad[-1]}{more}; replace or remove it, or "
                    f"raise data.max_bad (now {max_bad})"
                ) from error
            if say:
                say(f"skipped an image that cannot be read: {bad[-1]}")
            continue
        yield i, pixels


def _key(pictures: Iterable[EncodedPicture | None], format: PictureFormat, channels: int) -> str:
    """Return a digest of the files (by size and time) and of the format."""
    shape = f"{format.side}/{channels}" + ("" if format.enlarge else "/no smaller")
    digest = hashlib.blake2b(shape.encode(), digest_size=12)
    for picture in pictures:
        if held := (picture or {}).get("bytes"):
            digest.update(held)
        elif picture is None:
            digest.update(b"none")
        else:
            digest.update(f"{picture.get('path')}/{_state(picture.get('path'))}".encode())
    return digest.hexdigest()


def _state(path: str | None) -> str:
    """Return the size and the time of a file; "" where there is none."""
    try:
        about = os.stat(path or "")
    except OSError:
        return ""
    return f"{about.st_size}/{about.st_mtime_ns}"
