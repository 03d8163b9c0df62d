"""Skeletons, and poses in space by forward kinematics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """Joints in a tree; each stands at an offset from its parent, and turns what hangs on it.

    Args:
        names: of the joints, a parent before its children.
        parents: index of each joint's parent; −1 for the first joint, the root.
        offsets: of each joint in its parent's frame ``(x, y, z)``; of the root unused.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.parents) == len(self.offsets) or not self.names:
            raise ValueError("names, parents and offsets of a skeleton must be as many, at least 1")
        wrong = [k for k, p in enumerate(self.parents) if not (-1 if k == 0 else 0) <= p < k]
        if wrong or self.parents[0] != -1:
            k = wrong[0] if wrong else 0
            raise ValueError(
                f"the parent of joint {self.names[k]!r} is {self.parents[k]}; the first joint has "
                "−1, every other one a joint before it"
            )

    @property
    def count(self) -> int:
        """Number of joints."""
        return len(self.names)

    def index(self, name: str) -> int:
        """Return the place of a joint.

        Raises:
            ValueError: there is no such joint; the message lists them.
        """
        if name not in self.names:
            raise ValueError(
                f"the skeleton has no joint {name!r}; its joints are {', '.join(self.names)}"
            )
        return self.names.index(name)

    def place(self, rotations: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions ``[*, J, 3]`` and global rotations ``[*, J, 3, 3]`` of all joints.

        ``p_j = p_parent + G_parent·offset_j`` and ``G_j = G_parent·R_j``.

        Args:
            rotations: of each joint in its parent's frame ``[*, J, 3, 3]``.
            root: position of the root ``[*, 3]``.
        """
        offsets = torch.tensor(self.offsets, dtype=rotations.dtype, device=rotations.device)
        positions, turned = [root], [rotations[..., 0, :, :]]
        for joint in range(1, self.count):
            parent = self.parents[joint]
            positions.append(positions[parent] + turned[parent] @ offsets[joint])
            turned.append(turned[parent] @ rotations[..., joint, :, :])
        return torch.stack(positions, -2), torch.stack(turned, -3)


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Poses of one skeleton over time.

    Args:
        rotations: of each joint in its parent's frame ``[*, J, 3, 3]``.
        root: position of the root ``[*, 3]``, in the unit of the skeleton's offsets, y upwards.
    """

    rotations: Tensor
    root: Tensor

    def joints(self, skeleton: Skeleton) -> Tensor:
        """Return the positions of all joints ``[*, J, 3]``."""
        return skeleton.place(self.rotations, self.root)[0]
