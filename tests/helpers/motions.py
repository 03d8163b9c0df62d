"""Small motions for tests: a walker of seven joints, as the text of BVH files."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from guidestar import VP
from guidestar.data.motions import Motions
from guidestar.diffusers.read.network import denoiser
from guidestar.diffusers.read.scheduler import Process
from guidestar.model.model import Model
from guidestar.networks.condition_encoders import ClassEncoder
from guidestar.networks.conditions import Conditions
from guidestar.networks.lengths import LengthEncoder
from guidestar.networks.motion import MotionTransformer

NAMES = ("Hips", "Spine", "Head", "Leg_L", "Foot_L", "Leg_R", "Foot_R")
PARENTS = (-1, 0, 1, 0, 3, 0, 5)
OFFSETS = ((0, 0, 0), (0, 20, 0), (0, 40, 0), (10, -5, 0), (0, -80, 0), (-10, -5, 0), (0, -80, 0))
ENDS = {2: (0, 15, 0), 4: (0, 0, 15), 6: (0, 0, 15)}


def walker(
    frames: int = 40,
    *,
    speed: float = 1.0,
    seconds: float = 0.05,
    order: str = "ZXY",
    names: tuple[str, ...] = NAMES,
    turn: float = 0.0,
    phase: float = 0.0,
) -> str:
    """Return a BVH file of somebody who walks along z, swinging the legs about x.

    Args:
        frames: number of frames.
        speed: of the walk; 1 is a step a second.
        seconds: of a frame.
        order: of the rotation channels.
        names: of the joints.
        turn: degrees about y by frame.
        phase: of the swing, radians.
    """
    lines = ["HIERARCHY", *_joint(0, names, order, 0), "MOTION", f"Frames: {frames}"]
    lines.append(f"Frame Time: {seconds}")
    for t in range(frames):
        swing = 30 * speed * math.sin(2 * math.pi * t * seconds * speed + phase)
        degrees = {
            0: {"Y": turn * t},
            1: {"Z": 3 * math.sin(t * seconds + phase)},
            3: {"X": swing},
            5: {"X": -swing},
            4: {"X": abs(swing) / 2},
        }
        row = [0.0, 85 + abs(swing) / 10, 4.0 * t * speed]
        for joint in range(len(names)):
            row += [degrees.get(joint, {}).get(axis, 0.0) for axis in order]
        lines.append(" ".join(f"{v:.6f}" for v in row))
    return "\n".join(lines) + "\n"


def _joint(k: int, names: tuple[str, ...], order: str, depth: int) -> list[str]:
    place = "Xposition Yposition Zposition " if k == 0 else ""
    turns = " ".join(f"{axis}rotation" for axis in order)
    lines = [f"{'ROOT' if k == 0 else 'JOINT'} {names[k]}", "{"]
    lines.append("OFFSET " + " ".join(str(v) for v in OFFSETS[k]))
    lines.append(f"CHANNELS {6 if k == 0 else 3} {place}{turns}")
    for child, parent in enumerate(PARENTS):
        if parent == k:
            lines += _joint(child, names, order, depth + 1)
    if k in ENDS:
        lines += ["End Site", "{", "OFFSET " + " ".join(str(v) for v in ENDS[k]), "}"]
    return [*lines, "}"]


def write_walkers(folder: Path, each: int = 4, frames: int = 40) -> Path:
    """Write files ``slow_calm_0.bvh``, … of two speeds and two moods."""
    folder.mkdir(parents=True, exist_ok=True)
    for speed, action in ((0.5, "slow"), (1.5, "fast")):
        for turn, mood in ((0.0, "calm"), (2.0, "dizzy-head")):
            for k in range(each):
                text = walker(frames - 4 * k, speed=speed, turn=turn, phase=0.3 * k)
                (folder / f"{action}_{mood}_{k}.bvh").write_text(text)
    return folder


def random_mover(data: Motions, frames: int) -> Model:
    """Return a model of motions with random weights, of the actions fast and slow, and lengths."""
    torch.manual_seed(0)
    net = MotionTransformer(data.shape[1], frames, width=16, depth=1, heads=2).eval()
    process = Process(schedule=VP.cosine(50), predicts="x0")
    parts = {"action": ClassEncoder(("fast", "slow"), 16), "length": LengthEncoder(frames, 4)}
    scale = {"mean": data.scale.mean.tolist(), "std": data.scale.std.tolist()}
    return Model(
        name="mover",
        denoiser=denoiser(net, process),
        schedule=process.schedule,
        shape=data.shape,
        encoder=Conditions(parts).eval().requires_grad_(False),
        decode=data.scale.undo,
        defaults={"steps": 2, "solver": "ddim", "grid": "uniform"},
        card={"motion": data.body.to_json(), "scale": scale},
    )
