"""Accuracy of a noise-aware classifier by noise level, and where it can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..core.levels import Level, Schedule, expand
from ..core.rng import Draw


@torch.no_grad()
def accuracy_by_level(
    classifier: Callable[[Tensor, Level], Tensor],
    data: tuple[Tensor, Tensor],
    schedule: Schedule,
    rhos: Sequence[float],
    *,
    seed: int = 0,
    batch: int = 500,
) -> dict[float, float]:
    """Return, for each noise ratio, the share of noised samples that are classified rightly.

    ``mean(argmax classifier(α x0 + σ ε, level) = y)``, in [0, 1]. All ratios get the same noise, so
    that accuracies differ by the level alone.

    Args:
        classifier: gives logits ``[B, K]`` of ``x_t [B, *S]`` at a level; in evaluation mode.
        data: clean samples ``[N, *S]`` and their classes ``[N]``, not those it was trained on.
        schedule: where the levels come from.
        rhos: noise ratios sigma/alpha, e.g.
            ``[level.rho for level in log_snr(schedule, 20, clean=False)]``.
        seed: of the noise.
        batch: samples at a time.

    Raises:
        ValueError: the classifier is in training mode, or there is nothing to measure.
    """
    if getattr(classifier, "training", False):
        raise ValueError(
            "the classifier is in training mode, where dropout changes its predictions; call "
            "classifier.eval() first"
        )
    x0, y = data
    if len(x0) == 0 or len(x0) != len(y):
        raise ValueError(
            f"accuracy needs samples and one class for each, not {len(x0)} samples and {len(y)} "
            "classes"
        )
    levels = {float(rho): schedule.at_rho(float(rho)) for rho in rhos}
    right = dict.fromkeys(levels, 0)
    for rows in torch.arange(len(x0)).split(batch):
        x, wanted = x0[rows], y[rows]
        noise = Draw((seed * 1_000_003 + rows).tolist()).normal_like("noise", x)
        for rho, level in levels.items():
            logits = classifier(expand(level.alpha, x) * x + expand(level.sigma, x) * noise, level)
            right[rho] += int((logits.argmax(1) == wanted).sum())
    return {rho: hits / len(x0) for rho, hits in right.items()}


def trusted_rho(
    accuracies: Mapping[float, float], chance: float, *, factor: float = 1.2
) -> float | None:
    """Return the largest noise ratio up to which accuracy is at least ``factor`` times ``chance``.

    A later rise counts for nothing: what lies beyond the first failure is not trusted.

    Args:
        accuracies: by noise ratio, in any order.
        chance: accuracy of a guess: 1/K for K equally frequent classes.
        factor: how many times chance is worth guiding by.

    Returns:
        The last ratio that passes; 0 where not even the smallest does; None where all do, that is
        where no limit was found.

    Example:
        >>> trusted_rho({0.1: 0.9, 1.0: 0.6, 10.0: 0.11, 100.0: 0.13}, 0.1)
        1.0
    """
    trusted = 0.0
    for rho, accuracy in sorted(accuracies.items()):
        if accuracy < factor * chance:
            return trusted
        trusted = rho
    return None
