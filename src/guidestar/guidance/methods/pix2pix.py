"""InstructPix2Pix's guidance: one scale for the image, one for the text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.levels import Step, Value, expand
from ...core.passes import COND, NULL, Part, Pass
from ...core.prediction import Prediction
from ..bases.conditional_contrast import needs_condition
from ..expression import register
from ..term import Context, Direction, Live, Pushed, State
from ..weights import Scale, checked_scale, weigh


@register
@dataclass(frozen=True)
class Pix2Pix(Direction):
    """Dual guidance: ``u + s_I (c_I − u) + s_T (c_IT − c_I)``, c_I knowing the image alone, c_IT
    image and text.

    Written ``c_IT + (s_I − 1)(c_I − u) + (s_T − 1)(c_IT − c_I)``: with both scales 1 it is the
    plain conditional model. Any condition of several parts will do; the part that ``keep`` names
    takes the place of the image, all others together that of the text.

    Args:
        scale: s_I, usually 1.5; one number, or one for each sample.
        text: s_T, usually 7.5; one number, or one for each sample.
        keep: the part that c_I knows: a name of the encoder ("image=…; text=…"), or of a tensor of
            the condition. The others are the null's.

    3 evaluations a step. Linear, so it reads the same in every space. A schedule acts on the
    factor,
    1, that both parts share.

    References:
        InstructPix2Pix: Learning to Follow Image Editing Instructions,
        https://arxiv.org/abs/2211.09800
            Tim Brooks, Aleksander Holynski, Alexei A. Efros
    """

    text: Scale = 7.5
    keep: str = "image"
    name = "pix2pix"
    neutral = 1.0
    per_sample = ("scale", "text")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "text", checked_scale(f"{self.name}: text", self.text))
        if (
            isinstance(self.scale, tuple)
            and isinstance(self.text, tuple)
            and len(self.scale) != len(self.text)
        ):
            raise ValueError(
                f"pix2pix: {len(self.scale)} scales of the image were given, but "
                f"{len(self.text)} of the text"
            )

    def bind(self, context: Context) -> Direction:
        return needs_condition(self, context)

    def weight(self, step: Step, rows: Tensor | None = None, state: State | None = None) -> Value:
        count = next((len(s) for s in (self.scale, self.text) if isinstance(s, tuple)), None)
        if count is None:
            return weigh(
                float(self.scale != 1 or self.text != 1), self.schedule, self.interval, step, rows
            )
        image, text = (s if isinstance(s, tuple) else (s,) * count for s in (self.scale, self.text))
        return weigh(
            tuple(float(i != 1 or t != 1) for i, t in zip(image, text, strict=True)),
            self.schedule,
            self.interval,
            step,
            rows,
        )

    def passes(self, step: Step) -> tuple[Pass, ...]:
        return COND, Pass(cond=Part(self.keep)), NULL

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        both, image, none = (p.x0 for p in predictions)
        return _less_one(self.scale, live) * (image - none) + _less_one(self.text, live) * (
            both - image
        ), live.state


def _less_one(scale: Scale, live: Live) -> Value:
    if not isinstance(scale, tuple):
        return scale - 1  # type: ignore[operator]
    return expand(live.mine(torch.tensor(scale, dtype=torch.float64)) - 1, live.x_t)
