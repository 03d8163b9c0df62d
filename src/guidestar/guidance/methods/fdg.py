"""Frequency-decoupled guidance: a scale for each band of the push."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.denoiser import Condition
from ...core.prediction import Prediction
from ..bases.blur import picture_axes
from ..bases.conditional_contrast import Conditioned
from ..expression import register
from ..term import Live, Pushed
from ..weights import finite

MOST_BANDS = 16
"""Of a pyramid: so many halve 65,536 positions to one."""


@register
@dataclass(frozen=True)
class FDG(Conditioned):
    """Frequency-decoupled guidance: ``c + (s − 1) Σ_b g_b L_b(c − u)``.

    L_b are the bands of a Laplacian pyramid: smooth versions of the difference, each minus the next
    smoother one. Their sum is the difference, exactly, at any size. Band b has the scale
    ``1 + (s − 1) g_b``: the paper's scales 10 (high) and 5 (low) are s = 10 with gains 1 and 4/9.
    With all gains 1 it is cfg; a gain of 0 leaves its band unguided.

    Args:
        scale: s, as in cfg, of a band of gain 1.
        gains: g_b, from the finest band to the coarsest, one for each band; at most 16.
        negative: as in cfg.

    2 evaluations a step. Linear, so it is the same in every space. Bands are taken along the last
    two dimensions, of a sound along its one; each frame of a video has a pyramid of its own. A
    vector ``[B, D]`` is one signal of D positions.

    References:
        Guidance in the Frequency Domain Enables High-Fidelity Sampling at Low CFG Scales,
        https://arxiv.org/abs/2506.19713
            Seyedmorteza Sadat, Tobias Vontobel, Farnood Salehi, Romann M. Weber
    """

    gains: Sequence[float] = (1.0, 4 / 9)
    negative: str | int | Condition | None = None
    name = "fdg"

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = self.gains if isinstance(self.gains, list | tuple) else ()
        if not numbers or not all(map(finite, numbers)):
            raise ValueError(
                f"fdg: gains must be finite numbers, one for each band, not {self.gains!r}"
            )
        if len(numbers) > MOST_BANDS:
            raise ValueError(
                f"fdg: there may be gains for at most {MOST_BANDS} bands, not {len(numbers)}"
            )
        object.__setattr__(self, "gains", tuple(self.gains))

    def shape(self, good: Prediction, bad: Prediction, live: Live) -> Pushed:
        difference = live.form.open(good.x0 - bad.x0)
        push = self.gains[0] * difference
        for b in range(1, len(self.gains)):
            push = push + (self.gains[b] - self.gains[b - 1]) * smooth(difference, b)
        return live.form.close(push), live.state


def smooth(x: Tensor, times: int) -> Tensor:
    """Smooth ``x [B, …]`` by ``times`` levels of a Gaussian pyramid, along its picture."""
    for axis in picture_axes(x):
        matrix = _down_and_up(x.shape[axis], times, x.dtype, x.device)
        x = (x.movedim(axis, -1) @ matrix).movedim(-1, axis)
    return x


@lru_cache(maxsize=64)
def _down_and_up(size: int, times: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix ``[size, size]`` that halves rows ``times`` times, then doubles as often.

    Halving blurs, then interpolates linearly; doubling interpolates, then blurs. Half of an odd
    size n is (n + 1)/2.
    """
    with torch.inference_mode(False):
        rows, sizes = torch.eye(size, dtype=torch.float64), [size]
        for _ in range(times):
            sizes.append((sizes[-1] + 1) // 2)
            rows = _resize(_blur(rows), sizes[-1])
        for larger in reversed(sizes[:-1]):
            rows = _blur(_resize(rows, larger))
        return rows.to(device, dtype)


def _blur(rows: Tensor) -> Tensor:
    size = rows.shape[1]
    padded = F.pad(rows[None], (2, 2), mode="reflect" if size > 2 else "replicate")[0]
    taps = [w / 16 * padded[:, i : i + size] for i, w in enumerate((1, 4, 6, 4, 1))]
    return sum(taps, torch.zeros_like(rows))


def _resize(rows: Tensor, size: int) -> Tensor:
    return F.interpolate(rows[None], size=size, mode="linear", align_corners=False)[0]
