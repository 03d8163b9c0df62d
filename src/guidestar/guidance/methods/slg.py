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
    """Skip-layer guidance (spatiotemporal skip guidance): away from a network without some of its
    blocks.

    ``D̂ = c + s (c − c_p)``, where in c_p some blocks return what they are given; joint blocks
    return both their streams, the picture's and the text's.

    Args:
        scale: s, usually 2.5–2.8 on top of cfg; the published recipes use it in the first fifth of
            the steps, which ``interval`` expresses in noise ratios.
        layers: names of blocks, exactly: ``transformer_blocks.1`` is not ``transformer_blocks.10``.
            By default the block in the middle of a transformer (Stable Diffusion 3.5: 7, 8 and 9);
            in U-Nets, what can be skipped of the middle block.
        of: as in pag.

    1 evaluation more than what it is added to (in a call that it shares, the blocks work for all
    rows). Linear, so it reads the same in every space.

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
    """Blocks that return what they are given."""

    layers: tuple[str, ...] = ()
    name: ClassVar[str] = "slg"

    def __call__(
        self, denoiser: Denoiser, rows: Rows | None = None, inputs: Inputs | None = None
    ) -> AbstractContextManager[None]:
        return layers_of(denoiser).skipping(self.layers, rows)
