"""BVH files: a skeleton, and a row of channels for each frame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..io.files import Damaged, whole_or_not
from .rotations import from_euler, to_euler

_CHANNELS = tuple(f"{axis}{kind}" for kind in ("position", "rotation") for axis in "XYZ")
_KNOWN = {name.lower(): name for name in _CHANNELS}
MOST_JOINTS = 1024
"""Most joints of a file."""
MAX_BYTES = 512 * 2**20
"""Most bytes of a file."""


@dataclass(frozen=True, kw_only=True)
class Joint:
    """A joint of a file.

    Args:
        name: its name.
        parent: index of its parent; −1 for the root.
        offset: from its parent ``(x, y, z)``.
        channels: what each of its numbers is ("Xposition", …, "Zrotation"), in the file's order.
        end: offset of the end site ``(x, y, z)``; None where it has children.
    """

    name: str
    parent: int
    offset: tuple[float, float, float]
    channels: tuple[str, ...]
    end: tuple[float, float, float] | None = None

    @property
    def order(self) -> str:
        """Axes of the rotation channels, e.g. "ZXY"."""
        return "".join(c[0] for c in self.channels if c.endswith("rotation"))


@dataclass(frozen=True, kw_only=True)
class Bvh:
    """What a BVH file holds.

    Position channels stand in the place of the joint's offset, as in the files of MotionBuilder.

    Args:
        joints: a parent before its children.
        seconds: of a frame.
        values: ``[T, C]`` (float64): all channels of all joints, in the file's order; lengths in
            the file's unit, angles in degrees.
    """

    joints: tuple[Joint, ...]
    seconds: float
    values: Tensor

    @property
    def rate(self) -> float:
        """Frames a second."""
        return 1 / self.seconds

    def local(self) -> tuple[Tensor, Tensor]:
        """Return rotations ``[T, J, 3, 3]`` and translations ``[T, J, 3]`` in the parents' frames.

        Rotations act in the order of their channels: "Zrotation Xrotation Yrotation" is
        ``Rz·Rx·Ry``.
        """
        count, rotations, translations, at = len(self.values), [], [], 0
        for joint in self.joints:
            part = self.values[:, at : at + len(joint.channels)]
            at += len(joint.channels)
            turns = [k for k, c in enumerate(joint.channels) if c.endswith("rotation")]
            rotations.append(from_euler(part[:, turns], joint.order))
            moved = part.new_tensor(joint.offset).repeat(count, 1)
            for k, channel in enumerate(joint.channels):
                if channel.endswith("position"):
                    moved[:, "XYZ".index(channel[0])] = part[:, k]
            translations.append(moved)
        return torch.stack(rotations, 1), torch.stack(translations, 1)

    def with_motion(self, rotations: Tensor, translations: Tensor, seconds: float) -> Bvh:
        """Return the same joints with other frames.

        Args:
            rotations: in the parents' frames ``[T, J, 3, 3]``; identity where a joint has no
                rotation channels.
            translations: ``[T, J, 3]``; used where a joint has position channels.
            seconds: of a frame.

        Raises:
            ValueError: a joint has one or two rotation channels, which cannot hold any rotation.
        """
        parts = []
        for k, joint in enumerate(self.joints):
            if len(joint.order) not in (0, 3):
                raise ValueError(
                    f"joint {joint.name!r} has the rotation channels {joint.order!r}; a motion can "
                    "be written to joints with three different ones or none"
                )
            angles = to_euler(rotations[:, k], joint.order) if joint.order else None
            for channel in joint.channels:
                axis = channel[0]
                if channel.endswith("position"):
                    parts.append(translations[:, k, "XYZ".index(axis)])
                elif angles is not None:
                    parts.append(angles[:, joint.order.index(axis)])
        return replace(self, values=torch.stack(parts, 1).double().cpu(), seconds=seconds)


def read_bvh(path: Path | str) -> Bvh:
    """Read a BVH file.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it is no BVH file, or is cut off; the message says where.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Damaged(f"{path}: has more than {MAX_BYTES >> 20} MiB; split the file")
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except OSError as error:
        raise Damaged(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        return parse_bvh(text)
    except ValueError as error:
        raise Damaged(f"{path}: not a whole BVH file: {error}") from error


def parse_bvh(text: str) -> Bvh:
    """Read the text of a BVH file.

    Raises:
        ValueError: it is none, or is cut off; the message says where.
    """
    head, found, frames = text.partition("MOTION")
    joints = _hierarchy(head)
    if not found:
        raise ValueError('ends before "MOTION"')
    seconds, values = _motion(frames, sum(len(j.channels) for j in joints))
    return Bvh(joints=joints, seconds=seconds, values=values)


class _Words:
    """The words of a hierarchy, one after the other."""

    def __init__(self, text: str) -> None:
        self.words = iter(text.split())
        self.last = ""

    def take(self) -> str:
        word = next(self.words, None)
        if word is None:
            raise ValueError(f'the hierarchy ends after "{self.last}"')
        self.last = word
        return word

    def expect(self, wanted: str) -> None:
        word = self.take()
        if word.upper() != wanted:
            raise ValueError(f'expected "{wanted}", not "{word[:40]}"')

    def place(self) -> tuple[float, float, float]:
        return _number(self.take()), _number(self.take()), _number(self.take())


def _number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise ValueError(f'expected a number, not "{word[:40]}"') from None
    if not math.isfinite(value):
        raise ValueError(f'expected a finite number, not "{word}"')
    return value


def _hierarchy(text: str) -> tuple[Joint, ...]:
    words = _Words(text)
    words.expect("HIERARCHY")
    words.expect("ROOT")
    joints: list[Joint] = []
    within: list[int | None] = []  # the joints that are open, and None for an end site
    _open_joint(words, joints, within)
    while within:
        word, at = words.take().upper(), within[-1]
        if word == "}":
            within.pop()
        elif word == "JOINT" and at is not None:
            _open_joint(words, joints, within)
        elif word == "CHANNELS" and at is not None:
            joints[at] = replace(joints[at], channels=_channels(words))
        elif word == "END" and at is not None:
            words.expect("SITE")
            words.expect("{")
            words.expect("OFFSET")
            joints[at] = replace(joints[at], end=words.place())
            within.append(None)
        else:
            raise ValueError(f'"{words.last[:40]}" cannot stand within a joint')
    return _checked(joints, words)


def _open_joint(words: _Words, joints: list[Joint], within: list[int | None]) -> None:
    name, parent = words.take(), within[-1] if within else -1
    words.expect("{")
    words.expect("OFFSET")
    assert parent is not None  # nothing opens within an end site
    joints.append(Joint(name=name, parent=parent, offset=words.place(), channels=()))
    within.append(len(joints) - 1)
    if len(joints) > MOST_JOINTS:
        raise ValueError(f"more than {MOST_JOINTS} joints")


def _channels(words: _Words) -> tuple[str, ...]:
    count = int(_number(words.take()))
    if not 0 <= count <= 6:
        raise ValueError(f"a joint has 0 to 6 channels, not {count}")
    found = [words.take() for _ in range(count)]
    unknown = [c for c in found if c.lower() not in _KNOWN]
    if unknown or len({c.lower() for c in found}) < count:
        raise ValueError(
            f"channels are {', '.join(_CHANNELS)}, each at most once, not {' '.join(found)[:80]}"
        )
    return tuple(_KNOWN[c.lower()] for c in found)


def _checked(joints: Sequence[Joint], words: _Words) -> tuple[Joint, ...]:
    rest = next(words.words, None)
    if rest is not None:
        raise ValueError(f'"{rest[:40]}" follows the root; a file has one root')
    names = [j.name for j in joints]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise ValueError(f"two joints are called {twice!r}")
    return tuple(joints)


def _motion(text: str, channels: int) -> tuple[float, Tensor]:
    lines = (line for line in text.splitlines() if line.strip())
    count = _labelled(lines, "Frames:")
    seconds = _labelled(lines, "Frame Time:")
    if count < 1 or count != int(count):
        raise ValueError(f"Frames must be a whole number from 1 on, not {count:g}")
    if seconds <= 0:
        raise ValueError(f"Frame Time must be above 0 seconds, not {seconds:g}")
    rows: list[list[float]] = []
    for number, line in enumerate(lines, 1):
        if number > count:
            raise ValueError(f"there are more rows than the {count:g} frames that it states")
        words = line.split()
        if len(words) != channels:
            raise ValueError(
                f"frame {number} has {len(words)} numbers, but there are {channels} channels"
            )
        try:
            rows.append(list(map(float, words)))
        except ValueError as error:
            raise ValueError(f"frame {number}: {error}") from None
    if len(rows) < count:
        raise ValueError(f"there are {len(rows)} rows, but it states {count:g} frames")
    values = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), channels)
    bad = (~values.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"frame {bad[0] + 1} has a number that is not finite")
    return seconds, values


def _labelled(lines: Iterator[str], label: str) -> float:
    line = " ".join(next(lines, "").split())
    if not line.lower().startswith(label.lower()):
        raise ValueError(f'expected "{label}" with a number, not "{line[:40]}"')
    return _number(line[len(label) :].strip())


def write_bvh(motion: Bvh, path: Path | str) -> None:
    """Write a BVH file, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with whole_or_not(Path(path)) as beside:
        beside.write_text(format_bvh(motion), encoding="utf-8")


def format_bvh(motion: Bvh) -> str:
    """Return the text of a BVH file; the inverse of `parse_bvh`, to six digits."""
    lines = ["HIERARCHY", *_written(motion.joints, 0, 0), "MOTION", f"Frames: {len(motion.values)}"]
    lines += [f"Frame Time: {motion.seconds:.8g}"]
    lines += [" ".join(f"{v:.6f}" for v in row) for row in motion.values.tolist()]
    return "\n".join(lines) + "\n"


def _written(joints: Sequence[Joint], at: int, depth: int) -> Iterator[str]:
    joint, tab = joints[at], "\t" * depth
    yield f"{tab}{'JOINT' if depth else 'ROOT'} {joint.name}"
    yield f"{tab}{{"
    yield f"{tab}\tOFFSET {_spaced(joint.offset)}"
    yield f"{tab}\tCHANNELS {len(joint.channels)} {' '.join(joint.channels)}".rstrip()
    for k, other in enumerate(joints):
        if other.parent == at:
            yield from _written(joints, k, depth + 1)
    if joint.end is not None:
        yield from (
            f"{tab}\tEnd Site",
            f"{tab}\t{{",
            f"{tab}\t\tOFFSET {_spaced(joint.end)}",
            f"{tab}\t}}",
        )
    yield f"{tab}}}"


def _spaced(numbers: Sequence[float]) -> str:
    return " ".join(f"{n:.6f}" for n in numbers)
