"""The form of a setting that `few_evaluations.py` searches in, and how it changes.

It holds the logarithms of the noise ratios, the first guided step, the number of guided steps, the
scale, and the solver.
"""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

Setting = dict[str, Any]
KEEPING = "dpmpp-2m(at_changes='keep')"
"""How `dpmpp-2m` was when the old setting was chosen."""
SOLVERS = (
    "dpmpp-2m",
    KEEPING,
    "unipc(at_changes='keep')",
    "res-multistep(order=3, lower_order_final=False, at_changes='keep')",
    "unipc",
    "unipc(order=3)",
    "res-multistep(order=3)",
    "res-multistep(order=3, lower_order_final=False)",
    "dpmpp-3m",
    "dpmpp-3m(lower_order_final=False)",
    "deis(order=2)",
)
CARRIES = ("x0", "eps", "velocity")


def written(genes: Setting, evaluations: int) -> Setting | None:
    """Return the setting of genes, or None where they have no meaning."""
    levels = [float(f"{math.exp(v):.4g}") for v in genes["logs"]]
    steps, first, guided = len(levels), genes["first"], genes["guided"]
    fresh = evaluations - steps
    falls = all(a > 1.15 * b for a, b in pairwise(levels))
    inside = falls and levels[0] <= 157.4 and levels[-1] >= 0.0101
    if not inside or not 1 <= fresh <= guided or first < 0 or first + guided > steps:
        return None
    every = math.ceil(guided / fresh)
    if math.ceil(guided / every) != fresh:
        return None
    ends = [2 * levels[0], *levels, levels[-1] / 4]
    high, low = (math.sqrt(ends[i] * ends[i + 1]) for i in (first, first + guided))
    carried = f", every={every}" if every > 1 else ""
    carried += f", carry='{genes['carry']}'" if every > 1 and "carry" in genes else ""
    return {
        "guidance": f"cfg({genes['scale']:.3g}, interval=({low:.3g}, {high:.3g}){carried})",
        "solver": genes["solver"],
        "levels": [*levels, 0.0],
    }


def changed(genes: Setting, chance: random.Random) -> Setting:
    """Change a setting at random."""
    found = {**genes, "logs": list(genes["logs"])}
    for _ in range(chance.choice((1, 1, 2, 3))):
        steps = len(found["logs"])
        kind = chance.choice(
            ("level", "level", "ends", "scale", "scale", "guided", "solver", "steps", "carry")
        )
        if kind == "level":
            found["logs"][chance.randrange(steps)] += chance.gauss(0, 0.3)
        elif kind == "ends":
            a, b = chance.gauss(0, 0.4), chance.gauss(0, 0.4)
            found["logs"] = [
                v + a * (1 - i / (steps - 1)) + b * i / (steps - 1)
                for i, v in enumerate(found["logs"])
            ]
        elif kind == "scale":
            found["scale"] = max(1.1, found["scale"] * math.exp(chance.gauss(0, 0.2)))
        elif kind == "guided":
            found["first"] += chance.choice((-1, 0, 0, 1))
            found["guided"] += chance.choice((-1, 0, 1))
        elif kind == "solver":
            found["solver"] = chance.choice(SOLVERS)
        elif kind == "carry":
            found["carry"] = chance.choice(CARRIES)
        elif chance.random() < 0.5 and steps > 3:
            found["logs"].pop(chance.randrange(1, steps - 1))
            found["guided"] = max(1, found["guided"] + 1)
        else:
            i = chance.randrange(1, steps)
            found["logs"].insert(i, (found["logs"][i - 1] + found["logs"][i]) / 2)
            found["guided"] = max(1, found["guided"] - 1)
    return found


def _log(*levels: float) -> list[float]:
    return [math.log(v) for v in levels]


_THIRD = "res-multistep(order=3, lower_order_final=False)"
SEEDS: dict[int, list[Setting]] = {
    6: [
        {
            "logs": _log(40, 7.5, 1.41, 0.266, 0.05),
            "first": 2,
            "guided": 1,
            "scale": 2.0,
            "solver": "dpmpp-2m",
        },
        {
            "logs": _log(40, 7.5, 1.41, 0.266, 0.05),
            "first": 2,
            "guided": 2,
            "scale": 2.0,
            "solver": "dpmpp-2m",
        },
        {
            "logs": _log(94.5, 15.4, 2.52, 0.41, 0.067),
            "first": 3,
            "guided": 1,
            "scale": 3.0,
            "solver": "dpmpp-3m",
        },
        {"logs": _log(60, 9, 2, 0.5, 0.1), "first": 2, "guided": 2, "scale": 1.8, "solver": _THIRD},
        {"logs": _log(40, 5, 1, 0.2), "first": 1, "guided": 2, "scale": 1.6, "solver": _THIRD},
    ],
    10: [
        {
            "logs": _log(60, 20, 7.5, 3, 1.2, 0.45, 0.17, 0.06),
            "first": 4,
            "guided": 2,
            "scale": 2.0,
            "solver": "dpmpp-2m",
        },
        {
            "logs": _log(60, 20, 7.5, 3, 1.2, 0.45, 0.17, 0.06),
            "first": 3,
            "guided": 4,
            "scale": 1.7,
            "solver": _THIRD,
        },
        {
            "logs": _log(60, 14, 4.5, 1.6, 0.7, 0.25, 0.07),
            "first": 3,
            "guided": 3,
            "scale": 1.8,
            "solver": "unipc",
        },
    ],
}
"""Settings that the search begins with."""
