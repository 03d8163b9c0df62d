"""Read a model's ``guidestar.json``, and check each value that is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..diffusers.guidance_file import GuidanceRecipe
from ..io.documents import maybe, number, read_json, shown, whole
from ..io.files import check_name
from ..motion.body import is_body
from .shipped import NAME

Card = Mapping[str, Any]
"""What ``guidestar.json`` holds; the values that are used are checked by `read_about`."""

FORMAT = 1


def read_about(folder: Path) -> Card:
    """Read a folder's ``guidestar.json``.

    Raises:
        ValueError: it is missing or unreadable, of another format, or a value is of the wrong kind;
            the file and the key are named.
    """
    file = folder / NAME
    about = read_json(file)
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{folder} is of the format {shown(about.get('format'))}; this version of guidestar "
            f"reads {FORMAT}"
        )
    for key, (fits, wanted) in _KEYS.items():
        if key in about and not fits(about[key]):
            raise ValueError(f"{file}: {key} must be {wanted}, not {shown(about[key])}")
    _check_defaults(file, about.get("defaults", {}))
    for steps, own in about.get("by_steps", {}).items():
        _check_defaults(file, own, f"by_steps: {steps}")
        if steps not in about.get("grids", {}):
            raise ValueError(f"{file}: by_steps: {steps} steps have no levels in grids")
    return about


def _check_defaults(file: Path, defaults: Card, what: str = "defaults") -> None:
    try:
        GuidanceRecipe(
            **{
                "guidance": "cond",
                **{
                    k: defaults[k] for k in ("guidance", "steps", "solver", "grid") if k in defaults
                },
            }
        )
    except ValueError as error:
        # Of an expression the further lines point at the place; the first says it in words.
        first = str(error).splitlines()[0]
        raise ValueError(f"{file}: {what}: {first}") from error


def _texts(given: object) -> bool:
    return isinstance(given, list) and all(isinstance(n, str) for n in given)


def _folders(given: object) -> bool:
    """Tell whether these name folders within another, and nothing outside it."""
    if not isinstance(given, list):
        return False
    try:
        return len({check_name(name, "a name") for name in given}) == len(given)
    except ValueError:
        return False


_number = number().fits


def _clips(given: object) -> bool:
    known = {"log_scale": _LOG_SCALE.fits, "rho_max": maybe(number(0)).fits}
    return (
        isinstance(given, dict)
        and _folders([*given])
        and all(
            isinstance(c, dict) and all(k in known and known[k](v) for k, v in c.items())
            for c in given.values()
        )
    )


_LOG_SCALE = number(-88, 88)  # whose exponential float32 holds
_SIDE = whole(1, 1_000_000)
_MOST = 2**28
"""Numbers in one sample; 1 GB in float32."""


def _shape(given: object) -> bool:
    return (
        isinstance(given, list)
        and 1 <= len(given) <= 4
        and all(map(_SIDE.fits, given))
        and math.prod(given) <= _MOST
    )


def _scale(given: object) -> bool:
    mean, std = (given.get(k) if isinstance(given, dict) else None for k in ("mean", "std"))
    if not isinstance(mean, list) or not isinstance(std, list):
        return False
    return len(mean) == len(std) >= 1 and all(map(_number, [*mean, *std])) and min(std) > 0


def _grids(given: Any) -> bool:
    """Tell whether these are grids of a card: falling noise ratios, the last of them 0, by steps.

    For n steps there are n + 1.
    """
    return isinstance(given, dict) and all(
        key.isascii() and key.isdecimal() and _falls(rhos, int(key)) for key, rhos in given.items()
    )


def _falls(rhos: Any, steps: int) -> bool:
    return (
        isinstance(rhos, list)
        and len(rhos) == steps + 1 >= 2
        and all(isinstance(r, int | float) and not isinstance(r, bool) for r in rhos)
        and all(math.isfinite(r) for r in rhos)
        and all(a > b for a, b in pairwise(rhos))
        and rhos[-1] == 0
    )


def _by_steps(given: Any) -> bool:
    return isinstance(given, dict) and all(
        isinstance(own, dict) and set(own) <= {"guidance", "solver"} for own in given.values()
    )


_BESIDE = "names of folders beside it"
_KEYS: dict[str, tuple[Callable[[object], bool], str]] = {
    "shape": (_shape, "whole numbers from 1 on, e.g. [3, 64, 64]"),
    "scale": (
        _scale,
        'an object of "mean" and "std", lists of as many numbers, those of std positive',
    ),
    "motion": (is_body, "a skeleton: rate, up, root, size, and bvh, the text of a file at rest"),
    "averages": (_folders, "names of folders in averages/"),
    "nets": (_folders, _BESIDE),
    "classifiers": (_folders, _BESIDE),
    "clips": (_clips, f'{_BESIDE}, each with an object of the numbers "log_scale" and "rho_max"'),
    "grids": (
        _grids,
        "an object of falling noise ratios for each number of steps n: n + 1, the last 0",
    ),
    "by_steps": (
        _by_steps,
        'an object of "guidance" and "solver" for numbers of steps that grids has too',
    ),
    "captions": (_texts, "a list of texts"),
    "defaults": (lambda given: isinstance(given, dict), "an object"),
}
