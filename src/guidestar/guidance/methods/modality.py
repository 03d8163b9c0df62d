"""Modality guidance: of a video by its sound, and of the sound by the video."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from ...core.denoiser import Denoiser
from ...core.passes import Inputs, Perturbation
from ...core.perturbation import Rows, layers_of
from ..bases.perturbation_contrast import Perturbed
from ..expression import register


@register
@dataclass(frozen=True)
class Modality(Perturbed):
    """Modality guidance: away from a network in which video and sound do not see each other.

    ``D̂ = c + (s − 1)(c − c_p)``. In c_p the layers of attention from video to sound and from sound
    to video return zeros.

    Args:
        scale: s, as LTX-2's ``modality_scale``: 1 is no guidance, 3 usual.
        layers: names of layers of attention between the two; by default all.
        of: as in pag.

    1 evaluation more than the other terms. Linear, so it is the same in every space.

    References:
        LTX-2: Efficient Joint Audio-Visual Foundation Model, https://arxiv.org/abs/2601.03233
            Yoav HaCohen, Benny Brazowski, Nisan Chiprut, Yaki Bitterman, Andrew Kvochko, Avishai
            Berkowitz, Daniel Shalem, Daphna Lifschitz, Dudu Moshe, Eitan Porat, Eitan Richardson,
            Guy Shiran, Itay Chachy, Jonathan Chetboun, Michael Finkelson, Michael Kupchick, Nir
            Zabari, Nitzan Guetta, Noa Kotler, Ofir Bibi, Ori Gordon, Poriya Panet, Roi Benita,
            Shahar Armon, Victor Kulikov, Yaron Inger, Yonatan Shiftan, Zeev Melumian, Zeev Farbman
    """

    name = "modality"
    neutral = 1.0

    def change(self) -> Perturbation:
        return SilencedExchange(layers=tuple(self.layers))


@dataclass(frozen=True, kw_only=True)
class SilencedExchange:
    """Lets layers of attention between video and sound return zeros.

    Args:
        layers: names of such layers.
    """

    layers: tuple[str, ...] = ()
    name: ClassVar[str] = "modality"

    def __call__(
        self, denoiser: Denoiser, rows: Rows | None = None, inputs: Inputs | None = None
    ) -> AbstractContextManager[None]:
        return layers_of(denoiser).silencing(self.layers, rows)
