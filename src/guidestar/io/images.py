"""Turn tensors into pictures, labelled sheets and PNG files that hold the settings of a run."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from .documents import JSONObject
from .files import whole_or_not

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SETTINGS_KEY = "guidestar"
"""Name of the PNG text chunk that holds a run's settings."""


def to_pil(images: Tensor) -> list[Image.Image]:
    """Turn images ``[B, 1 or 3, H, W]`` in [−1, 1] into pictures of 8 bits.

    Raises:
        ValueError: the tensor has another shape.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images must be [B, 1 or 3, H, W], not {tuple(images.shape)}; for other data use the "
            "tensor .x itself, or to_drawings"
        )
    pixels = (
        ((images.detach().float().clamp(-1, 1) + 1) * 127.5)
        .round()
        .byte()
        .cpu()
        .movedim(1, -1)
        .numpy()
    )
    return [Image.fromarray(p[:, :, 0] if p.shape[-1] == 1 else p) for p in pixels]


def to_drawings(x: Tensor, size: int = 96) -> list[Image.Image]:
    """Draw samples ``[B, *S]``: images as they are, sequences ``[T, C]`` and vectors as curves.

    Args:
        x: the samples; images are in [−1, 1].
        size: pixels of a side of the curves.
    """
    if x.ndim == 4 and x.shape[1] in (1, 3):
        return to_pil(x)
    curves = x.detach().float().cpu()
    curves = (
        curves[:, :, None]
        if curves.ndim == 2
        else curves.flatten(2)
        if curves.ndim == 3
        else curves.flatten(1)[:, :, None]
    )
    low, high = float(curves.min()), float(curves.max())
    return [_curves((c - low) / max(high - low, 1e-9), size) for c in curves]


_INKS = ("#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad", "#d68910", "#34495e")


def _curves(y: Tensor, size: int) -> Image.Image:
    """Draw the columns of ``y [T, C]`` in [0, 1] as curves; of one number a flat one."""
    y = y.expand(2, -1) if len(y) == 1 else y
    canvas = Image.new("RGB", (size, size), "#f4f4f4")
    draw = ImageDraw.Draw(canvas)
    across = [i * (size - 1) / (len(y) - 1) for i in range(len(y))]
    for i, column in enumerate(y.T.tolist()):
        draw.line(
            [(a, (1 - v) * (size - 1)) for a, v in zip(across, column, strict=True)],
            fill=_INKS[i % len(_INKS)],
        )
    return canvas


def save_png(image: Image.Image, path: Path, settings: JSONObject | None = None) -> None:
    """Write a PNG file, whole or not at all, ``settings`` as JSON in the text chunk `SETTINGS_KEY`.

    Raises:
        OSError: it cannot be written.
    """
    info = PngImagePlugin.PngInfo()
    if settings is not None:
        info.add_text(SETTINGS_KEY, json.dumps(settings))
    with whole_or_not(path) as beside:
        image.save(beside, "PNG", pnginfo=info)


def to_bytes(image: Image.Image, settings: JSONObject | None = None, kind: str = "png") -> bytes:
    """Encode a picture as ``kind``: png, with ``settings`` inside, jpeg or webp without any."""
    made = io.BytesIO()
    if kind == "png":
        info = PngImagePlugin.PngInfo()
        if settings is not None:
            info.add_text(SETTINGS_KEY, json.dumps(settings))
        image.save(made, "PNG", pnginfo=info)
    else:
        image.save(made, kind.upper(), quality=95)
    return made.getvalue()


def write_text(text: str, path: Path) -> None:
    """Write a text file whole or not at all."""
    with whole_or_not(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_tensors(tensors: dict[str, Tensor], settings: DataclassInstance, path: Path) -> None:
    """Write tensors as safetensors, whole or not at all, with a run's settings in the metadata."""
    from safetensors.torch import save

    with whole_or_not(path) as beside:
        beside.write_bytes(
            save(
                {k: t.cpu().contiguous() for k, t in tensors.items()},
                {SETTINGS_KEY: json.dumps(asdict(settings))},
            )
        )


def read_settings(file: Path | bytes) -> JSONObject:
    """Read the settings that a PNG file holds, by its path or its bytes.

    Raises:
        ValueError: the file is no PNG, or holds no settings.
    """
    path = "the picture" if isinstance(file, bytes) else file
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            text = image.info.get(SETTINGS_KEY)
    except Exception as error:  # Pillow raises many kinds for a damaged file
        why = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(
            f"{path} cannot be read as a picture ({why}); give a PNG that 'guidestar sample' wrote"
        ) from error
    if text is None:
        raise ValueError(
            f"{path} holds no guidestar settings; give a PNG that 'guidestar sample' wrote"
        )
    try:
        settings = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} holds settings that are no JSON ({error}); give a PNG that 'guidestar "
            "sample' "
            "wrote"
        ) from error
    if not isinstance(settings, dict):
        raise ValueError(
            f"{path} holds settings that are no JSON object; give a PNG that 'guidestar sample' "
            "wrote"
        )
    return settings


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One row of a sheet.

    Args:
        label: the text at its left; several lines are allowed.
        images: its pictures, of one size.
    """

    label: str
    images: Sequence[Image.Image]


def sheet(
    rows: Sequence[SheetRow],
    *,
    columns: Sequence[str] = (),
    span: int = 1,
    title: str = "",
    scale: int = 2,
    gap: int = 4,
) -> Image.Image:
    """Lay out rows of pictures under each other, with labels.

    Args:
        rows: the rows, of equally many pictures of one size.
        columns: a label over each group of ``span`` pictures; several lines are allowed.
        span: pictures of a group; a wider gap follows each group.
        title: a line over the sheet.
        scale: whole factor by which pixels are enlarged.
        gap: pixels between pictures.
    """
    font, bold = ImageFont.load_default(13), ImageFont.load_default(17)
    width, height = (scale * n for n in rows[0].images[0].size)
    left = max(max(font.getlength(t) for t in r.label.split("\n")) for r in rows)
    left = int(left) + 16 if left else gap
    lines = max((name.count("\n") + 1 for name in columns), default=0)
    top = (32 if title else gap) + (6 + 16 * lines if columns else 0)
    count = max(len(r.images) for r in rows)
    spot = [left + i * (width + gap) + (i // span) * 2 * gap * (span > 1) for i in range(count + 1)]
    canvas = Image.new("RGB", (spot[-1] + gap, top + len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 7), title, "black", font=bold)
    for i, name in enumerate(columns):
        middle = (spot[i * span] + spot[min((i + 1) * span, count) - 1] + width) / 2
        draw.multiline_text(
            (middle, top - 3), name, "black", font=font, anchor="md", align="center", spacing=2
        )
    for j, row in enumerate(rows):
        y = top + j * (height + gap)
        draw.multiline_text(
            (8, y + height / 2), row.label, "black", font=font, anchor="lm", spacing=3
        )
        for i, image in enumerate(row.images):
            canvas.paste(
                image.convert("RGB").resize((width, height), Image.Resampling.NEAREST), (spot[i], y)
            )
    return canvas
