"""Normalised attention guidance."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.arguments import check_arguments
from ...core.denoiser import Condition, Denoiser
from ...core.levels import Step, Value, expand
from ...core.passes import COND, Inputs, Pass, Slot
from ...core.perturbation import Rows, layers_of
from ...core.prediction import Prediction
from ..bases.conditional_contrast import needs_condition
from ..bases.perturbation_contrast import checked_layers
from ..bases.statistics import safe
from ..expression import register
from ..term import Context, Direction, Live, Pushed, TermState
from ..weights import Scale, finite, weigh


@register
@dataclass(frozen=True)
class NAG(Direction):
    """Normalised attention guidance: a negative prompt in the attention, also for few-step models.

    ``D̂ = c_n``, a conditional pass with changed attention to the text. Before the output map, Z⁺
    and Z⁻ are the attention of a token of the picture to the prompt and to the negative:

        Z̃ = Z⁻ + s (Z⁺ − Z⁻);   R = ‖Z̃‖₁/‖Z⁺‖₁;   Ẑ = Z̃ min(R, τ)/R;   Z = α Ẑ + (1 − α) Z⁺

    The term adds ``c_n − c``, so c is evaluated too; a schedule blends between the two.

    In joint attention (SD3, Flux), text and picture attend to each other. There the text of the
    negative goes through the network beside that of the prompt, with the same picture. Z⁺ and Z⁻
    are the attention of the picture's tokens to themselves and to one of the texts; each text keeps
    its own result. Modulation by pooled embeddings stays that of the prompt.

    Args:
        scale: s; 1 is the plain conditional model. Usual: 5.
        tau: τ, the largest growth of the L1 norm of a token, usually 2.5.
        alpha: α, usually 0.25 (0.125 for SD3 in the authors' code).
        negative: a name, prompt or `Condition` to move away from; by default the run's negative,
            else the null.
        layers: names of layers of attention to the text, or of joint attention; by default all.

    1 evaluation more than the conditional one, in which these layers work twice (with joint
    attention, all blocks up to the last of them); with a list of scales, one for each different
    scale.

    References:
        Normalized Attention Guidance: Universal Negative Guidance for Diffusion Models,
        https://arxiv.org/abs/2505.21179
            Dar-Yen Chen, Hmrishav Bandyopadhyay, Kai Zou, Yi-Zhe Song
    """

    tau: float = 2.5
    alpha: float = 0.25
    negative: str | int | Condition | None = None
    layers: str | Sequence[str] = ()
    name = "nag"
    neutral = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_arguments(self, self.name, "negative", "layers")
        object.__setattr__(self, "layers", checked_layers(self.layers))
        if not finite(self.tau) or self.tau <= 0 or not finite(self.alpha):
            raise ValueError(
                f"nag: tau must be positive and alpha a number, not {self.tau!r} and {self.alpha!r}"
            )

    def bind(self, context: Context) -> Direction:
        return needs_condition(self, context)

    def weight(
        self, step: Step, rows: Tensor | None = None, state: TermState | None = None
    ) -> Value:
        if isinstance(self.scale, Sequence):
            on: Scale = tuple(float(s != self.neutral) for s in self.scale)
        else:
            on = float(self.scale != self.neutral)
        # At scale 1 there is no push, even if a schedule changes the weight 0.
        scheduled = weigh(on, self.schedule, self.interval, step, rows)
        return scheduled * weigh(on, None, None, step, rows)

    def passes(self, step: Step) -> tuple[Pass, ...]:
        return (COND, *self._changed.values())

    @property
    def _changed(self) -> dict[float, Pass]:
        scales = self.scale if isinstance(self.scale, Sequence) else [self.scale]
        against = Slot.NEGATIVE if self.negative is None else self.negative
        others = [s for s in scales if s != self.neutral]
        return {s: Pass(perturb=self._change(s), against=against) for s in others}

    def _change(self, scale: float) -> ContrastedAttention:
        return ContrastedAttention(
            layers=tuple(self.layers), scale=scale, tau=self.tau, alpha=self.alpha
        )

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        c = predictions[0].x0
        changed = zip(self._changed, predictions[1:], strict=True)
        pushes = {s: p.x0 - c for s, p in changed}
        if not isinstance(self.scale, Sequence):
            return pushes[self.scale], live.state
        scales = live.own_rows(torch.tensor(self.scale, dtype=torch.float64))
        own = [expand((scales == s).double(), c) * push for s, push in pushes.items()]
        return sum(own, torch.zeros_like(c)), live.state


@dataclass(frozen=True, kw_only=True)
class ContrastedAttention:
    """Extrapolates attention away from another text: to the text, or joint with it.

    Args:
        layers: names of layers.
        scale: s.
        tau: τ.
        alpha: α.
    """

    layers: tuple[str, ...] = ()
    scale: float
    tau: float
    alpha: float
    name: ClassVar[str] = "nag"

    def __call__(
        self, denoiser: Denoiser, rows: Rows | None = None, inputs: Inputs | None = None
    ) -> AbstractContextManager[None]:
        return layers_of(denoiser).contrasting(self.layers, self._contrast)

    def _contrast(self, good: Tensor, bad: Tensor) -> Tensor:
        """Return Z ``[B, heads, tokens, d]``; a token's norm is over its heads together."""
        moved = bad + self.scale * (good - bad)
        moved = moved * (self.tau * _l1(good) / safe(_l1(moved))).clamp_max(1)
        return self.alpha * moved + (1 - self.alpha) * good


def _l1(z: Tensor) -> Tensor:
    return z.abs().sum((1, 3), keepdim=True)
