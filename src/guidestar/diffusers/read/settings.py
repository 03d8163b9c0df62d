"""What the settings of guidestar's own modules may be, by the class that a ``config.json``
names.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from ...io.documents import (
    ValueKind,
    check_values,
    choice,
    flag,
    is_name,
    many,
    maybe,
    number,
    text,
    whole,
)
from ..objects import Config
from .building import MOST_LAYERS

_SIZE = whole(1, 65_536)
_LAYERS = whole(1, MOST_LAYERS)
_CLASSES = many(text, most=1_000_000)
_NUMBERS = maybe(many(number(), 1, 65_536))
_SPREADS = maybe(many(number(0, above=True), 1, 65_536))


def _rising(value: object) -> bool:
    pair = many(number(0, above=True), 2, 2)
    if not isinstance(value, list | tuple) or not all(map(pair.fits, value)):
        return False
    return all(a[0] < b[0] for a, b in pairwise(value))


_CLASSIFIER = {
    "classes": _CLASSES,
    "channels": _SIZE,
    "widths": many(_SIZE, 1, 32),
    "layers": _LAYERS,
    "groups": _SIZE,
    "noise_aware": flag,
    "dropout": number(0, 0.999),
    "temperature": number(0, above=True),
    "rho_max": maybe(number(0)),
    "temperatures": ValueKind(words="pairs [rho, T] of positive numbers, rho rising", fits=_rising),
    "outputs": maybe(_SIZE),
    "centre": _NUMBERS,
    "spread": _SPREADS,
}
_PARTS = ValueKind(
    words="a list of the names of folders beside it, no paths",
    fits=lambda v: (
        isinstance(v, list)
        and len(v) > 0
        and all(is_name(n) and "." not in n for n in v)
        and len(set(v)) == len(v)
    ),
)
_KNOWN: dict[str, tuple[dict[str, ValueKind], tuple[str, ...]]] = {
    "Classifier": (_CLASSIFIER, ("classes",)),
    "SequenceClassifier": (_CLASSIFIER, ("classes",)),
    "ClassEncoder": ({"classes": _CLASSES, "width": _SIZE}, ("classes", "width")),
    "LabelEncoder": (
        {"classes": _CLASSES, "null": maybe(whole(1, 1_000_000))},
        ("classes",),
    ),
    "VectorEncoder": (
        {"size": _SIZE, "width": _SIZE, "mean": _NUMBERS, "std": _SPREADS},
        ("size", "width"),
    ),
    "SequenceTransformer": (
        {
            "channels": _SIZE,
            "length": maybe(whole(1, 1_000_000)),
            **dict.fromkeys(("width", "heads", "patch"), _SIZE),
            "depth": _LAYERS,
            "cross_attention_dim": maybe(_SIZE),
        },
        ("channels",),
    ),
    "LengthEncoder": (
        {"frames": whole(1, 1_000_000), "least": whole(1, 1_000_000)},
        ("frames",),
    ),
    "MotionTransformer": (
        {
            **dict.fromkeys(("channels", "width", "heads"), _SIZE),
            "length": whole(1, 1_000_000),
            "depth": _LAYERS,
            **dict.fromkeys(("inner", "text_width"), maybe(_SIZE)),
            "dropout": number(0, 0.999),
        },
        ("channels", "length"),
    ),
    "TextEncoder": (
        {
            "layer": choice("last", "penultimate"),
            "output": choice("states", "pooled", "projected"),
            "mask": flag,
        },
        (),
    ),
    "GuidanceScale": (
        {"width": _SIZE, **dict.fromkeys(("low", "high", "default"), number())},
        ("width", "low", "high", "default"),
    ),
    "Conditions": ({"names": _PARTS}, ("names",)),
}


def _colours(kind: ValueKind) -> ValueKind:
    return ValueKind(
        words=f"three values (or one for all), each {kind.words}",
        fits=lambda v: many(kind, 1, 1).fits(v) or many(kind, 3, 3).fits(v),
    )


PIXELS = {"image_mean": _colours(number()), "image_std": _colours(number(0, above=True))}
"""Of ``preprocessor_config.json``: mean and standard deviation of each colour."""
LABELS = ValueKind(
    words='an object of the names of classes by number ("0", "1", …)',
    fits=lambda v: isinstance(v, dict) and all(isinstance(n, str) for n in v.values()),
)
"""``id2label``, of ``model_index.json`` or of a network."""


def check_own(file: Path, config: Config) -> None:
    """Hold the settings of one of guidestar's own modules against what they may be; those of others
    pass.

    Raises:
        ValueError: a setting is missing, of another kind, or does not go with another; it is named.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in _KNOWN:
        return
    schema, needed = _KNOWN[name]
    check_values(file, config, schema, needed)
    if name.endswith("Classifier"):
        _check_classifier(file, config)
    if name == "VectorEncoder":
        _check_lengths(file, config, ("mean", "std"), config["size"], "size")


def _check_classifier(file: Path, config: Config) -> None:
    outputs = config.get("outputs")
    if outputs is None and not config["classes"]:
        raise ValueError(
            f"{file}: classes must hold at least one name, or outputs be the number of a "
            "regressor's numbers"
        )
    if outputs is not None:
        _check_lengths(file, config, ("centre", "spread"), outputs, "outputs")


def _check_lengths(file: Path, config: Config, keys: tuple[str, ...], count: int, of: str) -> None:
    for key in keys:
        if config.get(key) is not None and len(config[key]) not in (
            (1, count) if of == "outputs" else (count,)
        ):
            raise ValueError(
                f"{file}: {key} must hold {count} numbers, as {of} says, not {len(config[key])}"
            )


def check_network(file: Path, config: Config) -> None:
    """Hold those settings of a denoising network against what they may be that are used beside it.

    Raises:
        ValueError: one is of another kind; it is named.
    """
    side = whole(1, 65_536)
    sides = ValueKind(
        words="a whole number from 1 to 65,536, or two of them",
        fits=lambda v: v is None or side.fits(v) or many(side, 2, 2).fits(v),
    )
    check_values(
        file,
        config,
        {"in_channels": maybe(side), "out_channels": maybe(side), "sample_size": sides},
    )
