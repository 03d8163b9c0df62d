"""The orders, integrals and histories of multistep solvers, by values written out."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guidestar.sampling.exponential import (
    Estimate,
    History,
    adams,
    check_orders,
    decay,
    each,
    moments,
    order_at,
    usable,
)
from guidestar.sampling.unipc import UniPC


@pytest.mark.parametrize(
    ("order", "history", "first", "lower", "orders"),
    [
        # Of ten steps: one earlier estimate more at each, up to the order.
        (3, None, 1, False, [1, 2, 3, 3, 3, 3, 3, 3, 3, 3]),
        (4, None, 1, False, [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]),
        # The last step is of first order, the one before of second.
        (3, None, 1, True, [1, 2, 3, 3, 3, 3, 3, 3, 2, 1]),
        (4, None, 1, True, [1, 2, 3, 4, 4, 4, 4, 3, 2, 1]),
        # Estimates are there, but the first steps are of first order, and then one more each.
        (3, 9, 1, False, [1, 2, 3, 3, 3, 3, 3, 3, 3, 3]),
        (3, 9, 3, False, [1, 1, 1, 2, 3, 3, 3, 3, 3, 3]),
        (3, 9, 20, False, [1] * 10),
        # No estimates: first order.
        (3, 0, 1, False, [1] * 10),
        (3, 1, 1, False, [1, 2, 2, 2, 2, 2, 2, 2, 2, 2]),
        (1, None, 1, True, [1] * 10),
    ],
)
def test_orders_of_all_steps(order, history, first, lower, orders):
    found, wanted = [], UniPC(order=order, first_order_steps=first, lower_order_final=lower)
    for index in range(10):
        step: Any = SimpleNamespace(index=index, grid=SimpleNamespace(steps=10))
        known = index if history is None else history
        found.append(order_at(wanted, step, known))
    assert found == orders


@pytest.mark.parametrize("z", [0.3, 0.999, 1.0, 1.001, 4.0, -0.3, -0.999, -1.0, -3.0, 1e-9])
def test_moments_are_their_integrals(z):
    """By the midpoint rule on 20,000 intervals, whose error is below 1e-8 here."""
    v = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    density = z * torch.exp(-z * (1 - v))
    for i, found in enumerate(moments(z, 4)):
        assert found == pytest.approx(float((density * v**i).mean()), rel=2e-8)
    assert len(moments(z, 4)) == 4 and len(moments(z, 1)) == 1


def test_moments_meet_where_the_series_ends():
    """Either side of |z| = 1, the series and the recurrence: derivative times 2e-9 apart."""
    for z in (1.0, -1.0):
        for a, b in zip(moments(z * (1 - 1e-9), 5), moments(z * (1 + 1e-9), 5), strict=True):
            assert a == pytest.approx(b, rel=1e-7)
    assert moments(0.0, 3) == [0.0, 0.0, 0.0]


def test_weights_of_adams():
    """One place p: ``∫ k e^{−k(h−u)} u du / p``; with h = 1, k = 1 it is ``e^{−1}/p``."""
    assert adams(1.0, 1.0, (-2.0,)) == pytest.approx((math.exp(-1) / -2.0,))
    # Two places: ∫ e^{u−1} u (u − q) du / (p (p − q)); ∫ u² e^{u−1} du = 1 − 2/e.
    first, second = math.exp(-1), 1 - 2 * math.exp(-1)
    p, q = -1.0, -3.0
    expected = (
        (second - q * first) / (p * (p - q)),
        (second - p * first) / (q * (q - p)),
    )
    assert adams(1.0, 1.0, (p, q)) == pytest.approx(expected)
    # The unit of length: places and step in any other unit with k to match.
    assert adams(2.0, 0.5, (2 * p, 2 * q)) == pytest.approx(expected)
    for h in (0.0, -1.0, 700.0, math.inf):
        assert adams(h, 1.0, (p, q)) == (0.0, 0.0)
    assert any(adams(699.0, 1.0, (p, q)))
    assert adams(1.0, 1.0, ()) == () and adams(1.0, 1.0, (math.inf, p)) == (0.0, 0.0)
    assert adams(1.0, 1.0, (p, p)) == pytest.approx((first / p, 0.0))
    assert adams(1.0, 1.0, (p, -math.inf)) == pytest.approx((first / p, 0.0))


def test_places_that_can_be_used():
    assert usable([-1.0, -2.0, -3.0]) == [-1.0, -2.0, -3.0]
    assert usable([-1.0, math.inf, -3.0]) == [-1.0] and usable([0.0, -1.0]) == []
    assert usable([-1.0, -2.0, -1.0, -3.0]) == [-1.0, -2.0] and usable([-1.0, math.nan]) == [-1.0]


def test_a_function_of_numbers_is_applied_to_each_sample():
    pair = lambda a, b: (a + b, a * b)
    assert each(pair, 2.0, 3.0) == (5.0, 6.0)
    total, product = each(pair, 2.0, torch.tensor([3.0, 4.0]))
    assert total.tolist() == [5.0, 6.0] and product.tolist() == [6.0, 8.0]  # type: ignore[union-attr]
    assert total.dtype == torch.float64  # type: ignore[union-attr]
    both = each(pair, torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    assert [t.tolist() for t in both] == [[4.0, 6.0], [3.0, 8.0]]  # type: ignore[union-attr]


def test_how_noise_decays():
    assert decay(0.5, 2.0) == pytest.approx(math.exp(-1)) and decay(0.0, math.inf) == 1.0
    assert decay(1.0, math.inf) == 0.0
    found: Any = decay(torch.tensor([0.0, 1.0]), math.inf)
    assert found.tolist() == [1.0, 0.0]


def test_a_history_keeps_the_newest_first():
    x = [torch.full((1, 2), float(k)) for k in range(4)]
    empty = History.read({})
    assert (empty.estimates, empty.places, empty.order) == ((), (), 0)
    memory = empty.memory(Estimate(x[0]), 0.5, 2, 1)
    assert sorted(memory) == ["estimate0", "order", "place0"] and memory["order"] == 1
    memory = History.read(memory).memory(Estimate(x[1]), 1.5, 2, 2)
    found = History.read(History.read(memory).memory(Estimate(x[2]), 2.5, 2, 3))
    assert found.estimates == (x[2], x[1]) and found.places == (2.5, 1.5) and found.order == 3
    # 2·(2 − 3) + 10·(1 − 3)
    assert found.correction(x[3], (2.0, 10.0)).tolist() == [[-22.0, -22.0]]  # type: ignore[union-attr]
    assert found.correction(x[3], (0.0, 0.0)) == 0.0 and found.correction(x[3], ()) == 0.0
    assert found.correction(x[3], (0.0, 10.0)).tolist() == [[-20.0, -20.0]]  # type: ignore[union-attr]
    by_sample: Any = found.correction(x[3], (torch.tensor([0.0]), 10.0))
    assert by_sample.tolist() == [[-20.0, -20.0]]


def test_orders_that_are_taken():
    for order in (1, 2, 3, 4):
        for first in (1, 2, 10_000):
            check_orders("s", first, order=order, corrector=4)
    for bad in (0, 5, 2.5, "2", True, None):
        with pytest.raises(ValueError, match="s: corrector must be from 1 to 4, not "):
            check_orders("s", 1, order=1, corrector=bad)
    for bad in (0, 10_001, 1.5, True, None):
        with pytest.raises(ValueError, match="s: first_order_steps must be a whole number of at l"):
            check_orders("s", bad, order=1)
