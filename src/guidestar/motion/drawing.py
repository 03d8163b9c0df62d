"""Draw motions as stick figures, from the side and from above, and write them as animations."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..io.files import whole_or_not
from .features import mirrored_pairs
from .skeleton import Skeleton

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

AnimationKind = Literal["webp", "gif", "mp4"]
"""Kinds of animations."""
_LEFT, _RIGHT, _MIDDLE, _PATH, _GROUND = "#1b6ca8", "#c0392b", "#34495e", "#d68910", "#c8c8c8"
_MARGIN = 0.08
ABOVE = 0.45
"""Height of the view from above, as a share of its width."""


@dataclass(frozen=True, kw_only=True)
class _View:
    """A window of the plane: which axes go right and up, where it lies, and how large it is."""

    axes: tuple[int, int]
    low: tuple[float, float]
    pixels: float
    top: int
    height: int

    def spots(self, points: Tensor) -> list[tuple[float, float]]:
        """Return where points ``[N, 3]`` are drawn."""
        right = (points[:, self.axes[0]] - self.low[0]) * self.pixels
        up = (points[:, self.axes[1]] - self.low[1]) * self.pixels
        return list(zip(right.tolist(), (self.top + self.height - up).tolist(), strict=True))


def draw_motions(
    joints: Sequence[Tensor],
    skeleton: Skeleton,
    *,
    labels: Sequence[str] = (),
    size: int = 200,
    columns: int = 4,
) -> list[Image.Image]:
    """Draw each frame of motions side by side: from the side, and below that from above.

    All are drawn at one scale. From the side the view moves with the root, and marks on the ground
    show how far; from above the root's path is drawn. Left limbs are blue, right ones red. A motion
    that has ended stands still.

    Args:
        joints: positions of each motion ``[T_k, J, 3]``, y upwards.
        skeleton: whose joints they are.
        labels: a line above each.
        size: pixels of a side of one motion.
        columns: motions in a row.

    Returns:
        As many pictures as the longest motion has frames.

    Raises:
        ValueError: there are no motions.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not joints:
        raise ValueError("there are no motions to draw; give at least one")
    centred = [_centred(j.detach().double().cpu()) for j in joints]
    views = _views(centred, size)
    inks = _inks(skeleton)
    head = 18 if labels else 0
    high = head + sum(view.height for view in views)
    rows = -(-len(joints) // columns)
    font, pictures = ImageFont.load_default(12), []
    for t in range(max(len(j) for j in centred)):
        canvas = Image.new("RGB", (min(columns, len(joints)) * size, rows * high), "white")
        for k, places in enumerate(centred):
            tile = Image.new("RGB", (size, high - head), "white")
            draw = ImageDraw.Draw(tile)
            _draw_frame(draw, places, min(t, len(places) - 1), views, skeleton.parents, inks)
            corner = (k % columns) * size, (k // columns) * high
            canvas.paste(tile, (corner[0], corner[1] + head))
            if labels:
                name = labels[k][: max(1, size // 7)]
                ImageDraw.Draw(canvas).text((corner[0] + 4, corner[1] + 2), name, "black", font)
        pictures.append(canvas)
    return pictures


def _centred(joints: Tensor) -> Tensor:
    """Put the middle of a motion's way above the origin, and its lowest place on the ground."""
    low, high = joints.flatten(0, 1).amin(0), joints.flatten(0, 1).amax(0)
    middle = (low + high) / 2
    middle[1] = low[1]
    return joints - middle


def _views(centred: Sequence[Tensor], size: int) -> tuple[_View, _View]:
    """Return the view from the side, which moves with the root, and the one from above."""
    points = torch.cat([j.flatten(0, 1) for j in centred])
    tall = max(float(points[:, 1].max()), 1e-6)
    reach = max(float((j[..., 2] - j[:, :1, 2]).abs().max()) * 2 for j in centred)
    pixels = size * (1 - 2 * _MARGIN) / max(tall, reach)
    across, edge = size / pixels, size * _MARGIN / pixels
    side = _View(axes=(2, 1), low=(-across / 2, -edge), pixels=pixels, top=0, height=size)
    wide, deep = (float(points[:, axis].abs().max()) * 2 for axis in (2, 0))
    below = round(size * ABOVE)
    pixels = size * (1 - 2 * _MARGIN) / max(wide, deep / ABOVE, tall)
    low = (-size / pixels / 2, -below / pixels / 2)
    return side, _View(axes=(2, 0), low=low, pixels=pixels, top=size, height=below)


def _inks(skeleton: Skeleton) -> list[str]:
    """Return the colour of the bone that ends at each joint."""
    inks = [_MIDDLE] * skeleton.count
    for left, right in mirrored_pairs(skeleton):
        inks[left], inks[right] = _LEFT, _RIGHT
    return inks


def _draw_frame(
    draw: ImageDraw.ImageDraw,
    places: Tensor,
    t: int,
    views: tuple[_View, _View],
    parents: Sequence[int],
    inks: Sequence[str],
) -> None:
    side, above = views
    beside = torch.zeros(3, dtype=places.dtype)
    beside[2] = places[t, 0, 2]  # the view from the side moves with the root
    level = side.spots(torch.zeros(1, 3, dtype=places.dtype))[0][1]
    draw.line([(0, level), (10_000, level)], fill=_GROUND)
    for mark in _marks(side, float(beside[2])):
        draw.line([(mark, level), (mark - 4, level + 6)], fill=_GROUND)
    draw.line([(0, above.top), (10_000, above.top)], fill=_GROUND)
    way = above.spots(places[: t + 1, 0])
    if len(way) > 1:
        draw.line(way, fill=_PATH, width=2)
    for view, points in ((side, places[t] - beside), (above, places[t])):
        spots = view.spots(points)
        for joint, parent in enumerate(parents):
            if parent >= 0:
                draw.line([spots[parent], spots[joint]], fill=inks[joint], width=2)


def _marks(side: _View, at: float) -> list[float]:
    """Return where the marks on the ground are drawn, a quarter of the view apart."""
    apart = -2 * side.low[0] / 4
    first = math.floor((at + side.low[0]) / apart)
    return [((first + k) * apart - at - side.low[0]) * side.pixels for k in range(6)]


def write_animation(frames: Sequence[Image.Image], path: Path, rate: float) -> None:
    """Write pictures as an animation, whole or not at all; the ending of the name says which kind.

    Args:
        frames: at least one.
        path: ends in .webp, .gif or .mp4 (which needs imageio-ffmpeg).
        rate: pictures a second; a GIF has whole hundredths of a second.

    Raises:
        ValueError: an unknown ending, or imageio-ffmpeg is missing.
        OSError: it cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("webp", "gif", "mp4"):
        raise ValueError(f"{path}: an animation ends in .webp, .gif or .mp4, not {path.suffix!r}")
    with whole_or_not(path) as beside:
        if kind == "mp4":
            _write_film(frames, beside, rate)
            return
        beside.write_bytes(animation_bytes(frames, rate, "gif" if kind == "gif" else "webp"))


def animation_bytes(
    frames: Sequence[Image.Image],
    rate: float,
    kind: Literal["png", "webp", "gif"],
    texts: Mapping[str, str] | None = None,
) -> bytes:
    """Encode pictures as an animation: a WebP, a GIF, or a PNG that moves, which carries texts.

    Args:
        frames: at least one.
        rate: pictures a second.
        kind: of the file.
        texts: by key, of a PNG.
    """
    from PIL import PngImagePlugin

    first, *rest = frames
    more: dict[str, Any] = {"quality": 60} if kind == "webp" else {"disposal": 2}
    if kind == "png":
        more = {"pnginfo": PngImagePlugin.PngInfo()}
        for key, text in (texts or {}).items():
            more["pnginfo"].add_text(key, text)
    made, pace = io.BytesIO(), {"duration": round(1000 / rate), "loop": 0}
    first.save(made, kind.upper(), save_all=True, append_images=rest, **pace, **more)
    return made.getvalue()


def _write_film(frames: Sequence[Image.Image], path: Path, rate: float) -> None:
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ValueError(
            "an MP4 needs imageio-ffmpeg, which is not installed: pip install imageio-ffmpeg, or "
            "write a WebP or GIF"
        )
    import imageio_ffmpeg
    import numpy as np

    even = [f.crop((0, 0, f.width // 2 * 2, f.height // 2 * 2)) for f in frames]
    more = {"fps": rate, "output_params": ["-f", "mp4"], "macro_block_size": 2}
    writer = imageio_ffmpeg.write_frames(str(path), even[0].size, **more)
    writer.send(None)
    for frame in even:
        writer.send(np.ascontiguousarray(np.asarray(frame)))
    writer.close()
