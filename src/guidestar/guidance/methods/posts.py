"""Posts: changes of the guided prediction as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...core.levels import Step
from ...core.passes import COND, Pass
from ...core.prediction import Prediction, Space
from ..bases.statistics import norm, quantile, safe, std
from ..expression import register
from ..term import Live, Post
from ..weights import finite


@register
@dataclass(frozen=True)
class Rescale(Post):
    """CFG rescale: give the guided prediction the standard deviation of the conditional one.

    ``x_r = x̂ · std(c)/std(x̂)``, result ``φ x_r + (1 − φ) x̂``, in ``space``.

    Args:
        scale: φ in [0, 1], usually 0.7; 0 does nothing and needs no pass.
        space: the space of the deviations: v, as for the paper's network, or the output of a
            pipeline's network (eps), to match it.
        along: "sample", or "last" for the L2 norm along the last dimension in place of a sample's
            deviation, as Qwen-Image (the channels of a packed token) and Lumina 2 do, "third" for
            that along the third dimension, as Joy-Image does (``[B, pictures, C, …]``), or "norm"
            for that of the whole sample.
        most: rescale only what is larger, to this many times the conditional one, as Z-Image does.

    0 evaluations more where the sum has the conditional pass, else 1 a step. A constant prediction
    does not change.

    References:
        Common Diffusion Noise Schedules and Sample Steps are Flawed, section 3.4,
        https://arxiv.org/abs/2305.08891
            Shanchuan Lin, Bingchen Liu, Jiashi Li, Xiao Yang
    """

    scale: float = 0.7
    space: Space = "v"
    along: Literal["sample", "last", "third", "norm"] = "sample"
    most: float | None = None
    name = "rescale"

    def __post_init__(self) -> None:
        if not finite(self.scale) or not 0 <= self.scale <= 1:
            raise ValueError(f"rescale: the scale must be in [0, 1], not {self.scale!r}")
        if self.space not in ("v", "eps", "x0", "velocity"):
            raise ValueError(
                f"rescale: the space must be v, eps, x0 or velocity, not {self.space!r}"
            )
        if self.along not in _SIZES:
            known = ", ".join(map(repr, _SIZES))
            raise ValueError(f"rescale: along must be one of {known}, not {self.along!r}")
        if self.most is not None and not (finite(self.most) and self.most > 0):
            raise ValueError(f"rescale: most must be a positive number, not {self.most!r}")

    def passes(self, step: Step) -> tuple[Pass, ...]:
        return (COND,) if self.scale else ()

    def apply(self, prediction: Prediction, live: Live, *predictions: Prediction) -> Prediction:
        if not self.scale:
            return prediction
        guided = prediction.view(self.space)
        size = _SIZES[self.along]
        own, conditional = size(guided), size(predictions[0].view(self.space))
        if self.most is not None:
            conditional = torch.minimum(own, self.most * conditional)
        ratio = torch.where(own == 0, 1.0, conditional / safe(own))
        delta = self.scale * (guided * ratio - guided)
        return prediction.shifted(prediction.to_x0(delta, self.space))


def _last(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a, dim=-1, keepdim=True)


def _third(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a, dim=min(2, a.ndim - 1), keepdim=True)


_SIZES: dict[str, Callable[[Tensor], Tensor]] = {
    "sample": std,
    "last": _last,
    "third": _third,
    "norm": norm,
}


@register
@dataclass(frozen=True)
class Threshold(Post):
    """Dynamic thresholding, for pixels in [−1, 1]: ``D̂ ← clip(D̂, −q, q)/q``.

    ``q = max(1, p-quantile of |D̂|)``, for each sample.

    Args:
        percentile: p in (0, 1], usually 0.995.

    0 evaluations.

    References:
        Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Imagen),
        section 2.3,
        https://arxiv.org/abs/2205.11487
            Chitwan Saharia, William Chan, Saurabh Saxena, Lala Li, Jay Whang, Emily Denton, Seyed
            Kamyar Seyed Ghasemipour, Burcu Karagol Ayan, S. Sara Mahdavi, Rapha Gontijo Lopes, Tim
            Salimans, Jonathan Ho, David J. Fleet, Mohammad Norouzi
    """

    percentile: float = 0.995
    name = "threshold"

    def __post_init__(self) -> None:
        if not finite(self.percentile) or not 0 < self.percentile <= 1:
            raise ValueError(
                f"threshold: the percentile must be in (0, 1], not {self.percentile!r}"
            )

    def apply(self, prediction: Prediction, live: Live, *predictions: Prediction) -> Prediction:
        limit = quantile(prediction.x0.abs(), self.percentile).clamp_min(1)
        return prediction.with_x0(prediction.x0.clamp(-limit, limit) / limit)


@register
@dataclass(frozen=True)
class ClipX0(Post):
    """Static thresholding: ``D̂ ← clip(D̂, −limit, limit)`` (2205.11487).

    Args:
        limit: positive; 1 for pixels in [−1, 1].

    0 evaluations.

    References:
        Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Imagen),
        section 2.3,
        https://arxiv.org/abs/2205.11487
            Chitwan Saharia, William Chan, Saurabh Saxena, Lala Li, Jay Whang, Emily Denton, Seyed
            Kamyar Seyed Ghasemipour, Burcu Karagol Ayan, S. Sara Mahdavi, Rapha Gontijo Lopes, Tim
            Salimans, Jonathan Ho, David J. Fleet, Mohammad Norouzi
    """

    limit: float = 1.0
    name = "clip_x0"

    def __post_init__(self) -> None:
        if not finite(self.limit) or self.limit <= 0:
            raise ValueError(f"clip_x0: the limit must be positive, not {self.limit!r}")

    def apply(self, prediction: Prediction, live: Live, *predictions: Prediction) -> Prediction:
        return prediction.with_x0(prediction.x0.clamp(-self.limit, self.limit))
