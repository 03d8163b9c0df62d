"""Which numbers a term or post takes: none that is not finite, and its own up to their bounds."""

import dataclasses
import math
import typing
from typing import Any

import pytest

from guidestar.guidance import METHODS

INF, NAN = math.inf, math.nan
NEXT = 1e-9


def needed(method: type) -> dict[str, Any]:
    hints = typing.get_type_hints(method)
    return {
        f.name: "cat" if hints[f.name] is str else 1.0
        for f in dataclasses.fields(method)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }


def numbers() -> list[tuple[str, str]]:
    found = []
    for name, method in METHODS.items():
        hints = typing.get_type_hints(method)
        for field in dataclasses.fields(method):
            hint = hints[field.name]
            if field.init and (hint is float or float in typing.get_args(hint)):
                found.append((name, field.name))
    return found


@pytest.mark.parametrize(("name", "key"), numbers(), ids="-".join)
def test_numbers_must_be_finite(name, key):
    method: Any = METHODS[name]
    for value in (NAN, INF, -INF, "a", True, [None], {}):
        if (name, key, value) == ("seg", "sigma", INF):
            continue
        with pytest.raises(ValueError, match=name) as found:
            method(**{**needed(method), key: value})
        assert "\n" not in str(found.value)


BOUNDS = [
    ("adaptive", "gamma", [-1 + NEXT, 1], [-1, 1 + NEXT]),
    ("adaptive", "below", [NEXT], [0, -1]),
    ("apg", "radius", [NEXT, None], [0, -1]),
    ("cads", "scale", [0, 9], [-NEXT]),
    ("cads", "tau1", [0, 0.9 - NEXT], [-NEXT, 0.9, 0.95]),
    ("cads", "tau2", [0.6 + NEXT, 1], [0.6, 0.5, 1 + NEXT]),
    ("cads", "mix", [0, 1], [-NEXT, 1 + NEXT]),
    ("clip_x0", "limit", [NEXT], [0, -1]),
    ("mambo", "damping", [0], [-NEXT]),
    ("nag", "tau", [NEXT], [0, -1]),
    ("rescale", "scale", [0, 1], [-NEXT, 1 + NEXT]),
    ("sag", "sigma", [NEXT], [0, -1]),
    ("seg", "sigma", [NEXT, INF], [0, -1, -INF]),
    ("tfg", "smoothing", [0], [-NEXT]),
    ("threshold", "percentile", [NEXT, 1 - NEXT], [0, 1 + NEXT, -1]),
    ("tsg", "noise", [NEXT], [0, -1]),
    ("tsg", "power", [0], [-NEXT]),
    ("cfg", "reuse", [NEXT, None], [0, -1]),
    ("cfg", "every", [1, 1000], [0, 1001, 1.5, True, "2", None]),
    ("cfg_zero", "zero", [0, 1000, None], [-1, 1001, 1.5, True, "2"]),
    ("sag", "radius", [0, 1000], [-1, 1001, 1.5, True]),
    ("tfg", "iterations", [0, 1000], [-1, 1001]),
    ("tfg", "samples", [1, 1000], [0, 1001]),
    ("lgd", "samples", [1, 1000], [0, 1001]),
    ("mmps", "iterations", [1, 1000], [0, 1001]),
    ("pigdm", "iterations", [1, 1000], [0, 1001]),
    ("ugd_backward", "steps", [1, 1000], [0, 1001]),
    ("pag", "of", [None, "cond", "uncond", "neg"], ["x", 1]),
    ("autoguidance", "of", ["cond", "uncond"], ["neg", "x", 1]),
    ("tsg", "of", ["cond", "uncond"], ["neg", "x", 1]),
]


@pytest.mark.parametrize(
    ("name", "key", "good", "bad"), BOUNDS, ids=[f"{name}-{key}" for name, key, *_ in BOUNDS]
)
def test_numbers_up_to_their_bounds(name, key, good, bad):
    method: Any = METHODS[name]
    for value in good:
        assert getattr(method(**{**needed(method), key: value}), key) == value
    for value in bad:
        with pytest.raises(ValueError, match=name):
            method(**{**needed(method), key: value})
