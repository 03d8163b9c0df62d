"""Edit motions with what guidestar has: known frames or joints, and targets of joints as losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..guidance import Inpaint, Observation
from ..motion import Bvh, read_bvh
from ..sampling import DDPM, RePaint, Solver
from .motions import need_body

if TYPE_CHECKING:
    from .parts import ModelParts

JointTarget = tuple[float | None, float | None, float | None]
"""Where a joint should be: x, y and z in the unit of the BVH file; None where it is free."""


def known_motion(model: ModelParts, motion: Bvh | Path | str, start: int = 0) -> Tensor:
    """Return a motion as the model has it: ``[1, T, C]``, standardised, cut or padded with zeros.

    Args:
        model: of motions.
        motion: a BVH file of its skeleton, or what it holds.
        start: its first frame, at the model's frame rate.

    Raises:
        ValueError: another skeleton, or ``start`` is not one of its frames.
        Damaged: the file cannot be read.
    """
    body = need_body(model)
    numbers = body.encode(motion if isinstance(motion, Bvh) else read_bvh(motion))
    if not 0 <= start < len(numbers):
        raise ValueError(f"start must be a frame from 0 to {len(numbers) - 1}, not {start}")
    scale = model.card["scale"]
    mean, std = (torch.tensor(scale[k]) for k in ("mean", "std"))
    known = (numbers[start:] - mean) / std
    # A negative width cuts.
    return F.pad(known, (0, 0, 0, model.shape[0] - len(known)))[None]


def known_mask(
    model: ModelParts,
    *,
    frames: Collection[int] | None = None,
    joints: Sequence[str] | None = None,
) -> Tensor:
    """Return ``[T, C]``: 1 where a number is of one of these frames and joints, else 0.

    Args:
        model: of motions.
        frames: from 0 on; by default all.
        joints: names; by default all. Turn, walk and height of the body go with the root.

    Raises:
        ValueError: there is no such frame or joint; the message lists the joints.
    """
    body, count = need_body(model), model.shape[0]
    odd = next((f for f in frames or () if not 0 <= f < count), None)
    if odd is not None:
        raise ValueError(f"a motion of {model.name!r} has the frames 0 to {count - 1}, not {odd}")
    rows = torch.tensor([float(frames is None or k in frames) for k in range(count)])
    columns = torch.ones(body.format.channels) if joints is None else body.format.mask(joints)
    return rows[:, None] * columns


def keep(
    model: ModelParts,
    motion: Bvh | Path | str,
    *,
    frames: Collection[int] | None = None,
    joints: Sequence[str] | None = None,
    start: int = 0,
    solver: Solver | None = None,
) -> RePaint:
    """Return a solver that keeps some frames or joints of a motion and samples the others.

    In-betweening keeps the first and last frames, a continuation the first ones, and a new upper
    body the joints of the lower one.

    Args:
        model: of motions.
        motion: a BVH file of its skeleton, or what it holds.
        frames, joints: which are kept, as of `known_mask`.
        start: as of `known_motion`.
        solver: takes the steps; by default "ddpm".

    Raises:
        ValueError: as `known_motion` and `known_mask`.

    Example:
        ``model.sample("walk", solver=keep(model, "walk.bvh", frames=range(20)), grid="uniform")``
    """
    return RePaint(
        solver=solver or DDPM(),
        known=known_motion(model, motion, start),
        mask=known_mask(model, frames=frames, joints=joints),
    )


def observe_motion(
    model: ModelParts,
    motion: Bvh | Path | str,
    *,
    frames: Collection[int] | None = None,
    joints: Sequence[str] | None = None,
    start: int = 0,
    noise: float = 0.0,
) -> Observation:
    """Return the frames or joints of a motion as an observation, for dps, pigdm, mmps and tfg.

    Args:
        model, motion, frames, joints, start: as of `keep`.
        noise: its standard deviation, in the model's units.
    """
    mask = known_mask(model, frames=frames, joints=joints)
    return Observation(Inpaint(mask=mask), known_motion(model, motion, start), noise=noise)


def reach(
    model: ModelParts, joint: str, at: Mapping[int, JointTarget]
) -> Callable[[Tensor], Tensor]:
    """Return a loss: how far a joint is from where it should be at some frames.

    ``√(mean over frames |p_joint − target|²)/height``, by forward kinematics of the clean estimate;
    coordinates that are None count nothing. With the root and ``(x, None, z)`` it is a path to
    follow.

    Args:
        model: of motions, which start at the origin and look along z.
        joint: its name.
        at: where it should be, by frame.

    Raises:
        ValueError: no target, or no such joint or frame; the message lists the joints.
    """
    body, count = need_body(model), model.shape[0]
    index = body.format.skeleton.index(joint)
    odd = next((f for f in at if not 0 <= f < count), None)
    if odd is not None or not at:
        what = f"not {odd}" if at else "and at least one target is needed"
        raise ValueError(f"a motion of {model.name!r} has the frames 0 to {count - 1}, {what}")
    frames = torch.tensor(sorted(at))
    wanted = torch.tensor([[math.nan if v is None else v for v in at[f]] for f in sorted(at)])
    there = ~wanted.isnan()

    def loss(x0: Tensor) -> Tensor:
        places = body.joints(model.decode(x0))[:, frames.to(x0.device), index]
        off = (places - wanted.nan_to_num().to(places)) * there.to(places)
        return (off.square().sum(-1).mean(-1) + 1e-12).sqrt() / body.format.size

    return loss
