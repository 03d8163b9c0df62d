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
    """Perturbed-attention guidance: away from a network whose attention map is the identity.

    ``D̂ = c + s (c − c_p)``. In c_p some layers of self-attention return each token's own value:
    ``softmax(QKᵀ/√d) V → V``. In joint blocks the attention of the text's tokens does not change.

    Args:
        scale: s, usually 3, alone or beside cfg. No condition is needed.
        layers: names of layers of self-attention; by default those of the middle block.
        of: the pass that is contrasted with its perturbed one: "cond" ("uncond" in a run without a
            condition), "uncond" or "neg".

    1 evaluation more than the other terms. Linear, so it is the same in every space.

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
    """Replaces self-attention by the identity, for the picture's tokens.

    Args:
        layers: names of layers of self-attention.
    """

    layers: tuple[str, ...] = ()
    name: ClassVar[str] = "pag"

    def __call__(
        self, denoiser: Denoiser, rows: Rows | None = None, inputs: Inputs | None = None
    ) -> AbstractContextManager[None]:
        return layers_of(denoiser).attending(self.layers, _attend, rows)


def _attend(a: Attention) -> Tensor:
    own = a.value[:, :, a.image]
    return own if own.shape == a.value.shape else a.replace(a.compute(), own)
