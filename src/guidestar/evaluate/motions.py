"""Measures of motions: whether feet slide, how smooth they are, how they stand on the floor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .diversity import mean_distance, within_class_distances

NEAR_FLOOR = 0.05
"""A foot lower than this share of the height above the motion's lowest place is on the floor."""


def foot_skating(joints: Tensor, feet: Sequence[int], rate: float, size: float) -> float:
    """Return how fast feet slide that are on the floor, in heights a second.

    The mean of the horizontal speed over feet and pairs of frames in which a foot is on the floor
    at both; 0 where none ever is.

    Args:
        joints: positions ``[T, J, 3]``, y upwards.
        feet: which joints are feet.
        rate: frames a second.
        size: the body's height.
    """
    places = joints[:, list(feet)].double()
    low = places[..., 1] - places[..., 1].min() < NEAR_FLOOR * size
    both = low[1:] & low[:-1]
    speed = places.diff(dim=0)[..., [0, 2]].norm(dim=2) * rate / size
    return float(speed[both].mean()) if bool(both.any()) else 0.0


def jerk(joints: Tensor, rate: float, size: float) -> float:
    """Return the mean size of the third derivative of positions, in heights a second³.

    ``mean ‖x_{t+3} − 3x_{t+2} + 3x_{t+1} − x_t‖ · rate³ / size`` over joints and frames.

    Args:
        joints: positions ``[T, J, 3]``, at least 4 frames.
        rate: frames a second.
        size: the body's height.

    Raises:
        ValueError: there are fewer than 4 frames.
    """
    if len(joints) < 4:
        raise ValueError(f"a third derivative needs at least 4 frames, not {len(joints)}")
    return float(joints.double().diff(n=3, dim=0).norm(dim=2).mean()) * rate**3 / size


def floor_distance(joints: Tensor, size: float, floor: float = 0.0) -> float:
    """Return the mean of ``|lowest joint − floor|`` over frames, in heights.

    Args:
        joints: positions ``[T, J, 3]``, y upwards.
        size: the body's height.
        floor: its y.
    """
    return float((joints[..., 1].double().amin(1) - floor).abs().mean()) / size


def diversity(features: Tensor) -> float:
    """Return the mean distance between the features ``[N, d]`` of two motions.

    MDM's name and definition, over all pairs in the place of 200 random ones.

    References:
        Action2Motion, section 4.2, https://arxiv.org/abs/2007.15240
    """
    if len(features) < 2:
        raise ValueError(f"diversity needs at least two motions, not {len(features)}; draw more")
    return float(mean_distance(features.double()))


def multimodality(features: Tensor, labels: Tensor) -> float:
    """Return the mean distance between the features of two motions of one class, over classes.

    MDM's name and definition, over all pairs in the place of 20 random ones.

    Args:
        features: ``[N, d]``.
        labels: classes ``[N]`` (int64).

    References:
        Action2Motion, section 4.2, https://arxiv.org/abs/2007.15240
    """
    found = within_class_distances(features, labels)
    if not found:
        raise ValueError("multimodality needs two motions of one class; draw more")
    return float(torch.tensor(list(found.values()), dtype=torch.float64).mean())
