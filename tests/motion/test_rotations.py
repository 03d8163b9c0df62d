"""Rotations: Euler angles of every order, six numbers, and the way between two."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from guidestar.motion.rotations import from_6d, from_euler, rotate_about, slerp, to_6d, to_euler

ORDERS = ["".join(p) for p in itertools.permutations("XYZ")]


def about(axis: str, degrees: float) -> torch.Tensor:
    """Return the matrix of a textbook."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rows = {
        "X": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "Y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "Z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return torch.tensor(rows[axis], dtype=torch.float64)


@pytest.mark.parametrize("axis", "XYZ")
def test_one_axis_is_the_matrix_of_a_textbook(axis):
    torch.testing.assert_close(
        rotate_about(axis, torch.deg2rad(torch.tensor([20.0, -130.0], dtype=torch.float64))),
        torch.stack([about(axis, 20), about(axis, -130)]),
    )


@pytest.mark.parametrize("order", ORDERS)
def test_angles_are_the_product_in_their_order_and_come_back(order):
    angles = torch.tensor([[17.0, -63.0, 128.0], [-170.0, 88.0, 3.0]], dtype=torch.float64)
    found = from_euler(angles, order)
    for row, matrix in zip(angles.tolist(), found, strict=True):
        wanted = about(order[0], row[0]) @ about(order[1], row[1]) @ about(order[2], row[2])
        torch.testing.assert_close(matrix, wanted)
    torch.testing.assert_close(to_euler(found, order), angles, atol=1e-9, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("middle", [90.0, -90.0])
def test_where_the_outer_axes_fall_together_the_rotation_still_comes_back(order, middle):
    found = about(order[0], 40) @ about(order[1], middle) @ about(order[2], 25)
    angles = to_euler(found, order)
    assert float(angles[2]) == 0
    torch.testing.assert_close(from_euler(angles, order), found, atol=1e-7, rtol=0)


def test_six_numbers_are_two_columns_and_are_made_orthonormal():
    matrix = about("X", 30) @ about("Z", 50)
    numbers = to_6d(matrix)
    assert numbers.tolist() == [*matrix[:, 0].tolist(), *matrix[:, 1].tolist()]
    torch.testing.assert_close(from_6d(numbers), matrix)
    # Any six numbers give a rotation: the first is scaled, the second made orthogonal to it.
    loose = torch.tensor([3.0, 0, 0, 5.0, 2.0, 0])
    assert from_6d(loose).tolist() == torch.eye(3).tolist()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_way_between_two_rotations_turns_evenly(share):
    a, turn = about("Y", 15), about("X", 10) @ about("Z", 20)
    axis_angle = math.acos((float(turn.trace()) - 1) / 2)
    between = slerp(a, a @ turn, torch.tensor(share, dtype=torch.float64))
    moved = a.T @ between
    assert math.acos(min(1.0, (float(moved.trace()) - 1) / 2)) == pytest.approx(
        share * axis_angle, abs=1e-7
    )
    # The same axis: the turns commute.
    torch.testing.assert_close(moved @ turn, turn @ moved)


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0.6, 0, 0.8), (0.48, 0.6, 0.64)])
def test_half_a_turn_has_a_way_too(axis):
    u = torch.tensor(axis, dtype=torch.float64)
    turn = 2 * torch.outer(u, u) - torch.eye(3, dtype=torch.float64)
    a = about("X", 20)
    between = a.T @ slerp(a, a @ turn, torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(between @ u, u)
    torch.testing.assert_close(between @ between, turn)


def test_many_rotations_have_each_its_own_way():
    a = torch.stack([about("X", 0), about("X", 0)])
    b = torch.stack([about("X", 180), about("Y", 40)])
    found = slerp(a, b, torch.tensor([0.5, 0.25], dtype=torch.float64))
    torch.testing.assert_close(found[0] @ found[0], b[0])
    torch.testing.assert_close(found[1], about("Y", 10))


def test_rounding_does_not_leave_the_range_of_angles():
    matrix = about("Y", 90) * (1 + 1e-12)  # order XYZ: its sine is above 1
    assert to_euler(matrix, "XYZ").tolist() == pytest.approx([0, 90, 0], abs=1e-4)
    assert to_euler(-1 * about("Y", -90).T * (1 + 1e-12), "XYZ").isfinite().all()
    assert to_euler(about("Y", -90) * (1 + 1e-12), "XYZ")[1] == -90


def test_equal_rotations_stay():
    a = about("Z", 33)
    torch.testing.assert_close(slerp(a, a, torch.tensor(0.4, dtype=torch.float64)), a)
