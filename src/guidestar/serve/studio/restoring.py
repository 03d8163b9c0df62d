"""Inverse problems: a picture, a mask that was painted, and an operator make an observation."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, ImageOps
from torch import Tensor

from ...core.rng import Draw
from ...guidance import METHODS, Inpaint, Linear, Steered, get_operator
from ...guidance.operators import OPERATORS
from ...io.images import to_bytes, to_pil
from ...model.model import Model
from ..web.pictures import fit_picture, pixels_of
from ..web.schemas import ObservedPicture

OPTIONS = {"downsample": ("factor",), "blur": ("deviation",)}
"""Options of operators that the page has sliders for."""

EXPRESSION = "cond + dps(5)"
"""What a problem is solved with, to begin with."""


@dataclass(frozen=True, kw_only=True)
class InverseProblem:
    """An observation, and what it was made of.

    Args:
        observation: as the server takes it.
        original: the picture, of the model's size (PNG in base64).
        observed: what is known of it (PNG in base64).
    """

    observation: ObservedPicture
    original: str
    observed: str


def lowering() -> list[str]:
    """Name the methods that lower a loss, as an inverse problem needs."""
    return sorted(name for name, method in METHODS.items() if issubclass(method, Steered))


def operators_for(model: Model) -> list[str]:
    """Name the operators that a model's pictures can be observed by."""
    coloured = model.image_shape is not None and model.image_shape[0] == 3
    return [name for name in OPERATORS if name != "gray" or coloured]


def observe(
    model: Model,
    picture: Image.Image,
    operator: str,
    *,
    mask: Image.Image | None = None,
    options: Mapping[str, float] | None = None,
    noise: float = 0.0,
) -> InverseProblem:
    """Bring a picture to the model's size, and degrade it as an operator does.

    Args:
        model: of pictures.
        picture: any.
        operator: its name.
        mask: of inpaint: what was painted (not black) is what is to be found.
        options: of the operator.
        noise: deviation of noise that is added, in [−1, 1] units.

    Raises:
        ValueError: the model makes no pictures, there is no mask, or an option is out of range.
    """
    channels, height, width = model.need_image_shape()
    fitted = fit_picture(picture, (width, height), channels, "crop")
    x = pixels_of(fitted)[None]
    known = None
    if operator == "inpaint":
        if mask is None or mask.convert("L").getextrema()[1] == 0:
            raise ValueError("paint over what is to be filled in; there is no mask yet")
        hidden = ImageOps.fit(mask.convert("L"), (width, height), Image.Resampling.BOX)
        known = hidden.point([255 if v <= 64 else 0 for v in range(256)])
        made: Linear = Inpaint(mask=(pixels_of(known) > 0).float())
    else:
        wanted = {k: v for k, v in (options or {}).items() if k in OPTIONS.get(operator, ())}
        whole = {k: int(v) if float(v).is_integer() else v for k, v in wanted.items()}
        made = get_operator(operator, **whole)
    y = made(x)
    if noise:
        y = y + noise * _noise(y)
    shown = to_pil(y)[0]
    settings = {k: v for k, v in (options or {}).items() if k in OPTIONS.get(operator, ())}
    return InverseProblem(
        observation=ObservedPicture(
            image=_encode(shown),
            operator=operator,
            options=settings,
            mask=None if known is None else _encode(known),
            noise=noise,
        ),
        original=_encode(fitted),
        observed=_encode(_over(shown, known)),
    )


def _over(shown: Image.Image, known: Image.Image | None) -> Image.Image:
    """Show what is not known as a mid grey-blue."""
    if known is None:
        return shown
    return Image.composite(shown.convert("RGB"), Image.new("RGB", shown.size, "#6b7db3"), known)


def _noise(y: Tensor) -> Tensor:
    return Draw((0,)).normal_like("observation", y)


def _encode(image: Image.Image) -> str:
    return base64.b64encode(to_bytes(image)).decode()
