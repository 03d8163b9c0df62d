"""PSNR and SSIM against their formulas, place by place."""

from __future__ import annotations

import math

import pytest
import torch

from guidestar.evaluate import psnr, ssim


def test_psnr_is_the_formula():
    torch.manual_seed(0)
    a, b = torch.rand(3, 3, 6, 5) * 2 - 1, torch.rand(3, 3, 6, 5) * 2 - 1
    for k in range(3):
        error = sum(float((a[k] - b[k]).flatten()[i]) ** 2 for i in range(90)) / 90
        assert math.isclose(float(psnr(a, b)[k]), 10 * math.log10(4 / error), rel_tol=1e-6)
    # An error of 0.2 everywhere, of a range of 2, is a tenth of it: 20 dB.
    assert math.isclose(float(psnr(a[:1] * 0 + 0.2, a[:1] * 0)), 20, rel_tol=1e-6)
    assert float(psnr(a, a)[0]) == math.inf


def test_ssim_is_the_formula():
    torch.manual_seed(0)
    a, b = torch.rand(2, 2, 13, 12) * 2 - 1, torch.rand(2, 2, 13, 12) * 2 - 1
    b = 0.6 * a + 0.4 * b
    window = torch.tensor(
        [
            [math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)]
            for i in range(11)
        ],
        dtype=torch.float64,
    )
    window /= window.sum()
    for k in range(2):
        places = []
        for c in range(2):
            for i in range(3):
                for j in range(2):
                    p, q = ((x[k, c, i : i + 11, j : j + 11].double() + 1) / 2 for x in (a, b))
                    mp, mq = (window * p).sum(), (window * q).sum()
                    vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                    cov = (window * (p - mp) * (q - mq)).sum()
                    c1, c2 = 1e-4, 9e-4
                    places.append(
                        (2 * mp * mq + c1)
                        * (2 * cov + c2)
                        / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
                    )
        assert math.isclose(float(ssim(a, b)[k]), float(sum(places)) / len(places), rel_tol=1e-9)
    torch.testing.assert_close(ssim(a, a), torch.ones(2, dtype=torch.float64))


def test_what_cannot_be_compared_is_one_line():
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"must be alike, \[B, C, H, W\]"):
        psnr(x, x[..., :8])
    with pytest.raises(ValueError, match="windows of 11 × 11 pixels; these pictures have 8 × 16"):
        ssim(x[..., :8, :], x[..., :8, :])
