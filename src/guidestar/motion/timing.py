"""Motions at another frame rate, cut and padded."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .rotations import slerp
from .skeleton import Pose


def resample(pose: Pose, rate: float, to: float) -> Pose:
    """Return the same motion at another frame rate.

    Frame k of the result is at k/to seconds, between two frames of the motion: positions are
    interpolated linearly, rotations along the shortest way. It ends with the last such frame.

    Args:
        pose: ``[T, …]``.
        rate: its frames a second.
        to: the result's.

    Raises:
        ValueError: a rate is not above 0.
    """
    if not (rate > 0 and to > 0):
        raise ValueError(f"frame rates must be above 0, not {rate:g} and {to:g}")
    frames = len(pose.root)
    count = int((frames - 1) * to / rate + 1e-6) + 1
    at = torch.arange(count, dtype=pose.root.dtype, device=pose.root.device) * (rate / to)
    first = at.floor().long().clamp_max(max(frames - 2, 0))
    next_, share = (first + 1).clamp_max(frames - 1), at - first
    root = torch.lerp(pose.root[first], pose.root[next_], share[:, None])
    turns = slerp(
        pose.rotations[first],
        pose.rotations[next_],
        share[:, None].expand(-1, pose.rotations.shape[1]),
    )
    return Pose(rotations=turns, root=root)


def fit_length(numbers: Tensor, length: int, start: int = 0) -> tuple[Tensor, int]:
    """Cut numbers ``[T, C]`` to ``length`` frames from ``start`` on, or append zeros.

    Returns:
        ``[length, C]``, and how many of these frames are the motion's.
    """
    cut = numbers[start : start + length]
    return F.pad(cut, (0, 0, 0, length - len(cut))), len(cut)


def pad_mask(lengths: Tensor, frames: int) -> Tensor:
    """Return ``[B, frames]``: 1 where a frame is within its sample's length ``[B]``, else 0."""
    return (torch.arange(frames, device=lengths.device) < lengths[:, None]).float()
