"""Motion as numbers: every part by its formula, and back."""

from __future__ import annotations

import math

import pytest
import torch

from guidestar.motion import MotionFormat, Pose, Skeleton
from guidestar.motion.features import (
    _from_zero,
    across_of,
    feet_of,
    mirrored_pairs,
    start_at_origin,
)
from guidestar.motion.timing import fit_length, pad_mask, resample

BODY = Skeleton(
    names=("Hips", "LeftLeg", "LeftFoot", "RightLeg", "RightFoot", "Head"),
    parents=(-1, 0, 1, 0, 3, 0),
    offsets=((0, 0, 0), (1, 0, 0), (0, -4, 0), (-1, 0, 0), (0, -4, 0), (0, 5, 0)),
)


def y(degrees: float) -> torch.Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)


def turning(headings, places) -> Pose:
    """Return a stiff body that looks in the headings (degrees) at the places."""
    count = len(headings)
    rotations = torch.eye(3, dtype=torch.float64).repeat(count, BODY.count, 1, 1)
    rotations[:, 0] = torch.stack([y(h) for h in headings])
    return Pose(rotations=rotations, root=torch.tensor(places, dtype=torch.float64))


def wild(count: int, seed: int = 0) -> Pose:
    """Return poses of random joints."""
    torch.manual_seed(seed)
    turns = torch.linalg.qr(torch.randn(count, BODY.count, 3, 3, dtype=torch.float64))[0]
    return Pose(
        rotations=turns * turns.det()[..., None, None],
        root=torch.randn(count, 3, dtype=torch.float64),
    )


def format_of(pose: Pose) -> MotionFormat:
    return MotionFormat.of(BODY, pose.joints(BODY))


def test_joints_are_found_by_their_names():
    assert mirrored_pairs(BODY) == [(1, 3), (2, 4)] and across_of(BODY) == ((1, 3),)
    assert feet_of(BODY) == (2, 4)
    for left, right in (
        ("L_Hip", "R_Hip"),
        ("hip_l", "hip_r"),
        ("UpperLeg_L", "UpperLeg_R"),
        ("thigh.L", "thigh.R"),
        ("lThigh", "rThigh"),
        ("LowerArm_L", "LowerArm_R"),
    ):
        pair = Skeleton(
            names=("root", left, right), parents=(-1, 0, 0), offsets=((0.0, 0.0, 0.0),) * 3
        )
        assert mirrored_pairs(pair) == [(1, 2)], left
    plain = Skeleton(
        names=("root", "Lower", "Roll"), parents=(-1, 0, 0), offsets=((0.0, 0.0, 0.0),) * 3
    )
    assert mirrored_pairs(plain) == []


def test_each_part_by_its_formula():
    pose = turning([0, 90, 100], [(5, 4, 7), (5, 4, 8), (7, 4.5, 8)])
    form = format_of(pose)
    assert form.size == 9 and form.channels == 1 + 2 + 1 + 15 + 36 + 18 + 2
    numbers = form.encode(pose, rate=10)
    part = {name: numbers[:, where] for name, where in form.parts.items()}

    def close(name, wanted):
        torch.testing.assert_close(part[name], torch.tensor(wanted, dtype=torch.float64))

    ninety, ten = math.pi / 2, math.pi / 18
    close("turn", [[ninety], [ninety], [ten]])
    # Frame 2 walks one step along its former heading, z; frame 3 two steps along x, which is
    # straight ahead (z) for a body that looks along x.
    close("walk", [[0.0, 1], [0, 1], [0, 2]])
    close("height", [[4.0], [4], [4.5]])
    # The body is stiff: its joints stay where they are, as it sees them.
    still = [[1.0, 0, 0], [1, -4, 0], [-1, 0, 0], [-1, -4, 0], [0, 5, 0]]
    for k, height in enumerate((4, 4, 4.5)):
        wanted = torch.tensor(still, dtype=torch.float64)
        wanted[:, 1] += height
        torch.testing.assert_close(part["positions"][k], wanted.flatten())
    close("rotations", [[1.0, 0, 0, 0, 1, 0] * 6] * 3)
    # The root's own velocity is the walk; in frame 3 it also rises.
    velocities = part["velocities"].unflatten(1, (6, 3))
    torch.testing.assert_close(velocities[1, 0], torch.tensor([0, 0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(velocities[2, 0], torch.tensor([0, 0.5, 2.0], dtype=torch.float64))
    # The left leg, one unit to the left (x), goes from x to −z as the body turns by 90°.
    torch.testing.assert_close(velocities[1, 1], torch.tensor([-1.0, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(velocities[0], velocities[1])


def test_feet_are_on_the_ground_where_they_are_slow_and_low():
    heights = [4.0, 4.0, 4.02, 6.0, 6.0]  # the body is 9 high: low is below 0.72, slow below 2.7/s
    pose = turning([0] * 5, [(0, h, 0) for h in heights])
    contacts = format_of(pose).encode(pose, rate=10)[:, -2:]
    # Frame 4 moves by 1.98 in a tenth of a second; frame 5 is still, but high.
    assert contacts.tolist() == [[1, 1], [1, 1], [1, 1], [0, 0], [0, 0]]
    high = turning([0] * 5, [(0, 100 + h, 0) for h in heights])  # the ground is where the feet were
    assert format_of(high).size == 9
    assert torch.equal(format_of(high).encode(high, rate=10)[:, -2:], contacts)
    fast = format_of(pose).encode(pose, rate=1000)[:, -1]
    assert fast.tolist() == [1, 1, 0, 0, 0]  # 0.02 in a thousandth of a second is fast


@pytest.mark.parametrize("seed", range(3))
def test_poses_come_back_from_the_origin(seed):
    pose = wild(7, seed)
    form = format_of(pose)
    numbers = form.encode(pose, rate=30)
    wanted = start_at_origin(pose, form)
    back = form.decode(numbers)
    torch.testing.assert_close(back.rotations, wanted.rotations)
    torch.testing.assert_close(back.root, wanted.root)
    torch.testing.assert_close(form.positions(numbers), wanted.joints(BODY))
    assert wanted.root[0, 0] == wanted.root[0, 2] == 0
    # Starting at the origin moves and turns a motion as a whole.
    one, other = pose.joints(BODY), wanted.joints(BODY)
    torch.testing.assert_close(torch.cdist(one, one), torch.cdist(other, other))
    legs = other[0, 3] - other[0, 1]  # from left to right: against x where it looks along z
    assert legs[0] < 0 and abs(float(legs[2])) < 1e-9
    # A batch decodes as its samples do.
    many = torch.stack([numbers, numbers + 0.1])
    torch.testing.assert_close(form.decode(many).root[0], back.root)
    torch.testing.assert_close(form.positions(many)[0], wanted.joints(BODY))


def test_without_pairs_the_roots_rotation_gives_the_heading():
    pole = Skeleton(names=("a", "b"), parents=(-1, 0), offsets=((0, 0, 0), (0, 1, 0)))
    rotations = torch.eye(3, dtype=torch.float64).repeat(3, 2, 1, 1)
    rotations[:, 0] = torch.stack([y(30), y(70), y(-160)])
    rotations[:, 1] = torch.stack([y(0), y(15), y(99)])  # of the other joint
    pose = Pose(rotations=rotations, root=torch.zeros(3, 3, dtype=torch.float64))
    form = MotionFormat.of(pole, pose.joints(pole))
    assert form.across == () and form.feet == ()
    turn = form.encode(pose, rate=30)[:, 0]
    wanted = torch.tensor([40.0, 40.0, 130.0], dtype=torch.float64)  # 230° is −130°, and so is …
    wanted[2] = -230 + 360
    torch.testing.assert_close(torch.rad2deg(turn), wanted)
    back = form.decode(form.encode(pose, rate=30))
    torch.testing.assert_close(back.rotations[1, 0], y(40) @ (y(30)))


def test_bad_numbers_are_one_line():
    pose = wild(4)
    form = format_of(pose)
    with pytest.raises(ValueError, match=r"a frame of this skeleton has 75 numbers, not 3"):
        form.decode(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="at least 2 frames, not 1"):
        form.encode(Pose(rotations=pose.rotations[:1], root=pose.root[:1]), rate=30)


def test_another_frame_rate_is_the_same_motion():
    pose = turning([0, 20, 40, 60], [(0, 0, 0), (1, 2, 0), (2, 4, 0), (3, 6, 0)])
    finer = resample(pose, 30, 60)
    assert len(finer.root) == 7
    torch.testing.assert_close(finer.root[:, 0], torch.arange(7, dtype=torch.float64) / 2)
    torch.testing.assert_close(finer.rotations[:, 0], torch.stack([y(10 * k) for k in range(7)]))
    coarser = resample(pose, 30, 20)  # frames at 0, 1.5 and 3 of the motion's
    torch.testing.assert_close(coarser.root[:, 1], torch.tensor([0.0, 3, 6], dtype=torch.float64))
    torch.testing.assert_close(coarser.rotations[1, 0], y(30))
    same = resample(pose, 30, 30)
    torch.testing.assert_close(same.rotations, pose.rotations)
    still = resample(Pose(rotations=pose.rotations[1:2], root=pose.root[1:2]), 30, 60)
    assert still.root.tolist() == [[1, 2, 0]]
    torch.testing.assert_close(still.rotations, pose.rotations[1:2])
    for rates in ((30, 0), (0, 30), (-1, 30), (30, -1)):
        with pytest.raises(ValueError, match="frame rates must be above 0, not "):
            resample(pose, *rates)
    assert len(resample(pose, 0.5, 0.25).root) == 2
    # 22 · 29.97 / 59.94 is 10.999999999999998 in floats: the eleventh frame is kept.
    long = resample(turning([0] * 23, [(float(k), 0, 0) for k in range(23)]), 59.94, 29.97)
    torch.testing.assert_close(long.root[:, 0], torch.arange(12, dtype=torch.float64) * 2)
    apart = resample(turning([0, 40, 0], [(0, 0, 0), (4, 0, 0), (0, 0, 8)]), 30, 40)
    assert apart.root.tolist() == [[0, 0, 0], [3, 0, 0], [2, 0, 4]]
    torch.testing.assert_close(apart.rotations[:, 0], torch.stack([y(0), y(30), y(20)]))


def test_motions_are_cut_and_padded():
    numbers = torch.arange(10.0).view(5, 2)
    cut, kept = fit_length(numbers, 3, start=1)
    assert cut.tolist() == [[2, 3], [4, 5], [6, 7]] and kept == 3
    padded, kept = fit_length(numbers, 4, start=3)
    assert padded.tolist() == [[6, 7], [8, 9], [0, 0], [0, 0]] and kept == 2
    assert pad_mask(torch.tensor([0, 2, 3]), 3).tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_a_heading_is_wound_the_shorter_way():
    pose = turning([170, -170], [(0, 0, 0), (0, 0, 0)])
    turn = format_of(pose).encode(pose, rate=30)[:, 0]
    torch.testing.assert_close(torch.rad2deg(turn), torch.tensor([20.0] * 2, dtype=torch.float64))


def test_a_running_sum_begins_with_zero():
    one, many = torch.tensor([[5.0]]), torch.tensor([[5.0, 2.0, 3.0]])
    assert _from_zero(one, 1).tolist() == [[0.0]]
    assert _from_zero(many, -1).tolist() == [[0.0, 2.0, 5.0]]
