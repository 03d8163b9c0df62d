"""How near reconstructed pictures are to the originals: PSNR and SSIM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def psnr(made: Tensor, real: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each picture, in dB.

    ``10 log₁₀(2² / mean (made − real)²)``, of pictures in [−1, 1], whose range is 2.

    Args:
        made, real: ``[B, C, H, W]``.

    Returns:
        ``[B]``, float64; infinite where they are equal.
    """
    _check(made, real)
    return 10 * torch.log10(4 / (made.double() - real.double()).square().flatten(1).mean(1))


def ssim(made: Tensor, real: Tensor) -> Tensor:
    """Return the structural similarity of each picture, at most 1.

    With local means μ, variances v and covariance c under a Gaussian window of 11 × 11 pixels and
    standard deviation 1.5, of pictures brought to [0, 1], averaged over places (where the window
    fits in) and channels:

        (2 μ_a μ_b + C₁)(2 c + C₂) / ((μ_a² + μ_b² + C₁)(v_a + v_b + C₂)),   C₁ = .01², C₂ = .03²

    Args:
        made, real: ``[B, C, H, W]`` in [−1, 1].

    Returns:
        ``[B]``, float64.

    Raises:
        ValueError: a side has fewer than 11 pixels.

    References:
        Image Quality Assessment: From Error Visibility to Structural Similarity, section III.B,
        https://doi.org/10.1109/TIP.2003.819861
    """
    _check(made, real)
    if min(made.shape[-2:]) < _WINDOW:
        raise ValueError(
            f"SSIM looks through windows of {_WINDOW} × {_WINDOW} pixels; these pictures have "
            f"{made.shape[-2]} × {made.shape[-1]}"
        )
    a, b = ((x.double() + 1) / 2 for x in (made, real))
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (found / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).flatten(1).mean(1)


_WINDOW = 11


def _blurred(x: Tensor) -> Tensor:
    at = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    line = (-(at**2) / (2 * 1.5**2)).exp()
    line = (line / line.sum()).expand(x.shape[1], 1, 1, _WINDOW)
    across = F.conv2d(x, line, groups=x.shape[1])
    return F.conv2d(across, line.transpose(2, 3), groups=x.shape[1])


def _check(made: Tensor, real: Tensor) -> None:
    if made.shape != real.shape or made.ndim != 4:
        raise ValueError(
            f"pictures to compare must be alike, [B, C, H, W]; these are {list(made.shape)} and "
            f"{list(real.shape)}"
        )
