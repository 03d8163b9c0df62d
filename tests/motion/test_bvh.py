"""BVH files: what they mean, what is refused, and that what is written is read."""

from __future__ import annotations

import math

import pytest
import torch

from guidestar.io.files import Damaged
from guidestar.motion import Pose, Skeleton, bvh, read_bvh, write_bvh
from guidestar.motion.rig import Rig

ARM = """HIERARCHY
ROOT base
{
  OFFSET 0 0 0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT upper
  {
    OFFSET 0 2 0
    CHANNELS 3 Zrotation Xrotation Yrotation
    JOINT lower
    {
      OFFSET 3 0 0
      CHANNELS 3 Zrotation Xrotation Yrotation
      End Site
      {
        OFFSET 1 0 0
      }
    }
  }
  JOINT tail
  {
    OFFSET 0 0 -1
    CHANNELS 0
  }
}
MOTION
Frames: 2
Frame Time: 0.05
1 2 3 0 0 0 0 0 0 0 0 0
1 2 3 90 0 0 0 0 90 0 90 0
"""


@pytest.fixture
def arm(tmp_path):
    path = tmp_path / "arm.bvh"
    path.write_text(ARM)
    return path


def test_poses_are_those_of_the_hierarchy_worked_out_by_hand(arm):
    motion = read_bvh(arm)
    assert [j.name for j in motion.joints] == ["base", "upper", "lower", "tail"]
    assert [j.parent for j in motion.joints] == [-1, 0, 1, 0]
    assert motion.joints[2].end == (1, 0, 0) and motion.joints[0].end is None
    assert motion.rate == pytest.approx(20) and motion.values.shape == (2, 12)
    rig = Rig.of(motion)
    assert rig.skeleton.names[0] == "base"
    joints = rig.pose(motion).joints(rig.skeleton)
    # Frame 1: nothing is turned.
    torch.testing.assert_close(
        joints[0],
        torch.tensor([[1, 2, 3], [1, 4, 3], [4, 4, 3], [1, 2, 2]], dtype=torch.float64),
    )
    # Frame 2: the base turns by 90° about z, so "upper" is at −x of it; "upper" turns by 90° about
    # its y, which takes its x to −z, and the base leaves z where it is.
    torch.testing.assert_close(
        joints[1],
        torch.tensor([[1, 2, 3], [-1, 2, 3], [-1, 2, 0], [1, 2, 2]], dtype=torch.float64),
    )


def test_what_is_written_is_read(arm, tmp_path):
    motion = read_bvh(arm)
    write_bvh(motion, tmp_path / "again.bvh")
    again = read_bvh(tmp_path / "again.bvh")
    assert again.joints == motion.joints and again.seconds == motion.seconds
    assert torch.equal(again.values, motion.values)
    assert not list(tmp_path.glob("*.writing"))


def test_channels_in_another_order_are_the_same_motion(arm, tmp_path):
    lines = ARM.replace(
        "6 Xposition Yposition Zposition Zrotation Xrotation Yrotation",
        "6 Yrotation Zposition zrotation Xposition Xrotation Yposition",
    ).splitlines()
    # R = Ry·Rz·Rx in the place of Rz·Rx·Ry: with a turn about z alone they agree.
    lines[-2:] = ["0 3 0 1 0 2 0 0 0 0 0 0", "0 3 90 1 0 2 0 0 90 0 90 0"]
    (tmp_path / "other.bvh").write_text("\n".join(lines))
    first, other = read_bvh(arm), read_bvh(tmp_path / "other.bvh")
    assert other.joints[0].order == "YZX" and first.joints[0].order == "ZXY"
    rig = Rig.of(first)
    torch.testing.assert_close(rig.pose(other).root, rig.pose(first).root)
    torch.testing.assert_close(rig.pose(other).rotations, rig.pose(first).rotations)


def test_a_motion_is_written_to_a_template(arm):
    rig = Rig.of(read_bvh(arm))
    torch.manual_seed(0)
    turns = torch.linalg.qr(torch.randn(5, 4, 3, 3, dtype=torch.float64))[0]
    turns = turns * turns.det()[..., None, None]  # rotations, without mirrors
    turns[:, 3] = torch.eye(3)  # "tail" has no channels
    pose = Pose(rotations=turns, root=torch.randn(5, 3, dtype=torch.float64))
    back = rig.pose(rig.write(pose, 0.1))
    torch.testing.assert_close(back.rotations, pose.rotations)
    torch.testing.assert_close(back.root, pose.root)


def test_z_may_point_upwards(arm, tmp_path):
    motion = read_bvh(arm)
    rig = Rig.of(motion, up="Z")
    # The file's (x, y, z) is (x, z, −y) where y points upwards.
    joints = rig.pose(motion).joints(rig.skeleton)
    torch.testing.assert_close(
        joints[0],
        torch.tensor([[1, 3, -2], [1, 3, -4], [4, 3, -4], [1, 2, -2]], dtype=torch.float64),
    )
    again = rig.write(rig.pose(motion), 0.05)
    torch.testing.assert_close(
        Rig.of(motion).pose(again).joints(rig.skeleton),
        Rig.of(motion).pose(motion).joints(rig.skeleton),
    )


def test_joints_above_the_hips_are_taken_together_with_them(tmp_path):
    above = ARM.replace(
        "ROOT base",
        "ROOT world\n{\nOFFSET 0 0 0\nCHANNELS 6 Xposition Yposition "
        "Zposition Zrotation Xrotation Yrotation\nJOINT base",
    )
    above = above.replace("}\nMOTION", "}\n}\nMOTION")
    lines = above.splitlines()
    lines[-2] = "10 0 0 0 0 90 " + lines[-2]
    lines[-1] = "10 0 0 0 0 90 " + lines[-1]
    (tmp_path / "world.bvh").write_text("\n".join(lines))
    motion = read_bvh(tmp_path / "world.bvh")
    rig = Rig.of(motion)
    assert rig.skeleton.names == ("base", "upper", "lower", "tail") and rig.root == 1
    # "world" turns by 90° about y, which takes (x, y, z) to (z, y, −x), and moves by 10 along x.
    torch.testing.assert_close(
        rig.pose(motion).root, torch.tensor([[13.0, 2, -1]] * 2, dtype=torch.float64)
    )
    again = rig.pose(rig.write(rig.pose(motion), 0.05))
    torch.testing.assert_close(again.root, rig.pose(motion).root)
    torch.testing.assert_close(again.rotations, rig.pose(motion).rotations)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("HIERARCHY", "HIERARCHIE"), 'expected "HIERARCHY", not "HIERARCHIE"'),
        (("ROOT base", "JOINT base"), 'expected "ROOT", not "JOINT"'),
        (("OFFSET 3 0 0", "OFFSET 3 0 x"), 'expected a number, not "x"'),
        (("OFFSET 3 0 0", "OFFSET 3 0 nan"), 'expected a finite number, not "nan"'),
        (
            (
                "Zrotation Xrotation Yrotation\n    JOINT",
                "Zrotation Wrotation Yrotation\n    JOINT",
            ),
            "channels are Xposition, .*, not Zrotation Wrotation Yrotation",
        ),
        (("CHANNELS 0", "CHANNELS 7"), "a joint has 0 to 6 channels, not 7"),
        (("JOINT tail", "JOINT upper"), "two joints are called 'upper'"),
        (("}\nMOTION", "}\nROOT two\nMOTION"), '"ROOT" follows the root; a file has one root'),
        (("}\n}\nMOTION", "}\nMOTION"), 'the hierarchy ends after "}"'),
        (("OFFSET 1 0 0\n", "OFFSET 1 0 0\nCHANNELS 0\n"), '"CHANNELS" cannot stand within'),
        (("OFFSET 1 0 0\n", "OFFSET 1 0 0\nJOINT x\n"), '"JOINT" cannot stand within'),
        (("OFFSET 1 0 0\n", "OFFSET 1 0 0\nEnd Site\n"), '"End" cannot stand within'),
        (("CHANNELS 0", "CHANNELS -1"), "a joint has 0 to 6 channels, not -1"),
        (("CHANNELS 0", "CHANNELS 2 Xrotation xRotation"), "each at most once"),
        (("CHANNELS 0", "SCALE 0"), '"SCALE" cannot stand within a joint'),
        (("Frames: 2", "Frames: 1.5"), "Frames must be a whole number from 1 on, not 1.5"),
        (("Frames: 2", "Frames: two"), 'expected a number, not "two"'),
        (("OFFSET 1 0 0\n", "JOINT x\n"), 'expected "OFFSET", not "JOINT"'),
        (("MOTION", "MOTIO"), '"MOTIO" follows the root'),
        (("Frames: 2", "Frame: 2"), 'expected "Frames:" with a number, not "Frame: 2"'),
        (("Frames: 2", "Frames: 3"), "there are 2 rows, but it states 3 frames"),
        (("Frames: 2", "Frames: 1"), "there are more rows than the 1 frames that it states"),
        (("Frames: 2", "Frames: 0"), "Frames must be a whole number from 1 on, not 0"),
        (("Time: 0.05", "Time: 0"), "Frame Time must be above 0 seconds, not 0"),
        (("90 0 90 0\n", "90 0 90\n"), "frame 2 has 11 numbers, but there are 12 channels"),
        (("90 0 90 0\n", "90 0 90 y\n"), "frame 2: could not convert"),
        (("90 0 90 0\n", "90 0 90 inf\n"), "frame 2 has a number that is not finite"),
    ],
)
def test_what_is_not_whole_is_refused_in_one_line(tmp_path, change, message):
    assert change[0] in ARM
    (tmp_path / "bad.bvh").write_text(ARM.replace(*change, 1))
    with pytest.raises(Damaged, match=r"bad\.bvh: not a whole BVH file: .*" + message):
        read_bvh(tmp_path / "bad.bvh")


@pytest.mark.parametrize("share", range(1, 20))
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, share):
    (tmp_path / "cut.bvh").write_text(ARM[: len(ARM) * share // 20])
    with pytest.raises(Damaged, match=r"cut\.bvh"):
        read_bvh(tmp_path / "cut.bvh")


def test_a_file_ends_before_its_frames(tmp_path):
    (tmp_path / "head.bvh").write_text(ARM[: ARM.index("MOTION")])
    with pytest.raises(Damaged, match='ends before "MOTION"'):
        read_bvh(tmp_path / "head.bvh")


def test_files_beyond_any_use_are_refused(arm, monkeypatch):
    monkeypatch.setattr(bvh, "MOST_JOINTS", 3)
    with pytest.raises(Damaged, match="more than 3 joints"):
        read_bvh(arm)
    monkeypatch.setattr(bvh, "MOST_JOINTS", 4)
    monkeypatch.setattr(bvh, "MAX_BYTES", arm.stat().st_size)
    assert len(read_bvh(str(arm)).joints) == 4
    monkeypatch.setattr(bvh, "MAX_BYTES", arm.stat().st_size - 1)
    with pytest.raises(Damaged, match="has more than 0 MiB; split the file"):
        read_bvh(arm)


def test_what_is_written_is_laid_out_as_usual(arm, tmp_path):
    write_bvh(read_bvh(arm), tmp_path / "again.bvh")
    lines = (tmp_path / "again.bvh").read_text().split("\n")
    assert lines[:5] == [
        "HIERARCHY",
        "ROOT base",
        "{",
        "\tOFFSET 0.000000 0.000000 0.000000",
        "\tCHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation",
    ]
    assert lines[5:7] == ["\tJOINT upper", "\t{"] and lines[9] == "\t\tJOINT lower"
    assert "\t\t\tEnd Site" in lines and "\t\tCHANNELS 0" in lines
    assert lines[-6:-3] == ["MOTION", "Frames: 2", "Frame Time: 0.05"] and lines[-1] == ""


def test_files_that_are_not_there_or_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_bvh(tmp_path / "none.bvh")
    (tmp_path / "bytes.bvh").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(Damaged, match='expected "HIERARCHY"'):
        read_bvh(tmp_path / "bytes.bvh")
    with pytest.raises(Damaged, match="cannot be read"):
        read_bvh(tmp_path)


def test_another_skeleton_is_named(arm, tmp_path):
    motion = read_bvh(arm)
    rig = Rig.of(motion)
    (tmp_path / "o.bvh").write_text(ARM.replace("JOINT tail", "JOINT fin"))
    with pytest.raises(ValueError, match=r"another skeleton than .*: it lacks joint 'tail'"):
        rig.pose(read_bvh(tmp_path / "o.bvh"))
    (tmp_path / "o.bvh").write_text(ARM.replace("OFFSET 3 0 0", "OFFSET 3.5 0 0"))
    with pytest.raises(ValueError, match=r"the bone to joint 'lower' differs .* by 10\.0 %"):
        rig.pose(read_bvh(tmp_path / "o.bvh"), size=5.0)
    with pytest.raises(ValueError, match="there is no joint 'hip'; the joints are base, upper"):
        Rig.of(motion, root="hip")
    with pytest.raises(ValueError, match="joint 'tail' does not hang on the root 'upper'"):
        Rig.of(motion, root="upper")
    with pytest.raises(ValueError, match='up must be "Y" or "Z"'):
        Rig.of(motion, up="X")


def test_a_chain_has_its_first_joint_for_a_root(tmp_path):
    text = ARM[: ARM.index("  JOINT tail")] + "}\n" + ARM[ARM.index("MOTION") :]
    (tmp_path / "chain.bvh").write_text(text)
    rig = Rig.of(read_bvh(tmp_path / "chain.bvh"))
    assert rig.root == 0 and rig.skeleton.names == ("base", "upper", "lower")
    assert rig.skeleton.parents == (-1, 0, 1)


def test_joints_at_rest_keep_their_offsets(tmp_path):
    """A joint above the hips has rotations alone, and one below has positions of its own."""
    text = ARM.replace(
        "ROOT base",
        "ROOT floor\n{\nOFFSET 0 7 0\nCHANNELS 3 Zrotation Xrotation Yrotation\nJOINT base",
    ).replace("}\nMOTION", "}\n}\nMOTION")
    text = text.replace(
        "OFFSET 0 0 -1\n    CHANNELS 0",
        "OFFSET 0 0 -1\n    CHANNELS 3 Xposition Yposition Zposition",
    )
    lines = text.splitlines()
    lines[-2:] = [f"0 0 0 {row} 0 0.5 -2" for row in lines[-2:]]
    (tmp_path / "rest.bvh").write_text("\n".join(lines))
    motion = read_bvh(tmp_path / "rest.bvh")
    rig = Rig.of(motion)
    pose = rig.pose(motion)
    assert pose.root[0].tolist() == [1, 9, 3]  # 7 above what its channels say
    assert rig.skeleton.offsets[3] == (0, 0.5, -2)  # where it stands, not what OFFSET says
    written = rig.write(pose, 0.125)
    assert written.seconds == 0.125
    torch.testing.assert_close(written.values[0, 3:6], torch.tensor([1.0, 2, 3]).double())
    torch.testing.assert_close(written.values[:, -3:], motion.values[:, -3:])
    torch.testing.assert_close(rig.pose(written).root, pose.root)


def test_what_stood_above_the_hips_is_at_rest_in_what_is_written(tmp_path):
    text = ARM.replace(
        "ROOT base",
        "ROOT world\n{\nOFFSET 5 5 5\nCHANNELS 3 Xposition Yposition Zposition\nJOINT base",
    ).replace("}\nMOTION", "}\n}\nMOTION")
    lines = text.splitlines()
    lines[-2:] = [f"10 0 0 {row}" for row in lines[-2:]]
    (tmp_path / "world.bvh").write_text("\n".join(lines))
    motion = read_bvh(tmp_path / "world.bvh")
    rig = Rig.of(motion)
    written = rig.write(rig.pose(motion), 0.05)
    assert written.values[:, :6].tolist() == [[0, 0, 0, 11, 2, 3]] * 2


def test_a_further_joint_and_other_ties_are_named(arm, tmp_path):
    rig = Rig.of(read_bvh(arm))
    more = ARM.replace(
        "    CHANNELS 0\n", "    CHANNELS 0\n JOINT tip\n{\nOFFSET 0 0 0\nCHANNELS 0\n}\n"
    )
    (tmp_path / "more.bvh").write_text(more)
    with pytest.raises(ValueError, match="it has the further joint 'tip'"):
        rig.pose(read_bvh(tmp_path / "more.bvh"))
    lines = ARM.splitlines()
    at = lines.index("  JOINT tail")
    tail = lines[at : at + 5]
    moved = [*lines[: at - 1], *tail, lines[at - 1], *lines[at + 5 :]]
    (tmp_path / "tied.bvh").write_text("\n".join(moved))
    with pytest.raises(ValueError, match="its joints hang together otherwise"):
        rig.pose(read_bvh(tmp_path / "tied.bvh"))


def test_bones_may_differ_by_a_hundredth(arm, tmp_path):
    rig = Rig.of(read_bvh(arm))
    (tmp_path / "o.bvh").write_text(ARM.replace("OFFSET 3 0 0", "OFFSET 3.03 0 0"))
    other = read_bvh(tmp_path / "o.bvh")
    assert len(rig.pose(other, size=3.1).root) == 2
    with pytest.raises(ValueError, match=r"by 1\.0 %"):
        rig.pose(other, size=2.9)


def test_joints_with_two_rotations_cannot_hold_a_motion(tmp_path):
    text = ARM.replace("CHANNELS 0", "CHANNELS 2 Zrotation Xrotation")
    text = "\n".join(line + (" 0 0" if line[:1] == "1" else "") for line in text.splitlines())
    (tmp_path / "two.bvh").write_text(text)
    rig = Rig.of(read_bvh(tmp_path / "two.bvh"))
    with pytest.raises(ValueError, match="joint 'tail' has the rotation channels 'ZX'"):
        rig.write(rig.pose(rig.template), 0.1)


def test_a_skeleton_is_a_tree():
    with pytest.raises(ValueError, match="the parent of joint 'b' is 1"):
        Skeleton(names=("a", "b"), parents=(-1, 1), offsets=((0, 0, 0),) * 2)
    one = Skeleton(names=("a", "b"), parents=(-1, 0), offsets=((0, 0, 0),) * 2)
    assert one.index("b") == 1
    with pytest.raises(ValueError, match="no joint 'c'; its joints are a, b"):
        one.index("c")
    with pytest.raises(ValueError, match="must be as many"):
        Skeleton(names=("a",), parents=(-1, 0), offsets=((0, 0, 0),))
    assert math.isclose(Skeleton(names=("a",), parents=(-1,), offsets=((0, 0, 0),)).count, 1)


def test_a_joint_above_that_turns_and_moves_is_at_rest_in_its_parent(tmp_path):
    text = ARM.replace(
        "ROOT base",
        "ROOT world\n{\nOFFSET 5 5 5\nCHANNELS 6 Xposition Yposition Zposition Zrotation "
        "Xrotation Yrotation\nJOINT base",
    ).replace("}\nMOTION", "}\n}\nMOTION")
    lines = text.splitlines()
    lines[-2:] = [f"10 0 0 0 0 0 {row}" for row in lines[-2:]]
    (tmp_path / "world.bvh").write_text("\n".join(lines))
    motion = read_bvh(tmp_path / "world.bvh")
    rig = Rig.of(motion)
    written = rig.write(rig.pose(motion), 0.05)
    assert written.values[:, :9].tolist() == [[0, 0, 0, 0, 0, 0, 11, 2, 3]] * 2
