"""From the joints of a BVH file to a skeleton whose root moves through space, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .bvh import Bvh
from .rotations import rotate_about
from .skeleton import Pose, Skeleton

STRETCH = 0.01
"""Most that a bone may change its length or direction, as a share of the body's height."""


@dataclass(frozen=True, kw_only=True)
class Rig:
    """The joints of a BVH file, and the skeleton that they move.

    The skeleton's root is the first joint with several children (the hips, as a rule); joints above
    it are taken together with it, and are at rest when a motion is written.

    Args:
        template: a file with these joints; what is written has its joints and channels.
        root: index of the skeleton's root among the joints.
        skeleton: the root and all joints below it; offsets are means over the template's frames.
        up: the axis that points upwards in the file, "Y" or "Z".
    """

    template: Bvh
    root: int
    skeleton: Skeleton
    up: str = "Y"

    @staticmethod
    def of(template: Bvh, *, up: str = "Y", root: str | None = None) -> Rig:
        """Return the rig of a file's joints.

        Args:
            template: the file.
            up: the axis that points upwards, "Y" or "Z".
            root: name of the skeleton's root; by default the first joint with several children.

        Raises:
            ValueError: there is no such joint, or joints stand beside it.
        """
        if up not in ("Y", "Z"):
            raise ValueError(f'up must be "Y" or "Z", not {up!r}')
        joints = template.joints
        parents = [j.parent for j in joints]
        names = [j.name for j in joints]
        if root is not None and root not in names:
            raise ValueError(f"there is no joint {root!r}; the joints are {', '.join(names)}")
        several = (k for k in range(len(joints)) if parents.count(k) > 1)
        at = names.index(root) if root is not None else next(several, 0)
        above = _ancestors(parents, at)
        beside = [names[k] for k in range(at) if k not in above]
        below = list(range(at, len(joints)))
        beside += [names[k] for k in below[1:] if at not in _ancestors(parents, k)]
        if beside:
            raise ValueError(
                f"joint {beside[0]!r} does not hang on the root {names[at]!r}; name a root above it"
            )
        offsets = template.local()[1].mean(0)[at:]
        offsets[0] = 0  # the root's place is the motion's
        return Rig(
            template=template,
            root=at,
            up=up,
            skeleton=Skeleton(
                names=tuple(names[at:]),
                parents=tuple(max(p - at, -1) for p in parents[at:]),
                offsets=tuple((x, y, z) for x, y, z in offsets.tolist()),
            ),
        )

    def pose(self, motion: Bvh, size: float | None = None) -> Pose:
        """Return the poses of a file with the same joints, y upwards (float64).

        Args:
            motion: the file; its channels may be in another order.
            size: height of the body, by which bones that change are found; None for no check.

        Raises:
            ValueError: it has other joints, or bones of other lengths.
        """
        ours, theirs = ([(j.name, j.parent) for j in b.joints] for b in (self.template, motion))
        if ours != theirs:
            raise ValueError(self._difference(motion))
        rotations, translations = motion.local()
        if size is not None:
            self._check_bones(translations, size)
        turn, place = self._base(rotations)
        for k in [*_ancestors([j.parent for j in motion.joints], self.root), self.root]:
            place = place + (turn @ translations[:, k, :, None])[..., 0]
            turn = turn @ rotations[:, k]
        rotations = rotations[:, self.root :].clone()
        rotations[:, 0] = turn
        return Pose(rotations=rotations, root=place)

    def at_rest(self) -> Rig:
        """Return the same rig with a template of one frame, all rotations 0."""
        one = torch.eye(3, dtype=torch.float64).repeat(1, self.skeleton.count, 1, 1)
        pose = Pose(rotations=one, root=torch.zeros(1, 3, dtype=torch.float64))
        return replace(self, template=self.write(pose, self.template.seconds))

    def write(self, pose: Pose, seconds: float) -> Bvh:
        """Return a file's frames of poses ``[T, …]`` (float64); the inverse of `pose`.

        Args:
            pose: the poses.
            seconds: of a frame.
        """
        count = len(pose.root)
        rest = self.template.values.new_tensor([j.offset for j in self.template.joints])
        translations = rest.repeat(count, 1, 1)
        translations[:, self.root + 1 :] = rest.new_tensor(self.skeleton.offsets[1:])
        rotations = torch.eye(3, dtype=torch.float64).repeat(count, len(rest), 1, 1)
        rotations[:, self.root :] = pose.rotations.double().cpu()
        back = self._base(rotations)[0].transpose(-1, -2)
        rotations[:, self.root] = back @ rotations[:, self.root]
        place = (back @ pose.root.double().cpu()[..., None])[..., 0]
        for k in _ancestors([j.parent for j in self.template.joints], self.root):
            moves = any(c.endswith("position") for c in self.template.joints[k].channels)
            translations[:, k] = 0 if moves else rest[k]
            place = place - translations[:, k]
        translations[:, self.root] = place
        return self.template.with_motion(rotations, translations, seconds)

    def _base(self, rotations: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rotation ``[T, 3, 3]`` that turns the file's upward axis into y, and zero."""
        turn = -torch.pi / 2 if self.up == "Z" else 0.0
        angle = torch.full((len(rotations),), turn, dtype=rotations.dtype)
        return rotate_about("X", angle), torch.zeros(len(rotations), 3, dtype=rotations.dtype)

    def _difference(self, motion: Bvh) -> str:
        ours, theirs = ([j.name for j in b.joints] for b in (self.template, motion))
        lacking, extra = ([n for n in a if n not in b] for a, b in ((ours, theirs), (theirs, ours)))
        what = (
            f"it lacks joint {lacking[0]!r}"
            if lacking
            else f"it has the further joint {extra[0]!r}"
            if extra
            else "its joints hang together otherwise"
        )
        return f"another skeleton than that of the first file: {what}"

    def _check_bones(self, translations: Tensor, size: float) -> None:
        below = translations[:, self.root + 1 :]
        offsets = below.new_tensor(self.skeleton.offsets[1:])
        off = (below - offsets).norm(dim=-1).amax(0) / size
        if len(off) and float(off.max()) > STRETCH:
            name = self.skeleton.names[1 + int(off.argmax())]
            raise ValueError(
                f"the bone to joint {name!r} differs from that of the first file by "
                f"{100 * float(off.max()):.1f} % of the height; bones must have one length (at "
                f"most {100 * STRETCH:g} %)"
            )


def _ancestors(parents: list[int], joint: int) -> list[int]:
    """Return the joints above a joint, the first one first."""
    found = []
    while parents[joint] >= 0:
        joint = parents[joint]
        found.append(joint)
    return found[::-1]
