"""Measures of motions, by hand."""

import pytest
import torch

from guidestar.evaluate.motions import (
    diversity,
    floor_distance,
    foot_skating,
    jerk,
    multimodality,
)


def test_feet_slide_only_on_the_floor():
    joints = torch.zeros(4, 3, 3)  # a body, a foot that slides on the floor, and one in the air
    joints[:, 1] = torch.tensor([[0, 0.1, 0], [3, 0.1, 4], [6, 0.1, 8], [6, 0.9, 8]])
    joints[:, 2] = torch.tensor([[0, 0.9, 0], [9, 0.9, 9], [0, 0, 0], [0, 0, 2]])
    wanted = (5 + 5 + 2) / 3 * 20 / 10
    assert foot_skating(joints, [1, 2], 20, 10) == pytest.approx(wanted)
    jumping = torch.zeros(4, 1, 3)
    jumping[::2, 0, 1] = 5
    assert foot_skating(jumping, [0], 20, 10) == 0.0
    for floor in (-40.0, 40.0):  # the lowest place of the feet counts, wherever it is
        raised = joints + torch.tensor([0.0, floor, 0.0])
        assert foot_skating(raised, [1, 2], 20, 10) == pytest.approx(wanted, rel=1e-5)


def test_jerk_is_the_third_derivative():
    t = torch.arange(6.0)
    joints = torch.stack([t**3, 0 * t, 2 * t**2], -1)[:, None]
    assert jerk(joints, 10, 4) == jerk(joints[:4], 10, 4) == pytest.approx(6 * 1000 / 4)
    with pytest.raises(ValueError, match="needs at least 4 frames, not 3"):
        jerk(joints[:3], 10, 4)


def test_the_lowest_joint_stands_on_the_floor():
    joints = torch.tensor([[[0, 1.0, 0], [0, 3, 0]], [[0, -2, 0], [0, 0, 0]]])
    assert floor_distance(joints, 2) == pytest.approx((1 + 2) / 2 / 2)
    assert floor_distance(joints, 2, floor=1.0) == pytest.approx((0 + 3) / 2 / 2)


def test_distances_of_features():
    features = torch.tensor([[0.0, 0], [3, 4], [0, 8]])
    assert diversity(features) == pytest.approx((5 + 8 + 5) / 3)
    labels = torch.tensor([1, 1, 0])
    assert multimodality(features, labels) == pytest.approx(5)
    both = multimodality(torch.cat([features, features + 1]), torch.tensor([1, 1, 0, 2, 2, 0]))
    assert both == pytest.approx((5 + 5 + 2**0.5) / 3)
    with pytest.raises(ValueError, match="needs at least two motions, not 1"):
        diversity(features[:1])
    with pytest.raises(ValueError, match="needs two motions of one class"):
        multimodality(features, torch.tensor([0, 1, 2]))
