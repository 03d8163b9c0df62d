"""What measurements of all kinds share: the rows that they yield, and how far they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..model.model import Watch


def row_of(
    guidance: object, figures: Mapping[str, object], *, nfe: float = 0.0, seconds: float = 0.0
) -> dict[str, object]:
    """Return a row of figures.

    Args:
        guidance: an expression, or what was measured in its place.
        figures: by name.
        nfe: evaluations a sample.
        seconds: of the sampling.
    """
    return {"guidance": str(guidance), "nfe": nfe, "seconds": round(seconds, 2), **figures}


def watch_part(
    watch: Watch | None, index: int, samples: int, runs: int
) -> Callable[[int], None] | None:
    """Return a function that reports the samples done of one run among those of all runs.

    Args:
        watch: called with the samples done and in all.
        index: of the run.
        samples: of each run.
        runs: how many there are.
    """
    if watch is None:
        return None
    return lambda done: watch(index * samples + done, runs * samples)
