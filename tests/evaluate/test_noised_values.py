"""Which noise a measure by level draws, in which batches, and single figures by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guidestar import Draw
from guidestar.core.levels import VP
from guidestar.evaluate import calibration
from guidestar.evaluate.classifier_levels import accuracy_by_level, trusted_rho
from guidestar.evaluate.diversity import mean_distance
from guidestar.evaluate.frechet import _Moments
from guidestar.evaluate.metric import run_judge
from guidestar.evaluate.motion_text import distinct_pools, r_precision
from guidestar.evaluate.retrieval import merged, ranks, retrieval

F64 = torch.float64
X, Y = torch.arange(10, dtype=F64).reshape(5, 2) / 7, torch.tensor([0, 1, 1, 0, 1])


def noised(rho: float, seed: int) -> torch.Tensor:
    """α x + σ ε, with ε of the seeds ``1,000,003 seed + k``, the same at each level."""
    level = VP.linear().at_rho(rho)
    draw = Draw([seed * 1_000_003 + k for k in range(5)])
    return float(level.alpha) * X + float(level.sigma) * draw.normal_like("noise", X)


@pytest.mark.parametrize(
    ("measure", "seed"),
    [
        (calibration.by_level, 0),
        (calibration.regression_by_level, 0),
        (calibration.fit_temperatures, 1),
        (accuracy_by_level, 0),
    ],
)
def test_noise_of_a_measure_by_level(measure, seed):
    noted: list[tuple[torch.Tensor, float]] = []

    def net(x, level):
        noted.append((x, float(level.rho)))
        return torch.stack([x[:, 0], -x[:, 0]], 1)

    data = (X, Y[:, None] if measure is calibration.regression_by_level else Y)
    for more, own, sizes in (({}, seed, [5]), ({"seed": 3, "batch": 2}, 3, [2, 2, 1])):
        noted.clear()
        measure(net, data, VP.linear(), [0.5, 4.0], **more)
        for rho in (0.5, 4.0):
            parts = [x for x, r in noted if r == pytest.approx(rho)]
            assert [len(p) for p in parts] == sizes
            torch.testing.assert_close(torch.cat(parts), noised(rho, own))


def test_figures_of_one_level():
    logits = torch.tensor([[2.0, 0], [0, 1], [3, 0], [0, 0.5]], dtype=F64)
    right = torch.tensor([0, 1, 1, 0])
    found = calibration._at_level(logits, right)
    soft = lambda z: math.log(1 + math.exp(z))
    assert found.accuracy == 0.5
    assert found.nll == pytest.approx((soft(-2) + soft(-1) + soft(3) + soft(0.5)) / 4)
    gaps = [1 - 1 / (1 + math.exp(-2)), 1 - 1 / (1 + math.exp(-1)), -1 / (1 + math.exp(-3))]
    gaps.append(-1 / (1 + math.exp(-0.5)))
    # Of 15 bins: 0.88 is in the 14th, 0.73 in the 11th, 0.95 in the 15th, 0.62 in the 10th.
    assert found.ece == pytest.approx(sum(map(abs, gaps)) / 4)
    three = calibration.expected_calibration_error(logits, right, bins=3)  # 0.62 alone is below 2/3
    assert three == pytest.approx((abs(sum(gaps[:3])) + abs(gaps[3])) / 4)


def test_a_regressors_figures_by_hand():
    data = (X[:2], torch.tensor([[1.0, 2.0], [3.0, 8.0]], dtype=F64))
    out = torch.tensor([[2.0, 2.0, 0.0, math.log(2)], [3.0, 7.0, 1.0, math.log(4)]], dtype=F64)
    found = calibration.regression_by_level(lambda x, level: out, data, VP.linear(), [1.0])[1.0]
    assert found.unexplained == pytest.approx((0.5 / 1 + 0.5 / 9) / 2)  # variances 1 and 9
    assert found.surprise == pytest.approx((1 + 0 + 0 + 1 / 4) / 4)


def test_the_best_temperature_is_found_to_four_digits():
    """Of two in three right at the odds exp(z): exp(z/T) = 2 is best."""
    logits = torch.tensor([[3.0, 0.0]] * 3, dtype=F64)
    found = calibration.best_temperature(logits, torch.tensor([0, 0, 1]))
    assert found == pytest.approx(3 / math.log(2), rel=1e-4)
    found = calibration.best_temperature(logits, torch.tensor([0, 0, 0]), 5.0)
    assert found == pytest.approx(1 / 5, rel=1e-4)


def test_where_a_classifier_can_be_trusted():
    assert trusted_rho({1.0: 0.24, 0.5: 0.5, 2.0: 0.23, 4.0: 0.9}, 0.2) == 1.0
    assert trusted_rho({1.0: 0.4, 0.5: 0.39}, 0.2, factor=2) == 0.0
    assert trusted_rho({1.0: 0.4, 0.5: 0.41}, 0.2, factor=2) is None and trusted_rho({}, 1) is None


@pytest.mark.parametrize(("x", "y"), [(X[:0], Y[:0]), (X, Y[:4])])
def test_nothing_to_measure(x, y):
    with pytest.raises(ValueError, match=f"not {len(x)} samples and {len(y)} classes"):
        accuracy_by_level(lambda x, level: x, (x, y), VP.linear(), [1.0])


def test_distances_are_taken_in_parts(monkeypatch):
    x = torch.tensor([[0.0, 0], [3, 4], [0, 1]], dtype=F64)
    wanted = (5 + 1 + math.sqrt(18)) / 3
    assert float(mean_distance(x)) == pytest.approx(wanted)
    monkeypatch.setattr("guidestar.evaluate.diversity._ROWS", 2)
    assert float(mean_distance(x)) == pytest.approx(wanted)


def test_moments_of_batches_are_those_of_all():
    x = torch.tensor([[1.0, 2.0], [3.0, 7.0], [5.0, 3.0], [8.0, 1.0]], dtype=F64)
    found = _Moments(torch.tensor([10.0, -3.0])).add(x[:1]).add(x[1:]).gaussian()
    centred = x - torch.tensor([4.25, 3.25], dtype=F64)
    torch.testing.assert_close(found[0], torch.tensor([4.25, 3.25], dtype=F64))
    torch.testing.assert_close(found[1], centred.T @ centred / 3)
    with pytest.raises(ValueError, match="at least two samples, not 1"):
        _Moments(x[0]).add(x[:1]).gaussian()
    two = _Moments(x[0]).add(x[:2]).gaussian()[1]
    torch.testing.assert_close(two, torch.tensor([[2.0, 5.0], [5.0, 12.5]], dtype=F64))


def test_a_judge_sees_batches_in_its_own_dtype():
    sizes: list[tuple[int, torch.dtype]] = []

    class Judge(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1, dtype=F64))

        def forward(self, x):
            sizes.append((len(x), x.dtype))
            return torch.stack([x[:, 0], -x[:, 0]], 1)

        def features(self, x):
            return x * 10

    found = run_judge(Judge().eval(), X.float() - 0.4, batch=2)
    assert sizes == [(2, F64), (2, F64), (1, F64)]
    assert found.predicted.tolist() == found.wanted.tolist() == [1, 1, 0, 0, 0]
    torch.testing.assert_close(found.features, (X.float() - 0.4).double() * 10)
    plain: Any = SimpleNamespace(features=lambda x: x)
    with pytest.raises(ValueError, match=r"not images \(0, 2\) and no classes"):
        run_judge(plain, X[:0])
    with pytest.raises(ValueError, match=r"not images \(5, 2\) and \(4,\) classes"):
        run_judge(plain, X, Y[:4])
    with pytest.raises(ValueError, match="the judge is in training mode"):
        run_judge(Judge(), X)


def test_precision_of_pools_by_hand():
    """Captions at 0, 1, 2 and their motions: the first is nearest, the second third, …"""
    texts = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    motions = torch.tensor([[0.1], [5.0], [1.2], [9.0]])
    # 0: own 0.1, nearest; 1: own 4.0 against 0.9 and 0.2, third; 2: own 0.8, nearest.
    assert r_precision(texts, motions, size=3) == pytest.approx((2 / 3, 2 / 3, 1.0), rel=1e-12)
    assert r_precision(texts, motions, size=3, top=1) == pytest.approx((2 / 3,))
    assert r_precision(texts[:2], texts[:2], size=1, top=2) == (1.0, 1.0)
    ties = torch.zeros(3, 1)
    assert r_precision(ties, ties, size=3) == pytest.approx((1 / 3, 2 / 3, 1.0))


def test_pools_hold_no_caption_twice():
    assert distinct_pools(["a", "a", "b", "c", "b", "d"], 2) == [0, 2, 1, 4, 3, 5]
    assert distinct_pools(["a", "b"], 2) == [0, 1] and distinct_pools(["a", "a"], 2) == []


def test_ranks_by_hand():
    keys = torch.eye(3, dtype=F64)
    queries = torch.tensor([[0.5, 0.4, 0.3], [0.5, 0.4, 0.3], [0.2, 0.2, 0.2]], dtype=F64)
    assert ranks(queries, keys, torch.tensor([0, 2, 1])).tolist() == [0.0, 2.0, 1.0]
    texts = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]], dtype=F64)
    images = torch.tensor([[0.0, 1], [0.1, 0.9], [0.6, 0.8]], dtype=F64)
    found = retrieval(images, texts)
    # Image 0 fits the texts 1 and 2 better; 1 its own, at 0.9 to 0.78; 2 its own. Back: text 0
    # fits the image 2 best; 1 the image 0, at 1 to 0.9; 2 its own.
    assert found["image to text R@1"] == pytest.approx(2 / 3)
    assert found["text to image R@1"] == pytest.approx(1 / 3)
    assert found["image to text R@5"] == found["text to image R@5"] == 1.0


def test_groups_of_near_texts():
    angle = lambda *degrees: torch.tensor(
        [[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees]
    )
    assert merged(angle(0, 90, 15, 30, 120)).tolist() == [0, 1, 0, 0, 4]  # cos 15° = 0.966
    assert merged(angle(0, 20)).tolist() == [0, 1] and merged(angle(0, 20), 0.9).tolist() == [0, 0]
