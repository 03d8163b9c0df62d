"""X/Y plots: one picture for each pair of values of two settings."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from ...io.images import SheetRow, sheet, to_bytes
from . import builder
from .form import Form, read_seeds

MOST_CELLS = 64
"""Pictures of a plot, at most."""

SETTINGS = {
    "steps": "steps",
    "solver": "solver",
    "grid": "grid of levels",
    "cond": "class or prompt",
    "negative": "negative",
    "seeds": "seed",
    "scale": "scale of the student",
    "strength": "strength of the start picture",
    "guidance": "whole expression",
}
"""Settings that an axis may change, beside the arguments of the expression."""

_SIDE = 320
"""Pixels to which the pictures of a plot are enlarged, at most."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a plot.

    Args:
        key: a key of `SETTINGS`, or ``INDEX:ARGUMENT`` of the expression's part.
        values: as they would be typed.
        label: what it is called.
    """

    key: str
    values: tuple[str, ...]
    label: str


def axes_of(form: Form) -> list[tuple[str, str]]:
    """Return what an axis may change, as pairs of label and key; the expression's own first."""
    found: list[tuple[str, str]] = []
    parts = builder.parts_of(form.guidance) if form.guidance.strip() else ()
    for index, part in enumerate(parts):
        found += [(f"{part.name}: {c.name}", f"{index}:{c.name}") for c in part.controls]
    missing = ("strength",) if form.start is None else ()
    return [*found, *((label, key) for key, label in SETTINGS.items() if key not in missing)]


def read_axis(form: Form, key: str, text: str) -> Axis:
    """Read an axis: values separated by commas, or by semicolons where they have commas.

    Raises:
        ValueError: an unknown setting, or no values.
    """
    labels = _labels(form, key)
    values = tuple(v.strip() for v in text.split(";" if ";" in text else ",") if v.strip())
    if not values:
        raise ValueError(f"the axis '{labels[key]}' has no values; write some, like 1, 2, 4")
    return Axis(key=key, values=values, label=labels[key])


def _labels(form: Form, key: str) -> dict[str, str]:
    """Return the labels of the settings by their keys, of which ``key`` must be one."""
    labels = {k: label for label, k in axes_of(form)}
    if key not in labels:
        raise ValueError("this axis is of an expression that has changed; choose it again")
    return labels


def suggest(form: Form, key: str) -> str:
    """Return values for an axis to begin with.

    Raises:
        ValueError: an unknown setting.
    """
    _labels(form, key)
    if ":" in key:
        index, _, name = key.partition(":")
        part = builder.parts_of(form.guidance)[int(index)]
        control = next(c for c in part.controls if c.name == name)
        if control.choices:
            return "; ".join(control.choices)
        if control.low is not None and control.high is not None:
            whole = control.kind == "whole"
            span = control.high - control.low
            points = [control.low + span * k / 4 for k in (range(5) if not whole else (0, 1, 2, 4))]
            return ", ".join(f"{round(v) if whole else round(v, 4):g}" for v in points)
        return {"interval": "(0, 1); (0.2, 5); (1, 20)", "schedule": "None; linear; cosine"}.get(
            name, control.text
        )
    return {
        "steps": "4, 8, 16, 32",
        "solver": "ddim; dpmpp-2m; heun",
        "grid": "log_snr; karras; uniform",
        "cond": "; ".join(form.conds),
        "negative": form.negative,
        "seeds": "0, 1, 2, 3",
        "scale": "1, 2, 4",
        "strength": "0.2, 0.4, 0.6, 0.8",
        "guidance": f"cond; {form.guidance}",
    }[key]


def with_value(form: Form, key: str, value: str) -> Form:
    """Return the settings with one of them changed.

    Raises:
        ValueError: the value does not fit.
    """
    if ":" in key:
        index, _, name = key.partition(":")
        return replace(form, guidance=builder.change(form.guidance, int(index), name, value))
    if key == "seeds":
        return replace(form, seeds=read_seeds(value)[:1])
    if key == "cond":
        return replace(form, conds=(value,))
    if key in ("steps", "scale", "strength"):
        try:
            return replace(form, **{key: int(value) if key == "steps" else float(value)})
        except ValueError:
            raise ValueError(f"{SETTINGS[key]} must be a number, not {value!r}") from None
    return replace(form, **{key: value})


def cells(form: Form, x: Axis, y: Axis) -> list[list[Form]]:
    """Return the settings of each picture, row by row: of the first condition and seed.

    Raises:
        ValueError: a value does not fit, or there are too many pictures.
    """
    count = len(x.values) * len(y.values)
    if count > MOST_CELLS:
        raise ValueError(f"a plot has {MOST_CELLS} pictures at most, not {count}")
    if x.key == y.key:
        raise ValueError(f"both axes are '{x.label}'; choose two different ones")
    one = replace(form, conds=form.conds[:1], seeds=form.seeds[:1])
    # The whole expression comes first: the other axis changes what it has.
    keys = sorted((0, 1), key=lambda k: (x, y)[k].key != "guidance")
    rows = []
    for b in y.values:
        row = []
        for a in x.values:
            made = one
            for k in keys:
                made = with_value(made, (x, y)[k].key, (a, b)[k])
            row.append(made)
        rows.append(row)
    return rows


def draw(form: Form, x: Axis, y: Axis, pictures: Sequence[str]) -> bytes:
    """Lay the pictures (PNG in base64, row by row) out with a legend: a PNG file."""
    images = [Image.open(io.BytesIO(base64.b64decode(p))).convert("RGB") for p in pictures]
    across = len(x.values)
    rows = [
        SheetRow(label=_short(value), images=images[k * across : (k + 1) * across])
        for k, value in enumerate(y.values)
    ]
    scale = max(1, min(4, _SIDE // max(1, images[0].width), 1400 // (across * images[0].width)))
    made = sheet(
        rows,
        columns=[_short(v, images[0].width * scale // 7) for v in x.values],
        title=f"across: {x.label}; down: {y.label}",
        scale=scale,
    )
    note = f"{form.model} · {', '.join(form.conds) or 'unconditional'} · seed {form.seeds[0]}"
    settings = {"note": note, "guidance": form.guidance, "x": x.label, "y": y.label}
    return to_bytes(made, settings)


def _short(text: str, most: int = 40) -> str:
    most = max(most, 6)
    return text if len(text) <= most else f"{text[: most - 3]}..."
