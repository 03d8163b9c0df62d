"""A body: the skeleton of a model's motions, with all that turns their numbers into files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..io.documents import as_value_error, check_values, choice, number, text
from .bvh import Bvh, format_bvh, parse_bvh
from .features import MotionFormat
from .rig import Rig
from .timing import resample

SHORTEST = 4
"""Least frames of a motion: fewer have no velocity and acceleration to learn from."""
_RATE = number(0, 1000, above=True)
_KNOWN = {
    "rate": _RATE,
    "up": choice("Y", "Z"),
    "root": text,
    "size": number(0, above=True),
    "bvh": text,
}


@dataclass(frozen=True, kw_only=True)
class Body:
    """The skeleton of motions, their frame rate, and the numbers of a frame.

    Args:
        rig: joints of the files that are read and written.
        format: numbers of a frame.
        rate: frames a second.
    """

    rig: Rig
    format: MotionFormat
    rate: float

    @staticmethod
    def of(motion: Bvh, *, rate: float, up: str = "Y", root: str | None = None) -> Body:
        """Return the body of a file's joints.

        Args:
            motion: the file; its height is the median over the frames.
            rate: frames a second.
            up, root: as of `Rig.of`.

        Raises:
            ValueError: the joints do not fit, or could not be written again.
        """
        full = Rig.of(motion, up=up, root=root)
        joints = full.pose(motion).joints(full.skeleton)
        return Body(rig=full.at_rest(), format=MotionFormat.of(full.skeleton, joints), rate=rate)

    def encode(self, motion: Bvh) -> Tensor:
        """Return the numbers ``[T, C]`` (float32) of a file's frames, at the body's rate.

        Raises:
            ValueError: it has another skeleton, or fewer than `SHORTEST` frames at that rate.
        """
        pose = resample(self.rig.pose(motion, self.format.size), motion.rate, self.rate)
        frames = len(pose.root)
        if frames < SHORTEST:
            raise ValueError(
                f"it has {frames} frames at {self.rate:g} frames a second; a motion needs at "
                f"least {SHORTEST}"
            )
        return self.format.encode(pose, self.rate).float()

    def to_bvh(self, numbers: Tensor) -> Bvh:
        """Return a file's frames of numbers ``[T, C]``, from the origin."""
        return self.rig.write(self.format.decode(numbers.double().cpu()), 1 / self.rate)

    def joints(self, numbers: Tensor) -> Tensor:
        """Return the joints' positions ``[*, T, J, 3]`` of numbers ``[*, T, C]``, as a file has
        them.
        """
        return self.format.decode(numbers).joints(self.format.skeleton)

    def to_json(self) -> dict[str, object]:
        """Return it as JSON values."""
        names = [j.name for j in self.rig.template.joints]
        return {
            "rate": self.rate,
            "up": self.rig.up,
            "root": names[self.rig.root],
            "size": self.format.size,
            "bvh": format_bvh(self.rig.template),
        }

    @staticmethod
    def from_json(values: Mapping[str, object], where: object = "motion") -> Body:
        """Return the body of JSON values (`to_json`).

        Args:
            values: JSON values.
            where: what holds them, for messages.

        Raises:
            ValueError: a value is missing, or of another kind.
        """
        check_values(where, values, _KNOWN, tuple(_KNOWN))
        with as_value_error(f"{where}: bvh is not the text of a BVH file"):
            template = parse_bvh(str(values["bvh"]))
            rig = Rig.of(template, up=str(values["up"]), root=str(values["root"]))
        joints = rig.pose(template).joints(rig.skeleton)
        form = MotionFormat.of(rig.skeleton, joints)
        size, rate = (float(str(values[key])) for key in ("size", "rate"))
        return Body(rig=rig, format=replace(form, size=size), rate=rate)


def is_body(values: object) -> bool:
    """Return whether JSON values are a body's."""
    if not isinstance(values, dict):
        return False
    try:
        Body.from_json(values)
    except ValueError:
        return False
    return True
