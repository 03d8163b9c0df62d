"""Divergence: samples that have left every plausible range."""

from __future__ import annotations

import warnings

from torch import Tensor

from ..core.levels import Level, expand, sqrt

ROOT_MEAN_SQUARE, LARGEST = 4.0, 16.0
"""Largest plausible root mean square and number of a sample, in units of its level's size."""


class DivergenceWarning(UserWarning):
    """Some samples have left every plausible range."""


def diverged(x: Tensor, level: Level | None = None, *, scale: float = 1.0) -> Tensor:
    """Return which samples have left every plausible range: bool ``[B]``, on the CPU.

    Data of root mean square ``scale`` has the size ``n = √(α² scale² + σ²)`` at a level. A sample
    has diverged if ``√mean x² > 4 n``, ``max |x| > 16 n``, or a number is not finite. Normal noise,
    pictures in [−1, 1], latents of variance 1, and strongly guided samples of these are well below
    both limits. This waits for the device once.

    Args:
        x: samples ``[B, *S]``: final ones, or those of a trajectory (``state.x``).
        level: their level (``state.step.s``); None for data.
        scale: root mean square of the data.
    """
    size = scale if level is None else sqrt(level.alpha**2 * scale**2 + level.sigma**2)
    flat = (x.detach().double() / expand(size, x.double())).flatten(1)
    plausible = (flat.square().mean(1).sqrt() <= ROOT_MEAN_SQUARE) & (flat.abs().amax(1) <= LARGEST)
    return ~plausible.cpu()


def warn_of_divergence(
    x: Tensor,
    level: Level | None = None,
    *,
    scale: float = 1.0,
    stacklevel: int = 2,
) -> Tensor:
    """Warn (`DivergenceWarning`) if samples have `diverged`, and return which: bool ``[B]``.

    The warning names the diverged samples (the first eight), the largest number, and what to do.

    Args:
        x: samples ``[B, *S]``.
        level: their level; None for data.
        scale: root mean square of the data.
        stacklevel: as in `warnings.warn`.
    """
    gone = diverged(x, level, scale=scale)
    if bool(gone.any()):
        found = gone.nonzero().flatten().tolist()
        which = ", ".join(str(i) for i in found[:8]) + (", …" if len(found) > 8 else "")
        worst = float(x[gone.to(x.device)].abs().max())
        message = (
            f"{len(found)} of {len(gone)} samples have diverged (sample {which}): numbers up to "
            f"{worst:.3g} where about {scale:.3g} is plausible; lower the scale, take more steps, "
            "or confine the guidance to an interval of noise ratios"
        )
        warnings.warn(message, DivergenceWarning, stacklevel=stacklevel)
    return gone
