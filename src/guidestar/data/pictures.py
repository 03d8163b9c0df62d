"""Pictures as arrays: decoded once, before training, made alike, and kept in a file where they do
not fit into memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.rng import Draw
from ..io.decoding import is_grey, open_picture, to_8_bits
from ..io.files import Damaged, make_folder, whole_or_not
from .source import Column, Held, Source, Targets, pick

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PictureFormat:
    """How pictures are made alike.

    Args:
        size: pixels of a side.
        channels: 1 or 3; None for 3 unless all pictures are grey.
        crop: "center", or "random": a square of ``size`` is cut from one an eighth larger, where
            the draw says.
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
        """Pixels of a side as kept: more than ``size`` where there is something to crop."""
        return round(self.size * 1.125) if self.crop == "random" else self.size


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures(Source):
    """Decoded pictures.

    Args:
        pixels: ``[N, C, side, side]``, uint8; in memory, or mapped from a file.
        targets, columns: as of any source.
        look: size, crop and flip.
    """

    pixels: Tensor
    targets: Held
    columns: Mapping[str, Column]
    look: PictureFormat

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (self.pixels.shape[1], self.look.size, self.look.size)

    @property
    def size(self) -> int:
        """How many pictures there are."""
        return len(self.pixels)

    def batch(self, rows: Sequence[int], draw: Draw) -> tuple[Tensor, Targets]:
        """Return the pictures at ``rows``, in [−1, 1]."""
        where = torch.as_tensor(rows)
        x = prepare(self.pixels[where], self.look, draw)
        return x, pick(self.targets, rows, draw)


def prepare(pixels: Tensor, look: PictureFormat, draw: Draw) -> Tensor:
    """Crop and flip pictures ``[B, C, side, side]`` (uint8) as the draw says, and bring them to
    [−1, 1].
    """
    spare = look.side - look.size
    if spare:
        down, right = (
            (draw.uniform(tag) * (spare + 1)).long()[:, None] + torch.arange(look.size)
            for tag in ("down", "right")
        )
        pixels = pixels.movedim(1, -1)[
            torch.arange(len(pixels))[:, None, None], down[:, :, None], right[:, None, :]
        ].movedim(-1, 1)
    x = pixels.float() / 127.5 - 1
    return (
        torch.where((draw.uniform("flip") < 0.5).view(-1, 1, 1, 1), x.flip(-1), x)
        if look.flip
        else x
    )


def decode(picture: Any, look: PictureFormat, channels: int) -> Tensor:
    """Bring an open picture to ``[C, side, side]``, uint8: 8 bits, on white, resized and cut in the
    middle.

    Raises:
        ValueError: its numbers have no known black and white (`to_8_bits`), or it is smaller than
            ``look.size`` and not to be enlarged.
    """
    import numpy as np
    from PIL import Image, ImageOps

    if not look.enlarge and min(picture.size) < look.size:
        width, height = picture.size
        raise ValueError(
            f"it has {width} × {height} pixels, fewer than data.size, {look.size}, and an "
            "autoencoder would learn the blur of enlarging it"
        )
    plain = to_8_bits(picture, channels)
    if plain.size != (look.side, look.side):
        plain = ImageOps.fit(plain, (look.side, look.side), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(plain))
    return pixels[None] if channels == 1 else pixels.movedim(-1, 0)


def all_grey(pictures: Sequence[Mapping[str, Any] | None]) -> bool:
    """Tell whether no picture has colours."""
    for picture in pictures:
        try:
            if not is_grey(open_encoded(picture, pixels=False)):
                return False
        except OSError:
            continue
    return True


def open_encoded(picture: Mapping[str, Any] | None, *, pixels: bool = True) -> Any:
    """Open an encoded picture, as `datasets` holds it; ``pixels`` as in `open_picture`.

    Raises:
        OSError: there is none, or it is not one.
    """
    encoded = (picture or {}).get("bytes") or (picture or {}).get("path")
    if not encoded:
        raise OSError("there is none")
    return open_picture(encoded, pixels=pixels)


def decode_all(
    pictures: Any,
    look: PictureFormat,
    channels: int,
    max_bad: int,
    cache: Path | None,
    path: Path,
    say: Say | None,
) -> tuple[Tensor, list[int]]:
    """Decode all pictures, or take up what an earlier run decoded; return the pixels and which rows
    they are of.
    """
    import numpy as np

    file = cache / f"pixels-{_key(pictures, look, channels)}.npy" if cache else None
    if file and file.is_file() and file.with_suffix(".json").is_file():
        kept = json.loads(file.with_suffix(".json").read_text())
        return torch.from_numpy(np.load(file, mmap_mode="c"))[: len(kept)], kept
    if file is None:
        kept, out = (
            [],
            torch.empty((len(pictures), channels, look.side, look.side), dtype=torch.uint8),
        )
        for i, pixels in _good(pictures, look, channels, max_bad, path, say):
            out[len(kept)] = pixels
            kept.append(i)
        return out[: len(kept)], kept
    make_folder(file.parent)
    kept = []
    with whole_or_not(file) as beside:
        array = np.lib.format.open_memmap(
            beside, "w+", np.uint8, (len(pictures), channels, look.side, look.side)
        )
        for i, pixels in _good(pictures, look, channels, max_bad, path, say):
            array[len(kept)] = pixels.numpy()
            kept.append(i)
        array.flush()
        with whole_or_not(file.with_suffix(".json")) as rows:
            rows.write_text(json.dumps(kept))
    return torch.from_numpy(np.load(file, mmap_mode="c"))[: len(kept)], kept


def _good(
    pictures: Any, look: PictureFormat, channels: int, max_bad: int, path: Path, say: Say | None
) -> Iterator[tuple[int, Tensor]]:
    """Yield the pictures that can be read, with their rows.

    Raises:
        Damaged: more than ``max_bad`` cannot.
    """
    bad: list[str] = []
    for i, picture in enumerate(pictures):
        try:
            pixels = decode(open_encoded(picture), look, channels)
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
                    f"{path}: cannot read the image {bad[-1]}{more}; mend or remove it, or set "
                    f"data.max_bad (now {max_bad})"
                ) from error
            if say:
                say(f"skipped an image that cannot be read: {bad[-1]}")
            continue
        yield i, pixels


def _key(pictures: Any, look: PictureFormat, channels: int) -> str:
    """Name what the decoded pictures depend on: the files, as the disk knows them, and the look."""
    shape = f"{look.side}/{channels}" + ("" if look.enlarge else "/no smaller")
    digest = hashlib.blake2b(shape.encode(), digest_size=12)
    for picture in pictures:
        if picture is None or picture.get("bytes"):
            digest.update(picture["bytes"] if picture else b"none")
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
