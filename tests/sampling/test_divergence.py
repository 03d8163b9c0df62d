"""What counts as diverged, from its formula, at data and on the way."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from guidestar import Flow, Level
from guidestar.sampling import DivergenceWarning, diverged, warn_of_divergence
from helpers.toys import noise


def flat(value: float, *shape: int) -> torch.Tensor:
    return torch.full(shape, value, dtype=torch.float64)


@pytest.mark.parametrize(
    ("level", "scale", "size"),
    [
        (None, 1.0, 1.0),
        (None, 0.5, 0.5),
        (Level(1.0, 0.0, 0.0), 3.0, 3.0),
        (Level(1.0, 80.0, 80.0), 1.0, math.sqrt(6401)),
        (Level(0.6, 0.8, 0.0), 2.0, math.sqrt(0.36 * 4 + 0.64)),
        (Level(0.0, 1.0, 1.0), 5.0, 1.0),
    ],
)
def test_a_sample_has_diverged_above_four_times_its_levels_size(level, scale, size):
    """Root mean square 4 n, and a single number of 16 n."""
    x = torch.cat([flat(c * 4 * size, 1, 3, 5) for c in (0.999, 1.001)])
    assert diverged(x, level, scale=scale).tolist() == [False, True]
    spikes = torch.zeros(2, 3, 50, dtype=torch.float64)
    spikes[0, 1, 3], spikes[1, 1, 3] = -0.999 * 16 * size, -1.001 * 16 * size
    assert diverged(spikes, level, scale=scale).tolist() == [False, True]


def test_numbers_that_are_not_finite_have_diverged():
    x = torch.zeros(4, 2)
    x[1, 0], x[2, 1], x[3, 0] = math.nan, math.inf, -math.inf
    assert diverged(x).tolist() == [False, True, True, True]


def test_noise_and_pictures_have_not_and_each_sample_has_its_own_level():
    assert not diverged(noise(64, 3, 32, 32), Level(0.0, 1.0, 1.0)).any()
    assert not diverged(noise(64, 3, 32, 32).sign().half()).any()
    level = Flow()(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    sizes = [1.0, math.sqrt(0.5), 1.0]
    for c, expected in ((0.999, False), (1.001, True)):
        x = torch.stack([flat(4 * c * s, 7) for s in sizes])
        assert diverged(x, level).tolist() == [expected] * 3


def test_the_warning_says_which_and_how_far():
    x = torch.zeros(12, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_of_divergence(x).any()
    x[[1, 4]] = 30.0
    x[4, 2] = -70.0
    with pytest.warns(
        DivergenceWarning,
        match=r"^2 of 12 samples have diverged \(sample 1, 4\): numbers up to 70 where about 2 "
        r"is plausible",
    ) as told:
        assert warn_of_divergence(x, scale=2.0).nonzero().flatten().tolist() == [1, 4]
    assert told[0].filename == __file__
    with pytest.warns(DivergenceWarning, match=r"12 of 12 .* \(sample 0, 1, 2, 3, 4, 5, 6, 7, …\)"):
        warn_of_divergence(x + 100)
    for count, said in ((8, r"6, 7\)"), (9, r"6, 7, …\)")):
        with pytest.warns(
            DivergenceWarning, match=rf"{count} of {count} .* \(sample 0, 1, 2, 3, 4, 5, {said}"
        ):
            warn_of_divergence(torch.full((count, 2), 99.0))
