"""What an engine checks before it takes a request."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..model.blame import blaming
from .errors import TooLargeError

if TYPE_CHECKING:
    from ..guidance import Guided
    from ..model.model import Model
    from ..model.request import Request

LOOKED_AT = 16
"""Evaluations of a request that are planned to find the dearest of them."""


def check_size(request: Request, max_samples: int | None, preview_every: int) -> None:
    """Refuse a request of too many samples, or a negative number of steps between previews.

    Raises:
        TooLargeError: more samples than ``max_samples`` (None: any number).
        ValueError: ``preview_every`` is below 0.
    """
    if max_samples is not None and len(request.seeds) > max_samples:
        raise TooLargeError(
            f"a request may be for {max_samples} samples, not {len(request.seeds)}; send several"
        )
    if preview_every < 0:
        raise ValueError(f"preview_every must be 0 or more, not {preview_every}")


def in_groups(request: Request, max_rows: int) -> Request:
    """Return a request with its samples in groups of at most half of ``max_rows`` rows, so that it
    leaves room for others.
    """
    most = max(1, max_rows // 2)
    return replace(request, max_rows=min(request.max_rows or most, most))


def bind_checked(model: Model, request: Request, max_evaluations: int | None) -> Guided:
    """Return the guidance of a request, bound to it, if the request can be sampled.

    Raises:
        ValueError: what the guidance, a network or the solver refuses.
        TooLargeError: more network evaluations than ``max_evaluations`` (None: any number), by the
            dearest of some of its steps.
    """
    guided = model.bind(request)
    with blaming("solver"):
        request.solver.check(guided, request.levels)
    with blaming("guidance"):
        request.guidance.check_samples(len(request.seeds))
    if max_evaluations is not None:
        count = _evaluations(request, guided)
        if count > max_evaluations:
            raise TooLargeError(
                f"the request takes about {count} evaluations of the network, and at most "
                f"{max_evaluations} may be; take fewer samples, steps or terms"
            )
    return guided


def _evaluations(request: Request, guided: Guided) -> int:
    """Return how many evaluations it takes if each costs as much as the dearest: its passes,
    gradients, and what its terms repeat.
    """
    points = [
        point
        for index in range(request.levels.steps)
        for point in request.solver.evaluations(request.levels.step(index))
    ]
    looked_at = points[:: -(-len(points) // LOOKED_AT)]
    planned = [guided.plan_step(point, len(request.seeds)) for point in looked_at]
    dearest = max(sum(p.passes.values()) + p.gradients + p.repeats for p in planned)
    return dearest * len(points)
