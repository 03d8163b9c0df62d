"""The quadrature of ER-SDE's integrals, against tables and closed forms."""

import math

import pytest

from guidestar.sampling import er_sde


def test_the_rule_of_three_points_is_gauss():
    """Nodes 0 and ±√(3/5), weights 8/9 and 5/9."""
    (a, v), (b, w), (c, u) = er_sde._legendre(3)
    side = math.sqrt(0.6)
    assert (a, b, c) == pytest.approx((side, 0.0, -side), abs=1e-15)
    assert (v, w, u) == pytest.approx((5 / 9, 8 / 9, 5 / 9), rel=1e-14)


@pytest.mark.parametrize("count", [2, 5, er_sde._POINTS])
def test_a_rule_of_n_points_is_exact_up_to_degree_2n_minus_1(count):
    found = er_sde._legendre(count)
    assert len(found) == count
    for degree in range(2 * count):
        exact = 2 / (degree + 1) if degree % 2 == 0 else 0.0
        total = math.fsum(w * x**degree for x, w in found)
        assert total == pytest.approx(exact, rel=1e-13, abs=1e-15)
    missed = math.fsum(w * x ** (2 * count) for x, w in found) - 2 / (2 * count + 1)
    assert count > 5 or abs(missed) > 1e-4


def test_polynomials_and_their_slopes():
    """P₂ = (3x² − 1)/2 and P₃ = (5x³ − 3x)/2."""
    x = 0.3
    assert er_sde._polynomial(2, x) == pytest.approx(((3 * x * x - 1) / 2, 3 * x))
    assert er_sde._polynomial(3, x) == pytest.approx(((5 * x**3 - 3 * x) / 2, (15 * x * x - 3) / 2))


def test_integrals_over_the_noise(monkeypatch):
    """With φ = 2ρ: ∫ dρ/φ = log(high/low)/2, and ∫ (ρ − high)/φ = (gap − high·log)/2."""
    monkeypatch.setattr(er_sde, "_growth", lambda rho: 2.0)  # φ = ρ·growth
    zeroth, first = er_sde._integrals(0.5, 3.0)
    log = math.log(6.0)
    assert zeroth == pytest.approx(log / 2, rel=1e-13)
    assert first == pytest.approx((2.5 - 3.0 * log) / 2, rel=1e-12)
    assert er_sde._POINTS == 32
