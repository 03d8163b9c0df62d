"""Rotations in three dimensions: Euler angles, matrices, and the six numbers that networks learn.

All matrices act on column vectors, and all axes are right-handed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

AXES = "XYZ"
"""Names of the axes, in the order of their components."""
_LOCKED = 1 - 1e-9
"""Above this sine of the middle angle only the sum of the outer angles is known (gimbal lock)."""


def rotate_about(axis: str, angle: Tensor) -> Tensor:
    """Return matrices ``[*, 3, 3]`` that turn by ``angle [*]`` (radians) about "X", "Y" or "Z"."""
    i = AXES.index(axis)
    j, k = (i + 1) % 3, (i + 2) % 3
    out = torch.zeros(*angle.shape, 3, 3, dtype=angle.dtype, device=angle.device)
    out[..., i, i] = 1
    out[..., j, j] = out[..., k, k] = angle.cos()
    out[..., k, j] = angle.sin()
    out[..., j, k] = -angle.sin()
    return out


def from_euler(angles: Tensor, order: str) -> Tensor:
    """Return ``R(order₁, a₁)·R(order₂, a₂)·…`` for angles ``[*, N]`` in degrees.

    Args:
        angles: as many as ``order`` has letters.
        order: axes, e.g. "ZXY", as the rotation channels of a BVH file name them.
    """
    out = torch.eye(3, dtype=angles.dtype, device=angles.device).expand(*angles.shape[:-1], 3, 3)
    for k, axis in enumerate(order):
        out = out @ rotate_about(axis, torch.deg2rad(angles[..., k]))
    return out


def to_euler(rotation: Tensor, order: str) -> Tensor:
    """Return angles ``[*, 3]`` in degrees of matrices ``[*, 3, 3]``; the inverse of `from_euler`.

    ``order`` names three different axes. The middle angle is in [−90°, 90°]; where it is ±90°, only
    a sum of the outer ones is known, and the last is 0.
    """
    i, j, k = (AXES.index(axis) for axis in order)
    sign = 1.0 if (j - i) % 3 == 1 else -1.0  # of a permutation of the axes
    sine = (sign * rotation[..., i, k]).clamp(-1, 1)
    first = torch.atan2(-sign * rotation[..., j, k], rotation[..., k, k])
    last = torch.atan2(-sign * rotation[..., i, j], rotation[..., i, i])
    locked = sine.abs() > _LOCKED
    alone = torch.atan2(sign * rotation[..., k, j], rotation[..., j, j])
    angles = (
        torch.where(locked, alone, first),
        sine.asin(),
        torch.where(locked, torch.zeros_like(last), last),
    )
    return torch.rad2deg(torch.stack(angles, -1))


def to_6d(rotation: Tensor) -> Tensor:
    """Return the first two columns of matrices ``[*, 3, 3]``, as ``[*, 6]``.

    References:
        On the Continuity of Rotation Representations in Neural Networks,
        https://arxiv.org/abs/1812.07035
    """
    return rotation[..., :2].transpose(-1, -2).flatten(-2)


def from_6d(numbers: Tensor) -> Tensor:
    """Return matrices ``[*, 3, 3]`` of six numbers, made orthonormal by Gram and Schmidt."""
    one, two = numbers.unflatten(-1, (2, 3)).unbind(-2)
    one = F.normalize(one, dim=-1)
    two = F.normalize(two - (one * two).sum(-1, keepdim=True) * one, dim=-1)
    return torch.stack([one, two, torch.linalg.cross(one, two)], -1)


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Return rotations ``[*, 3, 3]`` on the shortest way from ``a`` to ``b``, by ``share [*]``.

    Of half a turn both ways are as short; one of them is taken.
    """
    turn = a.transpose(-1, -2) @ b
    cosine = (turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    off = turn - turn.transpose(-1, -2)
    axis = torch.stack([off[..., 2, 1], off[..., 0, 2], off[..., 1, 0]], -1) / 2
    sine = axis.norm(dim=-1)
    angle = torch.atan2(sine, cosine)
    half = (sine < 1e-6) & (cosine < 0)
    axis = torch.where(half[..., None], _axis_of_half_turn(turn), F.normalize(axis, dim=-1))
    return a @ torch.linalg.matrix_exp(_cross(axis * (angle * share)[..., None]))


def _axis_of_half_turn(turn: Tensor) -> Tensor:
    """Return u of ``R = 2uuᵀ − 1``: the longest column of ``R + 1``, at unit length."""
    columns = turn + torch.eye(3, dtype=turn.dtype, device=turn.device)
    longest = columns.norm(dim=-2).argmax(-1)[..., None, None].expand(*turn.shape[:-1], 1)
    return F.normalize(columns.gather(-1, longest)[..., 0], dim=-1)


def _cross(v: Tensor) -> Tensor:
    """Return the matrices of ``w ↦ v × w``."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    rows = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1)
    return rows.unflatten(-1, (3, 3))
