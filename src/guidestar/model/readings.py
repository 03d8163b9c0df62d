"""Other readings of a network's output, time and data, each with the fault that it would mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.levels import Level, Schedule
from ..networks.network import Network

Affine = tuple[float, float]  # a clean estimate is p x_t + q out


def affine_of(level: Level) -> dict[str, Affine]:
    """Return p and q of ``x0 = p x_t + q out`` for what an output may mean."""
    a, s = float(level.alpha), float(level.sigma)
    n = a * a + s * s
    return {
        "x0": (0.0, 1.0),
        "eps": (1 / a, -s / a),
        "v": (a / n, -s / n),
        "velocity": (1 / (a + s), -s / (a + s)),
    }


def output_readings(net: Denoiser) -> Iterator[tuple[str, Callable[[Level], Affine]]]:
    """Yield possible faults of the output, and p, q of the ``p x_t + q D`` that corrects each."""

    def mending(taken: str, meant: str, sign: float) -> Callable[[Level], Affine]:
        def mend(level: Level) -> Affine:
            (p, q), (p_m, q_m) = affine_of(level)[taken], affine_of(level)[meant]
            return p_m - sign * q_m * p / q, sign * q_m / q

        return mend

    known = getattr(net, "predicts", None) if isinstance(net, Network) else None
    everyone = ("eps", "x0", "v", "velocity")
    for taken in (known,) if known in everyone else () if known else everyone:
        for meant in everyone:
            if meant != taken:
                yield (
                    f"{meant} taken for {taken}: its output looks like {meant}; write "
                    f"predicts={meant!r}",
                    mending(taken, meant, 1.0),
                )
            sign = f"the sign of its {meant} is wrong: it looks like −{meant}; negate the output"
            yield (
                sign + (f", and write predicts={meant!r}" if meant != taken else ""),
                mending(taken, meant, -1.0),
            )


def other_times(schedule: Schedule) -> dict[str, Callable[[Level], float]]:
    """Return other times that a network may take, by the fault that each would mean."""
    ends, count = (
        schedule.t_min + schedule.t_max,
        schedule.t_max + 1 if schedule.t_max > 100 else 1000.0,
    )
    unit = "its times look to be in another unit; give the network "
    return {
        "time reversed: it looks to get times the wrong way round; give the network "
        f"{ends:g} - t": lambda level: ends - float(level.t),
        f"{unit}t / {count:g}": lambda level: float(level.t) / count,
        f"{unit}{count:g} * t": lambda level: float(level.t) * count,
        f"{unit}log(rho) / 4, as EDM's": lambda level: math.log(float(level.rho)) / 4,
    }


OTHER_RANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "it expects data in [−1, 1], and these look like [0, 1]; give 2x − 1": lambda x: 2 * x - 1,
    "it expects data in [0, 1], and these look like [−1, 1]; give (x + 1)/2": lambda x: (x + 1) / 2,
    "it expects data in [−1, 1], and these look like 0 … 255; give x/127.5 − 1": lambda x: (
        x / 127.5 - 1
    ),
    "it expects data in [0, 1], and these look like 0 … 255; give x/255": lambda x: x / 255,
}
