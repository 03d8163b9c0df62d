"""Motion as numbers that a model learns, and back.

A frame is described from where the body stands and looks, as HumanML3D does, and completely, so
that the poses come back exactly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .rotations import from_6d, rotate_about, to_6d
from .skeleton import Pose, Skeleton

_LEFT = re.compile(r"^[lL]_|_[lL]$|\.[lL]$|^[lL](?=[A-Z])|[lL]eft|LEFT")
_RIGHT = re.compile(r"^[rR]_|_[rR]$|\.[rR]$|^[rR](?=[A-Z])|[rR]ight|RIGHT")
_FEET = re.compile(r"(?i)(foot|toe|ankle)")
SLOW = 0.3
"""A foot that moves slower than this share of the height a second, and stands low, is on the
ground."""
LOW_HEIGHT = 0.08
"""A foot lower than this share of the height above its lowest place may be on the ground."""


def mirrored_pairs(skeleton: Skeleton) -> list[tuple[int, int]]:
    """Return the joints that have a left and a right one, as ``(left, right)``, by their names."""
    rights = {_RIGHT.sub("*", n): k for k, n in enumerate(skeleton.names) if _RIGHT.search(n)}
    found = []
    for k, name in enumerate(skeleton.names):
        other = rights.get(_LEFT.sub("*", name)) if _LEFT.search(name) else None
        if other is not None:
            found.append((k, other))
    return found


def across_of(skeleton: Skeleton) -> tuple[tuple[int, int], ...]:
    """Return the pairs that show where a body looks: those on one parent, as hips and shoulders."""
    parents = skeleton.parents
    return tuple((a, b) for a, b in mirrored_pairs(skeleton) if parents[a] == parents[b])


def feet_of(skeleton: Skeleton) -> tuple[int, ...]:
    """Return the joints whose names say that they are feet."""
    return tuple(k for k, name in enumerate(skeleton.names) if _FEET.search(name))


@dataclass(frozen=True, kw_only=True)
class MotionFormat:
    """How the poses of one skeleton become numbers ``[T, C]``, and back.

    With the heading θ_t about the upward axis y, ``H_t = R_y(θ_t)``, root position p_t and joints
    x_tj, a frame holds, in this order (`parts` has the places):

    - ``turn`` (1): ``θ_t − θ_{t−1}``, radians a frame;
    - ``walk`` (2): x and z of ``H_{t−1}ᵀ (p_t − p_{t−1})``, lengths a frame;
    - ``height`` (1): y of p_t;
    - ``positions`` (3(J−1)): ``H_tᵀ (x_tj − p_t)`` with the height of x_tj, but the root's;
    - ``rotations`` (6J): two columns of ``H_tᵀ G_t`` of the root, and of each other joint's
      rotation in its parent's frame;
    - ``velocities`` (3J): ``H_{t−1}ᵀ (x_tj − x_{t−1,j})``;
    - ``contacts`` (F): 1 where a foot is on the ground, else 0.

    The first frame has the second one's turn, walk and velocities. Place and heading of the first
    frame are not kept: a motion starts at the origin and looks along z.

    Args:
        skeleton: whose poses they are.
        across: pairs of joints ``(left, right)`` whose distances give the heading; with none the
            root's own rotation does.
        feet: joints that touch the ground.
        size: height of the body, in the unit of the skeleton's offsets.

    References:
        Generating Diverse and Natural 3D Human Motions from Text (HumanML3D),
        https://doi.org/10.1109/CVPR52688.2022.00509
    """

    skeleton: Skeleton
    across: tuple[tuple[int, int], ...]
    feet: tuple[int, ...]
    size: float

    @staticmethod
    def of(skeleton: Skeleton, joints: Tensor) -> MotionFormat:
        """Return the format of a skeleton by its joints' names and a clip of its poses.

        Args:
            skeleton: the skeleton.
            joints: positions of its joints ``[T, J, 3]``, y upwards.
        """
        heights = joints[..., 1].amax(1) - joints[..., 1].amin(1)
        return MotionFormat(
            skeleton=skeleton,
            across=across_of(skeleton),
            feet=feet_of(skeleton),
            size=float(heights.median()),
        )

    @property
    def widths(self) -> Mapping[str, int]:
        """Numbers of each part of a frame, in their order."""
        j = self.skeleton.count
        return {
            "turn": 1,
            "walk": 2,
            "height": 1,
            "positions": 3 * (j - 1),
            "rotations": 6 * j,
            "velocities": 3 * j,
            "contacts": len(self.feet),
        }

    @property
    def channels(self) -> int:
        """Numbers of a frame, C."""
        return sum(self.widths.values())

    @property
    def parts(self) -> Mapping[str, slice]:
        """Where each part of a frame is."""
        found, at = {}, 0
        for name, width in self.widths.items():
            found[name] = slice(at, at + width)
            at += width
        return found

    def encode(self, pose: Pose, rate: float) -> Tensor:
        """Return the numbers ``[T, C]`` of poses ``[T, …]``.

        Args:
            pose: at least 2 frames.
            rate: frames a second, by which a foot counts as still.

        Raises:
            ValueError: there are fewer than 2 frames.
        """
        if len(pose.root) < 2:
            raise ValueError(f"a motion has at least 2 frames, not {len(pose.root)}")
        joints, turned = self.skeleton.place(pose.rotations, pose.root)
        heading = self._heading(joints, turned[:, 0])
        turn = torch.remainder(heading.diff() + torch.pi, 2 * torch.pi) - torch.pi
        back = rotate_about("Y", -heading)
        ground = pose.root * pose.root.new_tensor([1.0, 0.0, 1.0])
        walk = (back[:-1] @ pose.root.diff(dim=0)[..., None])[..., 0]
        near = _turned(back, joints[:, 1:] - ground[:, None])
        moved = _turned(back[:-1], joints.diff(dim=0))
        rotations = pose.rotations.clone()
        rotations[:, 0] = back @ turned[:, 0]
        frames = (
            _repeat_first(turn[:, None]),
            _repeat_first(walk[:, [0, 2]]),
            pose.root[:, 1:2],
            near.flatten(1),
            to_6d(rotations).flatten(1),
            _repeat_first(moved).flatten(1),
            self._contacts(joints, rate),
        )
        return torch.cat(frames, 1)

    def decode(self, numbers: Tensor) -> Pose:
        """Return the poses ``[*, T, …]`` of numbers ``[*, T, C]``, by their rotations.

        Turns and walks are summed up from the origin; rotations are made orthonormal.
        """
        heading, root = self._path(numbers)
        rotations = from_6d(self._part(numbers, "rotations").unflatten(-1, (-1, 6)))
        first = rotate_about("Y", heading) @ rotations[..., 0, :, :]
        return Pose(
            rotations=torch.cat([first[..., None, :, :], rotations[..., 1:, :, :]], -3), root=root
        )

    def positions(self, numbers: Tensor) -> Tensor:
        """Return the joints' positions ``[*, T, J, 3]`` of numbers ``[*, T, C]``, by their part
        ``positions`` (what the motion diffusion model shows).
        """
        heading, root = self._path(numbers)
        near = self._part(numbers, "positions").unflatten(-1, (-1, 3))
        ground = root * root.new_tensor([1.0, 0.0, 1.0])
        others = _turned(rotate_about("Y", heading), near) + ground[..., None, :]
        return torch.cat([root[..., None, :], others], -2)

    def local(self, numbers: Tensor) -> Tensor:
        """Return the joints ``[*, T, J, 3]`` by the rotations of numbers ``[*, T, C]``, seen from
        the ground below the root and from its heading: what ``positions`` should be.
        """
        rotations = from_6d(self._part(numbers, "rotations").unflatten(-1, (-1, 6)))
        height = self._part(numbers, "height")
        zero = torch.zeros_like(height)
        return self.skeleton.place(rotations, torch.cat([zero, height, zero], -1))[0]

    def steps(self, numbers: Tensor, local: Tensor) -> Tensor:
        """Return how far each joint moves from frame to frame ``[*, T − 1, J, 3]``, in the frame of
        the earlier one: ``R_y(turn_t) y_t + walk_t − y_{t−1}``, what ``velocities`` should be.

        Args:
            numbers: ``[*, T, C]``, of which turn and walk are read.
            local: y, positions as `local` returns them.
        """
        turn = self._part(numbers, "turn")[..., 1:, 0]
        x, z = self._part(numbers, "walk")[..., 1:, :].unbind(-1)
        walk = torch.stack([x, torch.zeros_like(x), z], -1)
        now = _turned(rotate_about("Y", turn), local[..., 1:, :, :])
        return now + walk[..., None, :] - local[..., :-1, :, :]

    def mask(self, joints: Sequence[str]) -> Tensor:
        """Return ``[C]``: 1 where a number is of one of these joints, else 0.

        Turn, walk and height go with the root.

        Raises:
            ValueError: there is no such joint; the message lists them.
        """
        chosen = {self.skeleton.index(name) for name in joints}
        found = torch.zeros(self.channels)
        for part, where in self.parts.items():
            if part in ("turn", "walk", "height"):
                found[where] = float(0 in chosen)
                continue
            each = self.feet if part == "contacts" else range(self.skeleton.count)
            owners = [k for k in each if part != "positions" or k]
            width = (where.stop - where.start) // max(len(owners), 1)
            kept = torch.tensor([float(k in chosen) for k in owners])
            found[where] = kept.repeat_interleave(width)
        return found

    def _part(self, numbers: Tensor, name: str) -> Tensor:
        if numbers.shape[-1] != self.channels:
            raise ValueError(
                f"a frame of this skeleton has {self.channels} numbers, not {numbers.shape[-1]}"
            )
        return numbers[..., self.parts[name]]

    def _path(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the heading ``[*, T]`` and the root's position ``[*, T, 3]``."""
        turn, walk = self._part(numbers, "turn")[..., 0], self._part(numbers, "walk")
        heading = _from_zero(turn, -1)
        flat = torch.stack([walk[..., 0], torch.zeros_like(walk[..., 0]), walk[..., 1]], -1)
        before = torch.cat([heading[..., :1], heading[..., :-1]], -1)
        moved = (rotate_about("Y", before) @ flat[..., None])[..., 0]
        place = _from_zero(moved, -2)
        height = self._part(numbers, "height")
        return heading, torch.cat([place[..., :1], height, place[..., 2:]], -1)

    def _heading(self, joints: Tensor, root: Tensor) -> Tensor:
        """Return the angle about y by which the body looks away from z ``[T]``."""
        if not self.across:
            turn = root @ root[:1].transpose(-1, -2)  # its share about y (swing and twist)
            return torch.atan2(turn[..., 0, 2] - turn[..., 2, 0], turn[..., 0, 0] + turn[..., 2, 2])
        left, right = (torch.tensor(side) for side in zip(*self.across, strict=True))
        side = (joints[:, right] - joints[:, left]).sum(1)
        return torch.atan2(side[:, 2], -side[:, 0])  # forward is up × side

    def _contacts(self, joints: Tensor, rate: float) -> Tensor:
        feet = joints[:, list(self.feet)]
        speed = _repeat_first(feet.diff(dim=0).norm(dim=-1)) * rate
        low = feet[..., 1] - feet[..., 1].amin(0)
        return ((speed < SLOW * self.size) & (low < LOW_HEIGHT * self.size)).to(joints)


def _turned(rotations: Tensor, vectors: Tensor) -> Tensor:
    """Turn vectors ``[*, J, 3]`` by rotations ``[*, 3, 3]``."""
    return vectors @ rotations.transpose(-1, -2)


def _repeat_first(x: Tensor) -> Tensor:
    return torch.cat([x[:1], x])


def _from_zero(steps: Tensor, dim: int) -> Tensor:
    """Return the running sum over ``dim`` without the first step."""
    rest = steps.narrow(dim, 1, steps.shape[dim] - 1).cumsum(dim)
    return torch.cat([torch.zeros_like(steps.narrow(dim, 0, 1)), rest], dim)


def start_at_origin(pose: Pose, format: MotionFormat) -> Pose:
    """Return the same motion as it comes back from numbers: from the origin, looking along z."""
    joints, turned = format.skeleton.place(pose.rotations[:1], pose.root[:1])
    back = rotate_about("Y", -format._heading(joints, turned[:, 0]))[0]
    start = pose.root[0] * pose.root.new_tensor([1.0, 0.0, 1.0])
    rotations = pose.rotations.clone()
    rotations[:, 0] = back @ rotations[:, 0]
    return Pose(rotations=rotations, root=(pose.root - start) @ back.T)
