"""The edges of what is measured: the floor, the smallest picture, classes that are missing."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guidestar.core.levels import VP
from guidestar.evaluate import LeastShare, psnr, ssim
from guidestar.evaluate.calibration import expected_calibration_error, regression_by_level
from guidestar.evaluate.motions import diversity, floor_distance, foot_skating, jerk


def test_a_foot_on_the_edge_of_the_floor_is_above_it():
    joints = torch.zeros(3, 2, 3)
    joints[:, 0, 0] = torch.tensor([0.0, 1.0, 3.0])  # slides by 1 and by 2, on the lowest place
    joints[:, 1, 2] = torch.tensor([0.0, 50.0, 100.0])
    joints[:, 1, 1] = 0.5  # a twentieth of the height of 10: no longer on the floor
    assert foot_skating(joints, [0, 1], 2, 10) == pytest.approx(1.5 * 2 / 10)
    joints[:, 1, 1] = 0.4921875  # it slides too
    assert foot_skating(joints, [0, 1], 2, 10) == pytest.approx((1 + 2 + 50 + 50) / 4 * 2 / 10)
    assert foot_skating(joints, [0], 2, 10) == pytest.approx(1.5 * 2 / 10)


def test_a_foot_must_be_on_the_floor_at_both_frames():
    joints = torch.zeros(3, 1, 3)
    joints[:, 0, 0] = torch.tensor([0.0, 4.0, 5.0])
    joints[:, 0, 1] = torch.tensor([9.0, 0.0, 0.0])
    assert foot_skating(joints, [0], 3, 10) == pytest.approx(1 * 3 / 10)


def test_jerk_is_a_mean_over_joints_and_frames():
    joints = torch.zeros(5, 2, 3)
    joints[4, 0] = torch.tensor([3.0, 0.0, 4.0])  # one third difference of 5 among four
    assert jerk(joints, 2, 10) == pytest.approx(5 / 4 * 8 / 10)
    assert floor_distance(joints - 2, 4) == pytest.approx(0.5)
    assert diversity(torch.tensor([[0.0, 0.0], [3.0, 4.0]])) == 5  # two are enough


def test_the_smallest_picture_has_one_window():
    a = torch.linspace(-1, 1, 121).reshape(1, 1, 11, 11)
    assert ssim(a, a).tolist() == pytest.approx([1.0])
    for height, width in ((10, 11), (11, 10)):
        text = f"windows of 11 × 11 pixels; these pictures have {height} × {width}"
        with pytest.raises(ValueError, match=text):
            ssim(torch.zeros(1, 1, height, width), torch.zeros(1, 1, height, width))
    # Flat pictures of 0 and 1, in [0, 1]: c = v = 0, so only C₁/(1 + C₁) is left.
    black, white = -torch.ones(1, 2, 11, 12), torch.ones(1, 2, 11, 12)
    assert ssim(black, white).tolist() == pytest.approx([1e-4 / (1 + 1e-4)], rel=1e-6)
    assert psnr(black, white).tolist() == pytest.approx([0.0], abs=1e-9)


@pytest.mark.parametrize("shapes", [((1, 8, 8), (1, 8, 8)), ((2, 1, 12, 12), (1, 1, 12, 12))])
def test_only_pictures_that_are_alike_are_compared(shapes):
    one, other = map(torch.zeros, shapes)
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match=r"must be alike, \[B, C, H, W\]; these are"):
            measure(one, other)


def test_a_class_that_is_never_predicted_has_the_least_share():
    def judged(*predicted: int) -> Any:
        logits = torch.zeros(len(predicted), 3)
        return SimpleNamespace(predicted=torch.tensor(predicted), logits=logits)

    metric = LeastShare()
    metric.update(judged(0, 1, 2, 0))
    assert metric.shares().tolist() == [0.5, 0.25, 0.25] and metric.compute() == 0.25
    metric.update(judged(1))
    assert metric.shares().tolist() == pytest.approx([0.4, 0.4, 0.2])
    missing = LeastShare()
    missing.update(judged(0, 1, 1, 1))
    assert missing.shares().tolist() == [0.25, 0.75, 0.0] and missing.compute() == 0.0


def test_a_regressor_of_three_numbers():
    y = torch.tensor([[0.0, 1.0, 2.0], [2.0, 5.0, 4.0]])
    out = torch.cat([y + 1, torch.full((2, 3), 0.5)], 1)
    found = regression_by_level(lambda x, level: out, (torch.zeros(2, 4), y), VP.linear(), [1.0])
    assert found[1.0].unexplained == pytest.approx((1 + 1 / 4 + 1) / 3)
    assert found[1.0].surprise == pytest.approx(math.exp(-0.5))


def test_certain_and_even_predictions_have_bins():
    logits = torch.tensor([[900.0, 0.0], [0.0, 900.0], [0.0, 0.0]])
    target = torch.tensor([0, 0, 0])
    # Certain: one right of two, so 1/2 apart; even: 1 right at a confidence of 1/2.
    wanted = (abs(1 - 2) + abs(1 - 0.5)) / 3
    for bins in (1, 2, 15):
        gap = abs(2 - 2.5) / 3 if bins == 1 else wanted
        assert expected_calibration_error(logits, target, bins) == pytest.approx(gap)
