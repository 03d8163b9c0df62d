"""Perturbed-attention guidance."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...core.denoiser import Denoiser
from ...core.passes import Inputs, Perturbation
from ...core.perturbation import Attention, Rows, layers_of
from ..bases.perturbation_contrast import Perturbed
from ..expression import register


@register
@dataclass(frozen=True)
class PAG(Perturbed):
    """Perturbed-attention guidance: away from a network whose attention does not look around.

    ``D̂ = c + s (c − c_p)``, where in c_p some layers of self-attention have the identity for their
    map, so that each token of the picture gets its own value: ``softmax(QKᵀ/√d) V → V``. In joint
    blocks the tokens of the text attend as they always do.

    Args:
        scale: s, usually 3. It means the same with cfg beside it and alone; no condition is needed.
        layers: names of layers of self-attention; by default those of the middle block.
        of: whose pass is contrasted with its perturbed self: "cond" (without a condition "uncond"),
            "uncond" or "neg".

    1 evaluation more than what it is added to. Linear, so it reads the same in every space.

    References:
        Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance,
        https://arxiv.org/abs/2403.17377
            Donghoon Ahn, Hyoungwon Cho, Jaewon Min, Wooseok Jang, Jungwoo Kim, SeonHwa Kim, Hyun
            Hee Park, Kyong Hwan Jin, Seungryong Kim
    """

    name = "pag"

    def change(self) -> Perturbation:
        return IdentityAttention(layers=tuple(self.layers))


@dataclass(frozen=True, kw_only=True)
class IdentityAttention:
    """Self-attention in which each of the picture's tokens attends to itself alone."""

    layers: tuple[str, ...] = ()
    name: ClassVar[str] = "pag"

    def __call__(
        self, denoiser: Denoiser, rows: Rows | None = None, inputs: Inputs | None = None
    ) -> AbstractContextManager[None]:
        return layers_of(denoiser).attending(self.layers, _attend, rows)


def _attend(a: Attention) -> Tensor:
    own = a.value[:, :, a.image]
    return own if own.shape == a.value.shape else a.replace(a.compute(), own)
