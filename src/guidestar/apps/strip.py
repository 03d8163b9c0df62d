"""Strips: the same seed on the way from one prompt to another, or at a rising scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..core.denoiser import Condition
from ..guidance import Direction, Guidance, cfg
from ..io.files import whole_or_not
from ..io.images import to_pil
from ..model.model import Model, Watch


def between(first: Condition, second: Condition, frames: int) -> Condition:
    """Return conditions on the straight line from one to another; between the ends, what either
    attends to is attended to.

    Args:
        first, second: of one sample each.
        frames: how many, at least 2.
    """
    shares = torch.linspace(0, 1, frames)
    mixed = {}
    for name, a in first.items():
        b = second[name]
        share = shares.to(a.device).view(-1, *[1] * (a.ndim - 1))
        masks = torch.where(share == 0, a, torch.where(share == 1, b, torch.maximum(a, b)))
        mixed[name] = torch.lerp(a, b, share.to(a.dtype)) if a.is_floating_point() else masks
    return Condition(mixed)


def morph(
    model: Model,
    first: str,
    second: str,
    *,
    frames: int = 9,
    seed: int = 0,
    guidance: str | None = None,
    steps: int | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Sample one seed under conditions on the way from one prompt (or class) to another: images
    ``[frames, C, H, W]``.

    Raises:
        ValueError: fewer than 2 frames, or the model takes no condition.
    """
    if frames < 2:
        raise ValueError(f"a strip has at least 2 frames, not {frames}")
    if model.encoder is None:
        raise ValueError(
            f"the model {model.name!r} is unconditional, so there is nothing to go from or to"
        )
    a, b = (model.encoder.encode([name]) for name in model.names([first, second], 2) or ())
    return _same_seed(
        model,
        model.expression(guidance, steps=steps),
        between(a, b, frames),
        frames,
        seed,
        steps,
        watch,
    )


def rising(
    model: Model,
    prompt: str,
    scales: Sequence[float],
    *,
    seed: int = 0,
    steps: int | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Sample one seed under ``cfg`` of rising scales, in one batch: images
    ``[len(scales), C, H, W]``.
    """
    if model.encoder is None:
        raise ValueError(f"the model {model.name!r} is unconditional, so it has no scale to raise")
    name = (model.names([prompt], 1) or (prompt,))[0]
    return _same_seed(
        model,
        cfg(tuple(scales)),
        model.encoder.encode([name]).repeat(len(scales)),
        len(scales),
        seed,
        steps,
        watch,
    )


def _same_seed(
    model: Model,
    guidance: Guidance | Direction,
    cond: Condition,
    count: int,
    seed: int,
    steps: int | None,
    watch: Watch | None,
) -> Tensor:
    request = model.request(guidance=guidance, seeds=[seed] * count, steps=steps)
    return model.run(replace(request, encoded=cond.to(model.device)), watch=watch).images


def strip_kind(path: Path) -> str:
    """Return the kind of file a strip is written to: png, gif or webp.

    Raises:
        ValueError: another kind.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "gif", "webp"):
        raise ValueError(f"a strip is a .png, an animation a .gif or .webp, not {path.name!r}")
    return kind


def write_strip(images: Tensor, path: Path, *, scale: int = 4, milliseconds: int = 200) -> None:
    """Write images as a strip (.png), or as an animation there and back (.gif, .webp), enlarged
    ``scale`` times.

    Raises:
        ValueError: another kind of file.
    """
    from PIL import Image

    kind = strip_kind(path)
    frames = [
        p.resize((p.width * scale, p.height * scale), Image.Resampling.NEAREST)
        for p in to_pil(images)
    ]
    with whole_or_not(path) as beside:
        if kind == "png":
            sheet = Image.new("RGB", (sum(f.width for f in frames), frames[0].height))
            for i, frame in enumerate(frames):
                sheet.paste(frame, (i * frame.width, 0))
            sheet.save(beside, "PNG")
        else:
            there_and_back = [*frames, *frames[-2:0:-1]]
            there_and_back[0].save(
                beside,
                kind.upper(),
                save_all=True,
                append_images=there_and_back[1:],
                duration=milliseconds,
                loop=0,
            )
