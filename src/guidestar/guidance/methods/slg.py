"""Skip-layer guidance."""

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
class SLG(Perturbed):
    """Skip-layer guidance (spatiotemporal skip guidance): away from a network without some blocks.

    ``D̂ = c + s (c − c_p)``. In c_p some blocks return their input; joint blocks return both their
    streams, the picture's and the text's.

    Args:
        scale: s, usually 2.5–2.8 beside cfg. Published settings use it in the first fifth of the
            steps, which ``interval`` expresses in noise ratios.
        layers: exact names of blocks: ``transformer_blocks.1`` is not ``transformer_blocks.10``. By
            default the middle block of a transformer (7, 8 and 9 of Stable Diffusion 3.5), or the
            parts of a U-Net's middle block that can be skipped.
        of: as in pag.

    1 evaluation more than the other terms. In a shared call, the blocks work for all rows. Linear,
    so it is the same in every space.

    References:
        Spatiotemporal Skip Guidance for Enhanced Video Diffusion Sampling,
        https://arxiv.org/abs/2411.18664
            Junha Hyung, Kinam Kim, Susung Hong, Min-Jung Kim, Jaegul Choo
    """

    name = "slg"

    def change(self) -> Perturbation:
        return SkippedBlocks(layers=tuple(self.layers))


@dataclass(frozen=True, kw_only=True)
class SkippedBlocks:
    """Makes blocks return their input.

    Args:
        layers: names of blocks.
    """

    layers: tuple[str, ...] = ()
    name: ClassVar[str] = "slg"

    def __call__(
        self, denoiser: Denoiser, rows: Rows | None = None, inputs: Inputs | None = None
    ) -> AbstractContextManager[None]:
        return layers_of(denoiser).skipping(self.layers, rows)
