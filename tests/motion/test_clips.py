"""Real clips: 560 BVH files of a public data set, where they lie beside the project."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch

from guidestar.motion import MotionFormat, parse_bvh, read_bvh, write_bvh
from guidestar.motion.body import Body
from guidestar.motion.features import start_at_origin
from guidestar.motion.rig import Rig, _ancestors
from helpers.motions import walker

CLIPS = Path(
    os.environ.get(
        "GUIDESTAR_MOTION", Path(__file__).parents[2].resolve().parent / "shared/motion/clips.zip"
    )
)
pytestmark = pytest.mark.skipif(
    not CLIPS.is_file(),
    reason="no motion clips at ../shared/motion/clips.zip; name a zip of BVH files with "
    "GUIDESTAR_MOTION",
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Twelve clips, evenly spread over contents and styles."""
    folder = tmp_path_factory.mktemp("clips")
    with zipfile.ZipFile(CLIPS) as whole:
        names = sorted(n for n in whole.namelist() if n.endswith(".bvh"))
        for name in names[:: len(names) // 12][:12]:
            whole.extract(name, folder)
    return [read_bvh(f) for f in sorted(folder.rglob("*.bvh"))]


def test_a_clip_becomes_numbers_and_a_file_again(clips, tmp_path):
    """Files, numbers in float32 and files again agree to 1e-4 of the body's height."""
    rig = Rig.of(clips[0])
    form = MotionFormat.of(rig.skeleton, rig.pose(clips[0]).joints(rig.skeleton))
    assert len(rig.skeleton.names) == 21 and rig.skeleton.names[0] == "Hips"
    names = rig.skeleton.names
    assert [(names[a], names[b]) for a, b in form.across] == [
        ("Shoulder_L", "Shoulder_R"),
        ("UpperLeg_L", "UpperLeg_R"),
    ]
    assert [names[k] for k in form.feet] == ["Foot_L", "Toes_L", "Foot_R", "Toes_R"]
    for clip in clips:
        pose = rig.pose(clip, form.size)
        numbers = form.encode(pose, clip.rate).float()
        assert numbers.shape == (len(clip.values), 257)
        write_bvh(rig.write(form.decode(numbers), clip.seconds), tmp_path / "made.bvh")
        again = read_bvh(tmp_path / "made.bvh")
        assert [j.name for j in again.joints] == [j.name for j in clip.joints]
        wanted = start_at_origin(pose, form).joints(rig.skeleton)
        off = (rig.pose(again).joints(rig.skeleton) - wanted).norm(dim=-1).max() / form.size
        assert float(off) < 1e-4
        shown = (form.positions(numbers) - wanted).norm(dim=-1).max() / form.size
        assert float(shown) < 1e-4


def test_joints_stand_where_the_file_puts_them(clips):
    """Forward kinematics of the file's own translations and rotations, written out here."""
    clip = clips[5]
    rig = Rig.of(clips[0])
    rotations, translations = clip.local()
    places, turns = [], []
    for k, joint in enumerate(clip.joints):
        if joint.parent < 0:
            places.append(translations[:, k])
            turns.append(rotations[:, k])
            continue
        up = joint.parent
        places.append(places[up] + torch.einsum("tij,tj->ti", turns[up], translations[:, k]))
        turns.append(turns[up] @ rotations[:, k])
    wanted = torch.stack(places, 1)[:, rig.root :]
    torch.testing.assert_close(rig.pose(clip).joints(rig.skeleton), wanted, atol=0.02, rtol=0)


def test_the_shortest_motion_has_four_frames():
    body = Body.of(parse_bvh(walker(frames=6)), rate=20)
    numbers = body.encode(parse_bvh(walker(frames=4)))
    assert numbers.shape == (4, body.format.channels) and numbers.dtype == torch.float32
    with pytest.raises(ValueError, match="it has 3 frames at 20 frames a second; a motion needs"):
        body.encode(parse_bvh(walker(frames=3)))
    joints, again = body.joints(numbers), body.to_bvh(numbers)
    assert joints.shape == (4, 7, 3) and again.seconds == 0.05
    wanted = body.rig.pose(again).joints(body.format.skeleton)
    torch.testing.assert_close(joints, wanted.float(), atol=1e-3, rtol=0)
    assert again.values.dtype == torch.float64


def test_joints_above_a_joint_from_the_first_on():
    assert _ancestors([-1, 0, 1, 1, 3], 4) == [0, 1, 3] and _ancestors([-1, 0], 0) == []
