"""Motions that a server sampled: moving pictures of them, and their files."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ...io.images import SETTINGS_KEY
from ...model.motions import body_of_model, motions, need_body, write_joints
from ...model.samples import Carried
from ...motion.body import Body
from ...motion.bvh import format_bvh
from ...motion.drawing import animation_bytes, draw_motions

if TYPE_CHECKING:
    from PIL import Image

    from ...model.model import Model
    from ...model.samples import Samples

SIDE = 240
"""Pixels of the width of a drawn motion."""
MEDIA = {"bvh": "text/plain; charset=utf-8", "npz": "application/zip"}
"""The media types of a motion's files, by their ending."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledMotion:
    """One sampled motion.

    Args:
        body: its skeleton.
        numbers: ``[T, C]``, in their units.
    """

    body: Body
    numbers: Tensor

    def drawn(self) -> list[Image.Image]:
        """Return a picture of each frame."""
        joints = self.body.joints(self.numbers.double().cpu())
        return draw_motions([joints], self.body.format.skeleton, size=SIDE)

    def encoded(self, settings: Carried | None, kind: str) -> bytes:
        """Return it as a file: an animation (png, which carries settings, or webp), bvh or npz."""
        if kind == "bvh":
            return format_bvh(self.body.to_bvh(self.numbers)).encode()
        if kind == "npz":
            write_joints(self.body, self.numbers, made := io.BytesIO())
            return made.getvalue()
        texts = {} if settings is None else {SETTINGS_KEY: json.dumps(settings)}
        moving = kind if kind in ("png", "webp") else "gif"  # a JPEG does not move
        return animation_bytes(self.drawn(), self.body.rate, moving, texts)


def moving_samples(model: Model, samples: Samples) -> list[SampledMotion] | None:
    """Return the motions of a model's samples; None of a model that makes none."""
    body = body_of_model(model)
    if body is None:
        return None
    return [
        SampledMotion(body=body, numbers=x.detach().float().cpu()) for x in motions(model, samples)
    ]


def moving_previews(model: Model, x0: Tensor) -> list[Image.Image]:
    """Return a still of each estimate ``[B, T, C]``: the pose in the middle."""
    body, numbers = need_body(model), model.to_images(x0).detach().double().cpu()
    joints, middle = body.joints(numbers), numbers.shape[1] // 2
    skeleton = body.format.skeleton
    return [draw_motions([j[middle : middle + 1]], skeleton, size=SIDE)[0] for j in joints]
