"""Motions are measured as they are: real ones are themselves, and kept frames have no error."""

import pytest
import torch
from torch import nn

from guidestar.apps.measure_motion import (
    MotionJudge,
    inbetween_error,
    names_like,
    real_motions,
    sample_like,
    score_motions,
)
from guidestar.data.motions import MotionSettings, motion_folder
from guidestar.evaluate.motions import foot_skating, jerk
from helpers.motions import random_mover, write_walkers

T = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_walkers(tmp_path_factory.mktemp("measured") / "clips", each=3, frames=20)
    return motion_folder(folder, MotionSettings(frames=T, names="{action}_{}"))


@pytest.fixture(scope="module")
def model(data):
    return random_mover(data, T)


class Pace(nn.Module):
    """A judge that tells slow from fast by how far the root goes in a frame."""

    def __init__(self, data):
        super().__init__()
        self.data, self.at = data, data.body.format.parts["walk"].start + 1

    def features(self, x):
        return self.data.scale.undo(x)[:, :8, self.at].double()

    def forward(self, x):
        pace = self.features(x).mean(1)
        return torch.stack([pace - 4, 4 - pace], 1)  # fast walks 6 a frame, slow 2


@pytest.fixture(scope="module")
def judge(data):
    return MotionJudge(net=Pace(data).eval(), data=data, column="action")


def test_real_motions_score_as_what_they_are(data, judge):
    numbers, labels = real_motions(data), data.targets["action"]
    assert [len(n) for n in numbers] == [min(c, T) for c in data.counts] == [16, 16, 12] * 4
    seen = judge.run(numbers, labels)
    found = score_motions(numbers, labels, judge=judge, body=data.body, reference=seen)
    assert found.accuracy == 1 and found.fid == pytest.approx(0, abs=1e-9)
    wrong = score_motions(numbers, 1 - labels, judge=judge, body=data.body, reference=seen)
    assert wrong.accuracy == 0 and wrong.diversity == found.diversity
    apart = [
        (float((seen.features[i] - seen.features[j]).norm()), labels[i] == labels[j])
        for i in range(12)
        for j in range(i)
    ]
    assert found.diversity == pytest.approx(sum(d for d, _ in apart) / 66)
    assert found.multimodality == pytest.approx(sum(d for d, same in apart if same) / 30)
    joints = [data.body.joints(n.double()) for n in numbers]
    size, feet = data.body.format.size, data.body.format.feet
    mean = lambda values: sum(values) / len(values)
    assert found.jerk == pytest.approx(mean([jerk(j, 20, size) for j in joints]))
    assert found.foot_skating == pytest.approx(
        mean([foot_skating(j, feet, 20, size) for j in joints])
    )


def test_samples_are_of_the_same_conditions_and_lengths(data, model):
    names = names_like(data, ("action",))
    assert names[:3] == [*["action=fast; length=16"] * 2, "action=fast; length=12"]
    assert names[-1] == "action=slow; length=12"
    found = sample_like(model, names, "cfg(2)", batch=5)
    assert [len(x) for x in found] == [16, 16, 12] * 4
    one = model.sample(names[7], guidance="cfg(2)", seeds=[7]).images[0]
    torch.testing.assert_close(found[7], one, atol=1e-4, rtol=1e-4)


def test_errors_of_inbetweening_are_of_the_missing_frames(data, model):
    numbers = [n for n in real_motions(data) if len(n) == T][:2]
    names = ["action=fast; length=16"] * 2
    made, line = inbetween_error(model, data.body, numbers, names, 5, steps=3, times=2)
    form, wanted = data.body.format, []
    for x in numbers:
        y = form.local(x)
        for k in range(5, 11):
            share = (k - 4) / 7  # between the frames 4 and 11
            wanted.append(float((y[k] - (y[4] * (1 - share) + y[11] * share)).norm(dim=-1).mean()))
    assert line == pytest.approx(sum(wanted) / len(wanted) / form.size, rel=1e-4)
    assert made > 0.01  # of a network of random weights
