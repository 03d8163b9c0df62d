"""Read pictures as observations: inverse problems from files, for the command line.

An operator is written as a method is: ``downsample(factor=2)``, ``inpaint(mask='mask.png')``,
``blur(deviation=1.5, noise=0.05)``, ``gray``. It is parsed, never evaluated.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import find_mismatch, needed
from ..data.layout import find_pictures
from ..guidance import (
    METHODS,
    Guidance,
    Inpaint,
    Linear,
    Observation,
    Steered,
    get_operator,
    losses_of,
)
from ..guidance.operators import OPERATORS
from ..guidance.weights import finite
from ..io.decoding import open_picture, to_8_bits
from ..model.model import Model


def read_observation(
    model: Model, guidance: Guidance, pictures: Sequence[Path] | None, operator: str | None
) -> Observation | None:
    """Read the observation of a guidance that lowers a loss; None for one that lowers none.

    Args:
        model: a `Model` of pictures, whose samples are looked for.
        guidance: of the run.
        pictures: files, or folders of them, one observation each.
        operator: as written, with its options; ``noise`` is the deviation of the noise in the
            pictures.

    Raises:
        ValueError: one of the three without the others, a picture that cannot be read or is of
            another size than the operator shows, an unknown operator or option.
    """
    if not pictures and not operator:
        if losses_of(guidance):
            raise ValueError(
                f"'{guidance}' lowers a loss, and none was given; give the observed picture with "
                "--observe, and the operator that made it with --operator"
            )
        return None
    if not pictures or not operator:
        raise ValueError(
            "--observe (a picture) and --operator (what made it, e.g. 'downsample(factor=2)') go "
            "together; give both"
        )
    if not losses_of(guidance):
        lowering = ", ".join(sorted(name for name, m in METHODS.items() if issubclass(m, Steered)))
        raise ValueError(
            f"'{guidance}' lowers no loss, so the observed picture has no effect; add one of "
            f"{lowering}, e.g. 'uncond + dps(1)'"
        )
    shape = model.need_image_shape()
    made, noise = read_operator(operator, shape)
    shown = made(torch.zeros(1, *shape))
    files = [file for picture in pictures for file in _files(picture)]
    pictured = torch.stack(
        [
            read_observed(file, tuple(shown.shape[1:]), f"{operator} of the model's pictures")
            for file in files
        ]
    )
    y = made(pictured) if isinstance(made, Inpaint) else pictured
    return Observation(model.on_images(made), y, noise=noise)


def _files(picture: Path) -> list[Path]:
    if not picture.is_dir():
        return [picture]
    found = [file for file in find_pictures(picture) if file.parent == picture]
    if not found:
        raise ValueError(f"the folder {picture} holds no pictures")
    return found


def read_operator(text: str, shape: Sequence[int]) -> tuple[Linear, float]:
    """Read an operator on samples ``[C, H, W]`` and the deviation of its noise.

    Raises:
        ValueError: it cannot be read, or there is no such operator or option.
    """
    name, options = _call(text)
    noise = options.pop("noise", 0.0)
    if not finite(noise) or noise < 0:
        raise ValueError(f"{name}: noise must be a finite number, 0 or more, not {noise!r}")
    if name not in OPERATORS:
        get_operator(name)  # which says what there is
    _check(name, options)
    if "mask" in options:
        options["mask"] = (
            read_observed(Path(options["mask"]), (1, *shape[1:]), "the model's pictures") > 0
        ).float()
    return get_operator(name, **options), float(noise)


def _call(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of an operator as it is written."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and not node.args
            and all(k.arg for k in node.keywords)
        ):
            return node.func.id, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass
    raise ValueError(
        f"the operator {text!r} cannot be read; write its name and its options by theirs, e.g. "
        "downsample(factor=2)"
    )


def _check(name: str, options: Mapping[str, object]) -> None:
    operator: Any = OPERATORS[name]  # a dataclass, which its protocol cannot say
    known = [f.name for f in fields(operator)]
    for key in needed(OPERATORS[name]):
        if key not in options:
            raise ValueError(f"{name} needs its {key}: write {name}({key}='{key}.png')")
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"{name} has no option {key!r}; it has {', '.join([*known, 'noise'])}")
        if key == "mask" and not isinstance(value, str):
            raise ValueError(f"{name}: mask must be the name of a picture, not {value!r}")
        if key != "mask" and (wrong := find_mismatch(OPERATORS[name], key, value)):
            raise ValueError(f"{name}: {wrong}")


def read_observed(path: Path, shape: Sequence[int], what: str) -> Tensor:
    """Read a picture ``[C, H, W]`` in [−1, 1], grey or in colour, by the channels of ``shape``.

    Raises:
        ValueError: it cannot be read, or is of another size.
    """
    import numpy as np

    channels, height, width = shape
    if channels not in (1, 3):
        raise ValueError(f"{what} have {channels} channels, which no picture has")
    try:
        pixels = torch.from_numpy(np.array(to_8_bits(open_picture(path), channels)))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    if pixels.shape[:2] != (height, width):
        raise ValueError(
            f"{path} is {pixels.shape[1]} × {pixels.shape[0]} pixels, but {what} are {width} × "
            f"{height}"
        )
    return (pixels[None] if channels == 1 else pixels.movedim(-1, 0)).float() / 127.5 - 1
