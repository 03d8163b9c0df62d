"""InstructPix2Pix's guidance: one scale for the image, one for the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.levels import Step, Value, expand
from ...core.passes import COND, NULL, Part, Pass
from ...core.prediction import Prediction
from ..bases.conditional_contrast import needs_condition
from ..expression import register
from ..term import Context, Direction, Live, Pushed, TermState
from ..weights import Scale, checked_scale, weigh


@register
@dataclass(frozen=True)
class Pix2Pix(Direction):
    """Dual guidance: ``u + s_I (c_I − u) + s_T (c_IT − c_I)``.

    c_I has the image of the condition and c_IT its image and text. That is
    ``c_IT + (s_I − 1)(c_I − u) + (s_T − 1)(c_IT − c_I)``, so with both scales 1 it is the plain
    conditional model. It serves any condition of several parts: ``keep`` names the part that is the
    image here; all others together are the text.

    Args:
        scale: s_I, usually 1.5; one number, or one for each sample.
        text: s_T, usually 7.5; one number, or one for each sample.
        keep: the part of c_I: a name of the encoder ("image=…; text=…"), or of a tensor of the
            condition. The other parts are those of the null.

    3 evaluations a step. Linear, so it is the same in every space. A schedule changes the factor 1
    that both parts share.

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
        counts = [len(s) for s in (self.scale, self.text) if isinstance(s, Sequence)]
        if len(set(counts)) > 1:
            raise ValueError(
                f"pix2pix: {counts[0]} scales of the image were given, but {counts[1]} of the text"
            )

    def bind(self, context: Context) -> Direction:
        return needs_condition(self, context)

    def weight(
        self, step: Step, rows: Tensor | None = None, state: TermState | None = None
    ) -> Value:
        scales = (self.scale, self.text)
        count = next((len(s) for s in scales if isinstance(s, Sequence)), None)
        if count is None:
            active: Scale = float(scales != (1, 1))
        else:
            image, text = (s if isinstance(s, Sequence) else (s,) * count for s in scales)
            active = tuple(float((i, t) != (1, 1)) for i, t in zip(image, text, strict=True))
        return weigh(active, self.schedule, self.interval, step, rows)

    def passes(self, step: Step) -> tuple[Pass, ...]:
        return COND, Pass(cond=Part(self.keep)), NULL

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        both, image, none = (p.x0 for p in predictions)
        push = _less_one(self.scale, live) * (image - none)
        return push + _less_one(self.text, live) * (both - image), live.state


def _less_one(scale: Scale, live: Live) -> Value:
    """Return ``scale − 1``, in the shape of these samples."""
    if not isinstance(scale, Sequence):
        return scale - 1
    return expand(live.own_rows(torch.tensor(scale, dtype=torch.float64)) - 1, live.x_t)
